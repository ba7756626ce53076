"""Which songs train and which are held out: a function of a song's name and the seed, the same from audio or codes."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def is_held_out(relpaths: Sequence[str], train_share: float, seed: int) -> NDArray[np.bool_]:
    """For every song, whether it belongs to the test part. Windows of one file stay together.

    A song stays in its part whatever is added to or removed from the set, but for one: no part is left empty when
    there are two songs or more and `train_share` is below 1; the song nearest to the border changes sides.
    """
    places = np.array([_place(relpath, seed) for relpath in relpaths])
    held_out = places >= train_share
    if train_share < 1 and len(set(places.tolist())) > 1:
        if not held_out.any():
            held_out = places == places.max()
        elif held_out.all():
            held_out = places != places.min()
    return held_out


def _place(relpath: str, seed: int) -> float:
    """A number in [0, 1) drawn by name and seed; the same name in other Unicode forms or separators counts as one."""
    name = unicodedata.normalize("NFC", relpath.replace("\\", "/"))
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
