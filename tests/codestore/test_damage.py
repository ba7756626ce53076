"""Hostile and damaged stores: a clear error every time, never a crash, a hang or a wrong code."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from jukebox.codestore.pre_encoded import open_pre_encoded
from jukebox.codestore.store import CodeStore
from jukebox.errors import StoreError, UserError

ITEM = Path("level_1") / "0" / "0000000000000.npy"


def npy(header: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def head(dtype: str = "<i2", shape: str = "(1, 32)", fortran: str = "False") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("objects", npy(head("|O"), b"\x80\x04N."), "Python objects"),
        ("10^11 elements", npy(head(shape="(1, 100000000000)"), b"\0" * 64), "needs 200000000000 bytes, the file has 64"),
        ("more digits than a number", npy(head(shape="(1, 9999999999999999999)"), b""), "impossible shape"),
        ("negative shape", npy(head(shape="(1, -32)"), b"\0" * 64), "header"),
        ("fortran order", npy(head(fortran="True"), b"\0" * 64), "Fortran order"),
        ("big-endian", npy(head(">i2"), b"\0" * 64), "little-endian"),
        ("float codes", npy(head("<f2"), b"\0" * 64), "expected <i2 .1, 32., found <f2"),
        ("wrong shape", npy(head(shape="(32,)"), b"\0" * 64), "found <i2 .32,."),
        ("values beyond the bins", npy(head(), np.full(32, 64, "<i2").tobytes()), "holds codes from 64 to 64, expected 0 to 63"),
        ("values below zero", npy(head(), np.full(32, -1, "<i2").tobytes()), "holds codes from -1 to -1"),
        ("text that is code", npy("__import__('os').system('touch pwned')", b"\0" * 64), "header"),
        ("deep brackets", npy("(" * 500 + ")" * 500, b"\0" * 64), "header"),
        ("format 2.0", npy(head(), b"\0" * 64, b"\x02\x00"), "format 2.0"),
        ("half a file", npy(head(), b"\0" * 40), "needs 64 bytes, the file has 40"),
        ("half a header", npy(head(), b"")[:30], "inside its header"),
        ("nothing", b"", "not an .npy"),
        ("a web page", b"<!doctype html>", "not an .npy"),
    ],
)  # fmt: skip
def test_s4_hostile_arrays_are_refused_with_file_and_expectation(tiny, tmp_path, name, content, reason):
    store = tiny.make(tmp_path / "s")
    (store.root / ITEM).write_bytes(content)
    with pytest.raises(StoreError, match=reason) as caught:
        store.codes(1, 0)
    assert "0000000000000.npy" in str(caught.value)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling link", "gone"])
def test_things_that_are_no_plain_file_neither_hang_nor_crash(tiny, tmp_path, kind):
    store = tiny.make(tmp_path / "s")
    path = store.root / ITEM
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    with pytest.raises(StoreError, match="plain file|cannot be opened"):
        store.codes(1, 0)
    with pytest.raises(StoreError, match="missing"):
        CodeStore.open(store.root)


def test_d6_a_file_cut_while_the_store_is_open_is_an_error_not_a_crash(tiny, tmp_path):
    store = tiny.make(tmp_path / "s")
    os.truncate(store.root / ITEM, 100)
    with pytest.raises(StoreError, match="ends inside its header|the file has"):
        store.codes(1, 0)


def test_ranges_outside_an_item_are_refused(tiny, tmp_path):
    store = tiny.make(tmp_path / "s")
    for start, stop in ((0, 33), (-1, 5), (5, 4), (40, None)):
        with pytest.raises(StoreError, match="it has 32"):
            store.codes(1, 0, start, stop)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 0}, {"shards": 10**9}, {"shards": True}, {"items": -1}, {"levels": [0, 0, 1]}, {"levels": [0, 1, 9]},
        {"levels": "012"}, {"levels": [[0], 1, 2]}, {"arrays": []}, {"arrays": [1, 2, 3]}, {"hops": [3, 5, 7]}, {"bins": None},
        {"arrays": [{"dtype": "|O", "axes": "QN", "rows": 1}] * 3}, {"format": "x"}, {"model_fingerprint": 5},
        {"sample_rate": 1e99}, {"items": 10**30}, {"items": 4},
    ],
)  # fmt: skip
def test_hostile_plans_are_refused(tiny, tmp_path, change):
    root = tiny.make(tmp_path / "s").root
    plan = json.loads((root / "plan.json").read_text())
    (root / "plan.json").write_text(json.dumps(plan | change))
    with pytest.raises(StoreError, match=r"plan\.json|details\.json"):
        CodeStore.open(root)


def mutate(path: Path, draw: random.Random) -> str:
    """Damage a file in one of the ways disks, networks and people do."""
    data = bytearray(path.read_bytes())
    how = draw.choice(["flip", "cut", "empty", "grow", "noise", "gone", "zeros"])
    if how == "flip" and data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[draw.randrange(max(1, len(data))) :]
    elif how == "empty":
        data.clear()
    elif how == "grow":
        data += draw.randbytes(draw.randrange(1, 200))
    elif how == "noise" and data:
        start = draw.randrange(len(data))
        data[start : start + 20] = draw.randbytes(20)
    elif how == "zeros" and data:
        start = draw.randrange(len(data))
        data[start : start + 50] = bytes(len(data[start : start + 50]))
    path.unlink()
    if how != "gone":
        path.write_bytes(data)
    return how


def read_everything(root: Path) -> list[np.ndarray]:
    store = CodeStore.open(root)
    found = []
    for i in range(len(store)):
        store.item(i)
        found += [store.codes(level, i) for level in store.levels]
    return found


def test_200_mutated_stores_give_clear_errors(tiny, tmp_path):
    origin = tiny.make(tmp_path / "origin", count=3).root
    intact = read_everything(origin)
    files = sorted(p.relative_to(origin) for p in origin.rglob("*") if p.is_file() and p.name != "LOCK")
    quiet = 0
    for seed in range(200):
        draw = random.Random(seed)
        root = tmp_path / f"m{seed}"
        shutil.copytree(origin, root)
        victim = draw.choice(files)
        how = mutate(root / victim, draw)
        try:
            found = read_everything(root)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000 and str(root) in str(error), (victim, how, error)
        else:
            # Only digests see a changed code or label that is still a legal one: `verify` (test_tools.py).
            quiet += 1
            assert len(found) == len(intact) and all(a.shape == b.shape for a, b in zip(found, intact, strict=True))
        shutil.rmtree(root)
    assert quiet < 100


def test_mutated_folders_of_other_programs_give_clear_errors(tiny, tmp_path):
    origin = tiny.make(tmp_path / "origin", count=2, compat=True).root / "level_2"
    files = sorted(p.relative_to(origin) for p in origin.rglob("*") if p.is_file())
    for seed in range(60):
        draw = random.Random(seed)
        root = tmp_path / f"m{seed}"
        shutil.copytree(origin, root)
        mutate(root / draw.choice(files), draw)
        try:
            data = open_pre_encoded(root)
            for i in range(len(data)):
                data.array(i)
                data.info(i)
                data.valid_frames(i)
        except UserError as error:
            assert len(str(error)) < 1000
        shutil.rmtree(root)
