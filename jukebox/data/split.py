"""Which songs train and which are held out, and random numbers that belong to an item: the same from audio and codes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def held_out(windows: Mapping[str, int], train_test_split: float, seed: int) -> set[str]:
    """Files of the test part, from the number of windows in each file; all windows of a file stay together.

    In an order shuffled by (seed, name), each file is taken that brings the share of the test nearer to
    1 - train_test_split. With two files or more neither part is empty, unless train_test_split is 1.
    """
    wanted = sum(windows.values()) * (1 - train_test_split)
    test: set[str] = set()
    have = 0
    for name in sorted(windows, key=lambda name: _lot(seed, name)):
        if abs(have + windows[name] - wanted) < abs(have - wanted) and len(test) < len(windows) - 1:
            test.add(name)
            have += windows[name]
    if not test and wanted > 0 and len(windows) > 1:
        test.add(min(windows, key=lambda name: (windows[name], _lot(seed, name))))
    return test


def random_numbers(seed: int, draw: int, item: int, stream: int) -> np.random.Generator:
    """Random numbers that belong to one item in one draw (epoch), whatever process asks for them (Philox, a counter)."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, stream], counter=[0, 0, item, draw]))


def _lot(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
