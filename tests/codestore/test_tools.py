"""verify, repair, usage, cut, join and decode."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from jukebox.codestore import layout, tools
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.layout import ItemFacts, Plan, Source
from jukebox.codestore.store import CodeStore
from jukebox.codestore.writer import StoreWriter
from jukebox.errors import LockedError, StoreError

ITEM = Path("level_1") / "0" / "0000000000001.npy"


def test_an_intact_store_has_no_faults(tiny, tmp_path):
    seen = []
    assert tools.verify(tiny.make(tmp_path / "s").root, lambda: seen.append(1)) == []
    assert len(seen) == 5


def test_d7_a_flipped_bit_is_named_and_the_item_made_again(tiny, tree, tmp_path):
    root = tiny.make(tmp_path / "s").root
    before = tree(root)
    data = bytearray((root / ITEM).read_bytes())
    data[-1] ^= 0
    data[-2] ^= 1
    (root / ITEM).write_bytes(data)
    CodeStore.open(root).codes(1, 2)  # a legal code: only the digest tells
    (fault,) = tools.verify(root)
    assert fault.item == 2 and "0000000000001.npy" in fault.text and "expected" in fault.text
    assert tools.repair(root, [fault]) == 1
    with pytest.raises(StoreError, match="unfinished, 4 of 5"):
        CodeStore.open(root)
    assert tools.verify(root) == []
    tiny.make(root)
    assert tree(root) == before


def test_a_store_in_use_is_not_repaired(tiny, tmp_path):
    root = tiny.make(tmp_path / "s").root
    with (
        StoreWriter.create_or_resume(root, tiny.GEOMETRY, "abc", tiny.sources(5)),
        pytest.raises(LockedError),
    ):
        tools.repair(root, [tools.Fault(0, "x")])


def test_every_damage_is_found_and_repaired_or_refused(tiny, tree, tmp_path):
    origin = tiny.make(tmp_path / "origin", count=3).root
    before = tree(origin)
    files = sorted(Path(name) for name in before)
    for seed in range(60):
        draw = random.Random(seed)
        root, victim = tmp_path / f"m{seed}", draw.choice(files)
        shutil.copytree(origin, root)
        data = bytearray((root / victim).read_bytes())
        if draw.random() < 0.5:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        else:
            del data[draw.randrange(len(data)) :]
        (root / victim).write_bytes(data)
        try:
            faults = tools.verify(root)
            if not faults:  # what is free to differ: paths, arguments and loading times
                assert victim.name in ("sources.jsonl", "details.json") or victim.suffix == ".json", victim
                continue
            tools.repair(root, faults)
            tiny.make(root, count=3)
        except StoreError as error:
            assert victim.name in ("plan.json", "sources.jsonl"), (victim, error)
        else:
            free = {str(victim)} if victim.name in ("plan.json", "sources.jsonl") else set()
            assert {k: v for k, v in tree(root).items() if k not in free} == {
                k: v for k, v in before.items() if k not in free
            }
        shutil.rmtree(root)


def test_usage_counts_true_codes_only(tmp_path):
    geometry = Geometry(8000, (8, 128), 8)
    with StoreWriter.create_or_resume(tmp_path / "s", geometry, "abc", [Source("a"), Source("b")]) as writer:
        for item, length in enumerate((128, 129)):
            fine = np.full(geometry.codes_for(0, length), 7)
            fine[: geometry.valid_codes(0, length)] = np.arange(geometry.valid_codes(0, length)) % 4
            writer.add(item, {0: fine, 1: np.zeros(geometry.codes_for(1, length), int)}, ItemFacts(length, length))
        store = writer.finish()
    (fine_usage,), (top_usage,) = tools.usage(store, 0), tools.usage(store, 1)
    assert fine_usage.counts.tolist() == [9, 8, 8, 8, 0, 0, 0, 0] and fine_usage.used == 4
    assert 3.9 < fine_usage.perplexity <= 4 and top_usage.perplexity == 1 and top_usage.entropy_bits == 0


def test_cut_ranges_know_their_place_in_the_song(tiny, tmp_path):
    store = tiny.make(tmp_path / "s")
    piece = tools.cut(tmp_path / "piece", store, [4, 2], 0.05, 0.17)  # 400 to 1360 samples: top codes 3 to 11
    assert len(piece) == 2 and piece.relpaths == ["a/song 4.wav", "a/song 2.wav"]
    for i, song in enumerate((4, 2)):
        item = piece.item(i)
        assert (item.offset_samples, item.length_samples, item.total_samples) == (384, 1024, tiny.length(song))
        assert item.meta["song"]["artist"] == "artist 0"
        for level, codes in tiny.codes(song).items():
            ratio = tiny.GEOMETRY.ratio(level, 2)
            np.testing.assert_array_equal(piece.codes(level, i), codes[3 * ratio : 11 * ratio])
    assert len(tools.cut(tmp_path / "piece", store, [4, 2], 0.05, 0.17)) == 2  # the same again: it is there
    with pytest.raises(StoreError, match="piece: holds another store already; name another folder"):
        tools.cut(tmp_path / "piece", store, [4, 2], 0.05, 0.1)
    end = tools.cut(tmp_path / "end", store, [0], 0.1)
    assert end.item(0).length_samples == 1000 - 768 and end.item(0).total_samples == 1000
    again = tools.cut(tmp_path / "again", piece, [0], 0.064)  # a cut of a cut
    assert again.item(0).offset_samples == 384 + 512 and again.item(0).length_samples == 512
    with pytest.raises(StoreError, match="0.125 s long; 0.2 s to 0.125 s is no part of it"):
        tools.cut(tmp_path / "none", store, [0], 0.2)


def test_joined_stores_hold_everything_and_refuse_what_does_not_fit(tiny, tmp_path):
    store = tiny.make(tmp_path / "s")
    parts = [tools.cut(tmp_path / str(i), store, items) for i, items in enumerate(([0, 1], [2, 3, 4]))]
    joined = tools.join(tmp_path / "joined", parts)
    assert joined.relpaths == store.relpaths and tools.verify(joined.root) == []
    for i in range(5):
        assert all(np.array_equal(joined.codes(level, i), store.codes(level, i)) for level in range(3))
        assert joined.item(i).meta["song"] == store.item(i).meta["song"]
    with pytest.raises(StoreError, match="song 0.wav. is in .* too"):
        tools.join(tmp_path / "twice", [parts[0], store])
    other = tiny.make(tmp_path / "other", fingerprint="xyz")
    with pytest.raises(StoreError, match="xyz.*abc"):
        tools.join(tmp_path / "mixed", [store, other])
    with pytest.raises(StoreError, match="compat"):
        tools.join(tmp_path / "wide", [store, tiny.make(tmp_path / "compat", compat=True)])


def test_the_best_of_several_stores(tiny, tmp_path):
    store = tiny.make(tmp_path / "s")
    piece = tools.cut(tmp_path / "piece", store, [1], 0.05)
    kept = tools.keep(tmp_path / "kept", [(store, 3), (piece, 0), (store, 0)])
    assert kept.relpaths == ["a/song 3.wav", "a/song 1.wav", "a/song 0.wav"] and tools.verify(kept.root) == []
    assert kept.item(1).offset_samples == 384
    np.testing.assert_array_equal(kept.codes(0, 1), piece.codes(0, 0))
    with pytest.raises(StoreError, match="no items are chosen"):
        tools.keep(tmp_path / "none", [])
    with pytest.raises(StoreError, match="is in .* too"):
        tools.keep(tmp_path / "twice", [(store, 3), (store, 3)])


class Ramp:
    """A codec whose audio tells where it is: sample t of a song is t."""

    geometry = Geometry(8000, (8, 32, 128), 64)
    fingerprint = "abc"

    def decode(self, codes, level, start=0, stop=None):
        hop = self.geometry.hops[level]
        stop = len(codes) if stop is None else stop
        assert 0 <= start < stop <= len(codes)
        return np.arange(start * hop, stop * hop, dtype=np.float32)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_decoded_ranges_are_exact_to_the_sample(tiny, tmp_path, level):
    store = tiny.make(tmp_path / "s")
    np.testing.assert_array_equal(tools.decode(store, 0, level, Ramp()), np.arange(1000))
    np.testing.assert_array_equal(tools.decode(store, 2, level, Ramp(), 0.05, 0.1), np.arange(400, 800))
    np.testing.assert_array_equal(tools.decode(store, 0, level, Ramp(), 0.1, 99.0), np.arange(800, 1000))
    wrong = Ramp()
    wrong.fingerprint = "xyz"
    with pytest.raises(StoreError, match="abc.*xyz"):
        tools.decode(store, 0, level, wrong)
    for start, end in ((0.125, None), (-1.0, None), (0.1, 0.1), (float("nan"), None), (0.0, float("inf"))):
        with pytest.raises(StoreError, match="no part of it"):
            tools.decode(store, 0, level, Ramp(), start, end)


def test_every_computed_key_is_known_as_ours():
    for compat in (False, True):
        plan = Plan(Geometry(8000, (8,), 4), "f", 1, 1, (0,), (layout.ArraySpec("<i2"),), compat=compat)
        meta = layout.item_metadata(plan, Source("a"), ItemFacts(80, 80), 0, 10, "x")
        assert set(meta) <= layout.OWN_KEYS and json.dumps(meta)
