"""Writing, reading and taking up a store; rows of design/reliability.md are named in the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jukebox.codestore import index
from jukebox.codestore.arrays import ArraySpec
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.layout import ItemFacts, Plan, Source, padding_mask
from jukebox.codestore.pre_encoded import open_pre_encoded
from jukebox.codestore.store import CodeStore
from jukebox.codestore.writer import StoreWriter
from jukebox.errors import LockedError, StoreError

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "pre_encode_example"


def read_as_the_other_program_does(root: Path, extension: str = "npy") -> list[tuple[np.ndarray, dict]]:
    """A reader written from spec/autoencoders.md 2.2 alone: scan, numpy.load, the .json beside it."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.endswith("." + extension):
                path = os.path.join(folder, name)
                with open(path.replace("." + extension, ".json")) as file:
                    info = json.load(file)
                last = max(i for i, value in enumerate(info["padding_mask"]) if value == 1)
                assert info["seconds_total"] >= 0 and last >= 0
                found.append((np.load(path), info))
    return found


def test_what_goes_in_comes_out(tiny, tmp_path):
    store = tiny.make(tmp_path / "s")
    assert len(store) == 5 and store.levels == (0, 1, 2) and store.fingerprint == "abc"
    for i in range(5):
        item = store.item(i)
        assert (item.length_samples, item.relpath) == (tiny.length(i), f"a/song {i}.wav")
        assert item.meta["song"]["artist"] == f"artist {i % 2}"
        for level, codes in tiny.codes(i).items():
            np.testing.assert_array_equal(store.codes(level, i), codes)
            np.testing.assert_array_equal(store.codes(level, i, 3, 7), codes[3:7])
            assert store.codes(level, i).dtype == np.int64 and store.frames(level, i) == len(codes)
    assert store.codes(0, 0, 4, 4).shape == (0,)


def test_every_level_is_a_data_set_of_its_own_for_another_reader(tiny, tmp_path):
    tiny.make(tmp_path / "s", compat=True)
    for level in range(3):
        items = read_as_the_other_program_does(tmp_path / "s" / f"level_{level}")
        assert len(items) == 5
        for array, info in items:
            song = int(info["relpath"].split()[1].split(".")[0])
            np.testing.assert_array_equal(array[0], tiny.codes(song)[level])
            assert array.shape == (1, len(info["padding_mask"])) and array.dtype == np.int64
            assert sum(info["padding_mask"]) == -(-tiny.length(song) // tiny.GEOMETRY.hops[level])


def test_keys_of_metadata_and_details(tiny, tmp_path):
    tiny.make(tmp_path / "s")
    path = tmp_path / "s" / "level_1"
    info = json.loads((path / "1" / "0010000000000.json").read_text())
    assert list(info)[:12] == [
        "path", "relpath", "timestamps", "seconds_start", "seconds_total", "valid_frames", "sample_rate", "load_time",
        "audio_channels", "duration", "start_time", "end_time",
    ]  # fmt: skip
    assert info["timestamps"] == [0.0, 1.0] and info["duration"] == info["end_time"] == 1333 / 8000
    assert info["valid_frames"] == 42 and info["length_samples"] == 1333
    assert np.load(path / "1" / "0010000000000.npy").dtype == np.int16
    details = json.loads((path / "details.json").read_text())
    assert list(details)[:2] == ["model_config", "args"]
    assert details["model_fingerprint"] == "abc" and details["hop"] == 32 and details["bins"] == 64


def test_ids_follow_from_the_item_number_alone():
    plan = Plan(Geometry(8000, (8,), 64), "f", 3, 100_000, (0,), (ArraySpec("<i2"),))
    assert [plan.item_id(item) for item in (0, 1, 2, 3)] == [
        "0000000000000", "0010000000000", "0020000000000", "0000000000001",
    ]  # fmt: skip
    assert plan.item_id(3 * 10_000 + 1) == "0010000010000"
    assert all(plan.item_number(plan.item_id(item)) == item for item in (0, 1, 59, 99_999))
    for other in ("", "../x", "0030000000000", "0000000099999", "000000000000", "0" * 30, "٠" * 13):
        assert plan.item_number(other) is None


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_folder_is_the_same_for_any_number_of_ranks(tiny, tree, tmp_path, size):
    tiny.make(tmp_path / "one", count=7, shards=3)
    with StoreWriter.create_or_resume(tmp_path / "s", tiny.GEOMETRY, "abc", tiny.sources(7), shards=3) as writer:
        for rank in reversed(range(size)):
            tiny.fill(writer if rank == 0 else StoreWriter.attach(tmp_path / "s"), rank, size)
        writer.finish({"model_config": "m.json", "args": {"x": 1}})
    assert tree(tmp_path / "s") == tree(tmp_path / "one")


def test_a_store_without_details_says_that_it_is_unfinished(tiny, tmp_path):
    with StoreWriter.create_or_resume(tmp_path / "s", tiny.GEOMETRY, "abc", tiny.sources(3)) as writer:
        writer.add(0, tiny.codes(0), ItemFacts(1000, 1000))
        with pytest.raises(StoreError, match="2 of 3 items are not there"):
            writer.finish()
    with pytest.raises(StoreError, match="unfinished, 1 of 3.*same pre_encode command"):
        CodeStore.open(tmp_path / "s")
    with pytest.raises(StoreError, match="unfinished"):
        open_pre_encoded(tmp_path / "s" / "level_0")
    partial = CodeStore.open(tmp_path / "s", unfinished=True)
    assert len(partial) == 1 and partial.relpaths == ["a/song 0.wav"]
    np.testing.assert_array_equal(partial.codes(2, 0), tiny.codes(0)[2])


def test_skipped_sources_are_recorded_and_leave_the_numbering_alone(tiny, tmp_path):
    with StoreWriter.create_or_resume(tmp_path / "s", tiny.GEOMETRY, "abc", tiny.sources(3)) as writer:
        writer.skip(1, "no audio frames")
        tiny.fill(writer)
        store = writer.finish()
    assert len(store) == 2 and store.relpaths == ["a/song 0.wav", "a/song 2.wav"]
    np.testing.assert_array_equal(store.codes(0, 1), tiny.codes(2)[0])
    assert store.find("a/song 2.wav") == store.find("1") == store.find("0000000000002") == 1
    with pytest.raises(StoreError, match="has no item"):
        store.find("a/song 1.wav")


def test_only_some_levels_can_be_kept(tiny, tmp_path):
    with StoreWriter.create_or_resume(tmp_path / "s", tiny.GEOMETRY, "abc", tiny.sources(1), levels=(1, 2)) as writer:
        writer.add(0, {level: tiny.codes(0)[level] for level in (1, 2)}, ItemFacts(1000, 1000))
        store = writer.finish()
    np.testing.assert_array_equal(store.codes(1, 0), tiny.codes(0)[1])
    with pytest.raises(StoreError, match="level 0 is not in this store, only 1, 2"):
        store.codes(0, 0)
    with pytest.raises(StoreError, match="level 0 is not in this store"):
        CodeStore.open(tmp_path / "s", levels=[0])


@pytest.mark.parametrize(
    ("dtype", "axes", "rows", "bins"), [("<f4", "DN", 8, 0), ("<i8", "QN", 3, 16), ("<i8", "NQ", 4, 16)]
)
def test_windows_of_a_codec_without_levels(tmp_path, dtype, axes, rows, bins):
    spec, geometry = ArraySpec(dtype, axes, rows), Geometry(8000, (8,), bins)
    draw = np.random.default_rng(0)
    values = (draw.integers(0, 16, spec.shape(256)) if bins else draw.normal(size=spec.shape(256))).astype(dtype)
    windows = [Source("f.wav", "f.wav", 1, "d", start) for start in (0, 2048)]
    with StoreWriter.create_or_resume(
        tmp_path / "s", geometry, "abc", windows, arrays=[spec], window_samples=2048, flat=True, compat=True
    ) as writer:
        writer.add(0, {0: values}, ItemFacts(2048, 3001))
        writer.add(1, {0: values}, ItemFacts(953, 3001))
        store = writer.finish()
    np.testing.assert_array_equal(store.array(0, 1), values)
    window = values[5:9] if axes == "NQ" else values[:, 5:9]
    np.testing.assert_array_equal(store.array(0, 1, 5, 9), window)
    item = store.item(1)
    assert (item.offset_samples, item.length_samples, item.total_samples) == (2048, 953, 3001)
    assert sum(item.meta["padding_mask"]) == 120 and len(item.meta["padding_mask"]) == 256
    assert item.meta["timestamps"] == [2048 / 3001, 1.0] and item.meta["seconds_total"] == 1
    again = open_pre_encoded(tmp_path / "s")
    np.testing.assert_array_equal(again.array(1, 5, 9), window)
    assert again.frames(1) == 256 and again.valid_frames(1) == 120
    for array, _ in read_as_the_other_program_does(tmp_path / "s"):
        assert array.dtype == dtype and np.array_equal(array, values)


def test_padding_masks_equal_the_recorded_ones():
    for row in json.loads((EXAMPLE / "dataset_facts.json").read_text())["mask_interpolation"]["rows"]:
        mask = padding_mask(row["sample_size"], row["valid_samples"], row["latent_length"])
        assert (len(mask), sum(mask)) == (row["latent_length"], row["mask_sum"])


@pytest.mark.parametrize(
    ("kind", "dtype", "rows"),
    [("continuous", "float32", 8), ("continuous_half", "float16", 8), ("discrete", "int64", 3)],
)
def test_the_other_programs_folders_are_read(kind, dtype, rows):
    root = EXAMPLE / f"encoded_{kind}"
    ours, theirs = open_pre_encoded(root), read_as_the_other_program_does(root)
    assert len(ours) == len(theirs) == 7 and ours.details is not None and "args" in ours.details
    by_path = {info["relpath"]: array for array, info in theirs}
    for i in range(7):
        info = ours.info(i)
        assert ours.array(i).dtype == dtype and ours.array(i).shape == (rows, 256)
        np.testing.assert_array_equal(ours.array(i), by_path[info["relpath"]])
        assert ours.valid_frames(i) == sum(info["padding_mask"])


def test_fortran_order_of_other_programs_is_read(tmp_path):
    values = np.asfortranarray(np.arange(12, dtype=np.int32).reshape(3, 4))
    np.save(tmp_path / "a.npy", values)
    data = open_pre_encoded(tmp_path)
    np.testing.assert_array_equal(data.array(0), values)
    np.testing.assert_array_equal(data.array(0, 1, 3), values[:, 1:3])
    np.testing.assert_array_equal(open_pre_encoded(tmp_path, time_axis=0).array(0, 1, 2), values[1:2])


def test_file_lists_are_followed_and_s9_cannot_leave_the_folder(tiny, tmp_path):
    level = tiny.make(tmp_path / "s").root / "level_0"
    (level / "filelist.txt").write_text("0/0000000000001.npy\n\n")
    assert open_pre_encoded(level).info(0)["relpath"] == "a/song 2.wav"
    for hostile in ("../../../etc/passwd", "/etc/passwd", "0/../../plan.json", "~/x.npy"):
        (level / "filelist.txt").write_text(hostile)
        with pytest.raises(StoreError, match="plain"):
            open_pre_encoded(level)


def test_s12_a_second_writer_is_refused(tiny, tmp_path):
    with (
        StoreWriter.create_or_resume(tmp_path / "s", tiny.GEOMETRY, "abc", tiny.sources(1)),
        pytest.raises(LockedError, match=str(os.getpid())),
    ):
        StoreWriter.create_or_resume(tmp_path / "s", tiny.GEOMETRY, "abc", tiny.sources(1))


def test_s6_s7_other_models_and_rates_are_refused_with_both_sides_and_three_ways_out(tiny, tmp_path):
    store = tiny.make(tmp_path / "s")
    faster = Geometry(16000, (8, 32, 128), 64)
    for more in ({"expect_fingerprint": "xyz"}, {"expect_geometry": faster}):
        with pytest.raises(StoreError) as caught:
            CodeStore.open(store.root, **more)
        text = str(caught.value)
        assert ("abc" in text and "xyz" in text) or ("8000" in text and "16000" in text)
        assert all(way in text for way in ("--output-path", "--restore_vqvae", "--codes"))
    for geometry, fingerprint in ((tiny.GEOMETRY, "xyz"), (faster, "abc")):
        with pytest.raises(StoreError, match="three|--restore_vqvae"):
            StoreWriter.create_or_resume(store.root, geometry, fingerprint, tiny.sources(5))
    plan = json.loads((store.root / "plan.json").read_text())
    (store.root / "plan.json").write_text(json.dumps(plan | {"version": 99}))
    with pytest.raises(StoreError, match="version 99.*reads 1"):
        CodeStore.open(store.root)


def test_changed_sources_and_flags_are_refused_on_resuming(tiny, tmp_path):
    tiny.make(tmp_path / "s", count=2)

    def resume(sources, **more):
        StoreWriter.create_or_resume(tmp_path / "s", tiny.GEOMETRY, "abc", sources, **more).close()

    first, second = tiny.sources(2)
    with pytest.raises(StoreError, match="song 1.wav changed since .size 101 to 7"):
        resume([first, Source(second.relpath, second.path, 7, second.digest)])
    with pytest.raises(StoreError, match="other content"):
        resume([first, Source(second.relpath, second.path, 101, "new")])
    with pytest.raises(StoreError, match="added"):
        resume([Source("a/a.wav"), first, second])
    with pytest.raises(StoreError, match="song 1.wav was removed since"):
        resume([first])
    with pytest.raises(StoreError, match="begun with 2 shards, not 5"):
        resume([first, second], shards=5)
    with pytest.raises(StoreError, match="compat False, now True|arrays"):
        resume([first, second], compat=True)
    resume([first, second], default_shards=8)
    resume([Source(s.relpath, "/elsewhere/" + s.relpath, s.size_bytes, s.digest) for s in (first, second)])


def test_a_folder_with_other_things_is_left_alone(tiny, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match="holiday.jpg"):
        StoreWriter.create_or_resume(tmp_path, tiny.GEOMETRY, "abc", tiny.sources(1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda codes: codes | {0: codes[0][:-1]}, "1000 samples are 128 codes, not 127"),
        (lambda codes: codes | {1: codes[1] + 60}, "expected 0 to 63"),
        (lambda codes: codes | {1: codes[1] - 64}, "holds codes from -"),
        (lambda codes: codes | {2: codes[2].astype(np.float32)}, "float32"),
        (lambda codes: codes | {2: codes[2].reshape(2, 4)}, "shape"),
        (lambda codes: {0: codes[0]}, "levels"),
    ],
)
def test_codes_that_do_not_fit_are_never_written(tiny, tmp_path, change, reason):
    with StoreWriter.create_or_resume(tmp_path / "s", tiny.GEOMETRY, "abc", tiny.sources(1)) as writer:
        with pytest.raises(StoreError, match=reason):
            writer.add(0, change(tiny.codes(0)), ItemFacts(1000, 1000))
        assert writer.pending() == [0]
        assert not list((tmp_path / "s").rglob("*.npy"))


def test_metadata_that_is_no_json_names_the_song(tiny, tmp_path):
    with (
        StoreWriter.create_or_resume(tmp_path / "s", tiny.GEOMETRY, "abc", tiny.sources(1)) as writer,
        pytest.raises(StoreError, match="song 0.wav.*JSON"),
    ):
        writer.add(0, tiny.codes(0), ItemFacts(1000, 1000, extra={"x": np.zeros(2)}))


def test_the_second_opening_uses_the_cache_until_something_changes(tiny, tmp_path, monkeypatch):
    store = tiny.make(tmp_path / "s")
    cache = store.root / index.CACHE
    assert cache.exists()
    monkeypatch.setattr(index, "read_rows", lambda *_: pytest.fail("the index was parsed again"))
    again = CodeStore.open(store.root)
    assert again.relpaths == store.relpaths and again.lengths.tolist() == store.lengths.tolist()
    np.testing.assert_array_equal(again.codes(1, 4), tiny.codes(4)[1])
    monkeypatch.undo()
    for damage in (b"", b"{}\n", cache.read_bytes()[:-5], b"[" * 10_000):
        cache.write_bytes(damage)
        assert len(CodeStore.open(store.root)) == 5
    (store.root / "level_1" / "0" / "0000000000001.npy").unlink()
    with pytest.raises(StoreError, match="0000000000001.npy.*missing"):
        CodeStore.open(store.root)


def test_a_read_only_store_opens_without_a_cache(tiny, tmp_path, monkeypatch):
    store = tiny.make(tmp_path / "s")
    (store.root / index.CACHE).unlink()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(index.files, "publish_bytes", refuse)
    assert len(CodeStore.open(store.root)) == 5 and not (store.root / index.CACHE).exists()
