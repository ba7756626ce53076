"""pre_encode end to end, in this process: complete, the same for any rank count, and every way to choose and cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests_encoding_nets import LENGTHS, make_song, net_of

from jukebox.audio import io
from jukebox.codestore.pre_encoded import open_pre_encoded
from jukebox.codestore.store import CodeStore
from jukebox.encoding.hps import EncodeHps
from jukebox.encoding.run import encode_all
from jukebox.errors import DataError, StoreError, UsageError
from jukebox.models.codec import VQVAECodec
from jukebox.parallel.comm import SoloComm

ABOUT = {"checkpoint": "run", "hps": {}}
Make = Callable[..., CodeStore]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stores of this file stand, so that they share one scan of the songs."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def make(folder: Path, songs: Path, tiny_codec: VQVAECodec, request: pytest.FixtureRequest) -> Make:
    """`make(**flags)`: a store of the songs, named after the test."""

    def run(name: str = "", codec: VQVAECodec = tiny_codec, **flags: Any) -> CodeStore:
        flags = {"audio_files_dir": str(songs), "num_workers": 0, **flags}
        if "dataset_config" in flags:
            flags["audio_files_dir"] = ""
        flags.setdefault("output_path", str(folder / (request.node.name.replace("/", "_") + name)))
        store = encode_all(EncodeHps(**flags), codec, ABOUT, SoloComm())
        assert store is not None
        return store

    return run


def mono(path: Path, codec: VQVAECodec) -> np.ndarray:
    return io.read(path, sr_hz=codec.geometry.sr_hz, channels=2).mean(axis=1)


def test_every_second_of_every_file_once(make, songs, tiny_codec):
    store = make()
    lengths = dict(zip(store.relpaths, store.lengths.tolist(), strict=True))
    expected = {("sub/" if name in "cd" else "") + f"{name}.wav": length for name, length in LENGTHS.items()}
    assert lengths == expected | {"g.flac": io.resampled_length(30_011, 11_025, 8000)}
    for i, relpath in enumerate(store.relpaths):
        codes = tiny_codec.encode(mono(songs / relpath, tiny_codec))
        for level in store.levels:
            np.testing.assert_array_equal(store.codes(level, i), codes[level])
            assert store.frames(level, i) == store.geometry.codes_for(level, int(store.lengths[i]))


def test_metadata_and_details_say_all(make):
    store = make(shards=2, batch_size=3)
    meta = store.meta(store.find("a.wav"))
    assert meta["song"] == {"artist": "Ann", "genre": "folk", "lyrics": "la la"}
    assert {"audio_channels", "duration", "start_time", "end_time", "seconds_total", "valid_frames"} <= set(meta)
    details = json.loads((store.root / "level_1" / "details.json").read_text())
    assert list(details)[:4] == ["model_config", "dataset_config", "sample_size", "args"]
    assert list(details["args"])[:3] == ["model_config", "ckpt_path", "model_half"]
    assert details["model"] == ABOUT and details["hop"] == 8 and details["versions"]["torch"]
    assert {"digests", "model_fingerprint", "bins", "sample_rate", "shards"} <= set(details)


def test_the_folder_does_not_depend_on_workers_batch_or_pieces(make, tree, tiny_hps):
    one = make("1", shards=3)
    other = make("2", shards=3, num_workers=3, batch_size=7, codec=VQVAECodec(net_of(tiny_hps), 8000, 2048))
    assert tree(one.root) == tree(other.root)


def test_only_some_levels(make):
    store = make(keep_levels=(2, 0))
    assert store.levels == (0, 2) and store.codes(2, 1).dtype == np.int64
    with pytest.raises(UsageError, match="levels 0 to 2"):
        make("x", keep_levels=(3,))


def test_compat_writes_what_other_readers_expect(make):
    store = make(compat=True)
    data = open_pre_encoded(store.root / "level_1")
    for i in range(len(data)):
        array, info = data.array(i), data.info(i)
        assert array.dtype == np.int64 and len(info["padding_mask"]) == array.shape[1]
        assert sum(info["padding_mask"]) == -(-info["length_samples"] // 8)


def test_crop_first_takes_one_window_per_file(make, songs, tiny_codec):
    store = make(crop="first", sample_size=4096)
    assert len(store) == 7 and max(store.lengths) == 4096
    i = store.find("sub/c.wav")
    audio = mono(songs / "sub" / "c.wav", tiny_codec)[:4096]
    np.testing.assert_array_equal(store.codes(1, i), tiny_codec.encode(audio)[1])
    assert store.item(i).total_samples == 70_001 and store.meta(i)["timestamps"] == [0.0, 4096 / 70_001]


def test_crop_random_is_drawn_from_the_seed(make, songs, tiny_codec):
    store, again, other = (
        make(str(i), crop="random", sample_size=4096, encode_seed=seed) for i, seed in enumerate((1, 1, 2))
    )
    offsets = [[one.item(i).offset_samples for i in range(len(one))] for one in (store, again, other)]
    assert offsets[0] == offsets[1] != offsets[2]
    i = store.find("sub/c.wav")
    start = offsets[0][i]
    assert start > 0
    audio = mono(songs / "sub" / "c.wav", tiny_codec)[start : start + 4096]
    np.testing.assert_array_equal(store.codes(0, i), tiny_codec.encode(audio)[0])


def test_limit_batches_is_honoured_and_shuffle_keeps_every_item(make):
    assert len(make("limit", limit_batches=2, batch_size=2)) == 4
    plain, shuffled = make("plain"), make("shuffled", shuffle=True)
    assert sorted(plain.relpaths) == sorted(shuffled.relpaths) and plain.relpaths != shuffled.relpaths


def test_shifts_are_variants_of_each_song(make, songs, tiny_codec):
    store = make(shifts=4)
    variants = [i for i, relpath in enumerate(store.relpaths) if relpath == "a.wav"]
    audio = mono(songs / "a.wav", tiny_codec)
    for k, i in enumerate(variants):
        item = store.item(i)
        assert (item.offset_samples, item.length_samples, item.total_samples) == (8 * k, 12_345 - 8 * k, 12_345)
        np.testing.assert_array_equal(store.codes(2, i), tiny_codec.encode(audio[8 * k :])[2])
    assert len(variants) == 4 and store.relpaths.count("sub/d.wav") == 1  # one sample has no variants


def test_half_precision_is_another_model_of_the_same_audio(make, tiny_hps):
    full = make("full")
    half = make("half", codec=VQVAECodec(net_of(tiny_hps), 8000, half=True))
    same = np.mean([np.mean(full.codes(0, i) == half.codes(0, i)) for i in range(len(full))])
    assert 0.8 < same <= 1.0 and half.fingerprint == f"{full.fingerprint}-fp16"
    CodeStore.open(half.root, expect_fingerprint=full.fingerprint)  # decoding and training know it as the same


def test_dataset_config_with_a_metadata_module(make, songs, tmp_path):
    module = tmp_path / "more.py"
    module.write_text(
        "def get_custom_metadata(info, audio):\n"
        "    if info['relpath'].startswith('sub'):\n        return {'__reject__': True}\n"
        "    return {'prompt': f\"{info['seconds_total']} s, {audio.shape[-1]} samples\", 'genre': 'polka'}\n"
    )
    entry = {"id": "x", "path": str(songs), "custom_metadata_module": str(module)}
    config = tmp_path / "d.json"
    config.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [entry]}))
    store = make(dataset_config=str(config))
    assert not [relpath for relpath in store.relpaths if relpath.startswith("sub")]
    meta = store.meta(store.find("a.wav"))
    assert meta["prompt"] == "2 s, 12345 samples" and meta["genre"] == "polka"
    assert meta["song"] == {"artist": "Ann", "genre": "polka", "lyrics": "la la"}  # what a prior learns it by
    rows = [json.loads(line) for line in (store.root / "index.jsonl").read_text().splitlines()]
    assert sum("rejected by its custom" in row.get("skipped", "") for row in rows) == 2


def test_a_data_set_of_codes_is_not_encoded_again(make, tmp_path):
    config = tmp_path / "d.json"
    config.write_text(json.dumps({"dataset_type": "pre_encoded", "datasets": [{"id": "x", "path": "p"}]}))
    with pytest.raises(UsageError, match="what pre_encode writes"):
        make(dataset_config=str(config))


# ---- rows of design/reliability.md -----------------------------------------------------------------------------------


def test_a1_bad_files_are_listed_with_a_reason_and_never_encoded(make, tmp_path, caplog):
    music = tmp_path / "music"
    make_song(music / "good.wav", 5000)
    (music / "zero.flac").write_bytes(b"")
    (music / "page.mp3").write_text("<!doctype html>")
    data = make_song(music / "cut.wav", 20_000).read_bytes()
    (music / "cut.wav").write_bytes(data[: len(data) // 2])
    shutil.copy(make_song(tmp_path / "right.wav", 3000), music / "wrong.mp3")  # the content decides
    with pytest.raises(DataError, match="3 of 5 files cannot be used, more than --max_bad"):
        make("strict", audio_files_dir=str(music))
    with pytest.raises(DataError, match="--on_bad_file=error"):
        make("error", audio_files_dir=str(music), on_bad_file="error")
    store = make("skip", audio_files_dir=str(music), max_bad=1.0)
    assert store.relpaths == ["good.wav", "wrong.mp3"]
    for words in ("zero.flac: empty file", "page.mp3: not a sound file", "cut.wav: "):
        assert words in caplog.text


def test_a6_silence_is_kept_and_said(make, tiny_codec, tmp_path, caplog):
    import soundfile

    make_song(tmp_path / "good.wav", 5000)
    soundfile.write(tmp_path / "still.wav", np.zeros(4000), 8000)
    store = make(audio_files_dir=str(tmp_path), on_bad_file="error")
    assert store.relpaths == ["good.wav", "still.wav"] and store.lengths.tolist() == [5000, 4000]
    np.testing.assert_array_equal(store.codes(0, 1), tiny_codec.encode(np.zeros(4000, np.float32))[0])
    assert "1 of 2 files are silent, and taken as they are.\n  still.wav: silent" in caplog.text


def test_a8_names_of_every_sort(make, tmp_path):
    names = ["🎵 ä.wav", "-dash.wav", "quote\"'.wav", "line\nbreak.wav", "<script>.wav", "עברית.wav"]
    for name in names:
        make_song(tmp_path / name, 900)
    store = make(audio_files_dir=str(tmp_path))
    assert sorted(store.relpaths) == sorted(names)
    assert store.meta(store.find(names[0]))["relpath"] == names[0]


def test_a12_a_file_changed_since_is_refused_by_name(make, tmp_path):
    music = tmp_path / "music"
    for name in ("a.wav", "b.wav"):
        make_song(music / name, 5000)
    store = make(audio_files_dir=str(music))
    (store.root / "level_0" / "details.json").unlink()
    make_song(music / "b.wav", 6000)
    with pytest.raises(StoreError, match=r"b\.wav changed since \(size"):
        make(audio_files_dir=str(music))
    make_song(music / "b.wav", 5000)
    make_song(music / "c.wav", 5000)
    with pytest.raises(StoreError, match=r"c\.wav was added since"):
        make(audio_files_dir=str(music))


def test_a12_a_file_that_changes_while_its_store_is_made(make, tmp_path, monkeypatch, caplog):
    """Between the scan and its turn: left out with the reason, or the end, as --on_bad_file says."""
    from jukebox.encoding import run

    for name in ("a.wav", "b.wav", "c.wav"):
        make_song(tmp_path / name, 5000)
    plain = run.encode_jobs

    def late(*arguments: Any) -> Any:
        make_song(tmp_path / "b.wav", 6000)
        yield from plain(*arguments)

    monkeypatch.setattr(run, "encode_jobs", late)
    with pytest.raises(DataError, match=r"b\.wav: changed since the scan"):
        make("error", audio_files_dir=str(tmp_path), on_bad_file="error")
    make_song(tmp_path / "b.wav", 5000)
    store = make("skip", audio_files_dir=str(tmp_path))
    assert store.relpaths == ["a.wav", "c.wav"] and "b.wav: changed since the scan" in caplog.text


def test_a13_an_empty_folder_says_what_is_accepted(make, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"(?s)no sound file.*1 \.txt.*flac"):
        make(audio_files_dir=str(tmp_path))


def test_s9_names_inside_a_tar_lead_nowhere(make, songs, tmp_path):
    """They name items; where items stand is computed from their numbers alone."""
    import tarfile

    names = ["../../evil", "/etc/evil", "a/./b/../../../evil", "~/evil"]
    (tmp_path / "t").mkdir()
    (tmp_path / "x.json").write_text("{}")
    with tarfile.open(tmp_path / "t" / "x.tar", "w") as tar:
        for name in names:
            tar.add(songs / "a.wav", filter=lambda member, name=name: member.replace(name=f"{name}.wav", deep=False))
            tar.add(
                tmp_path / "x.json", filter=lambda member, name=name: member.replace(name=f"{name}.json", deep=False)
            )
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    config = tmp_path / "d.json"
    config.write_text(json.dumps({"dataset_type": "wds", "datasets": [{"id": "x", "path": str(tmp_path / "t")}]}))
    before = sorted(tmp_path.rglob("*"))
    store = make(dataset_config=str(config))
    assert sorted(store.relpaths) == sorted(f"x.tar/{name}" for name in names)
    assert sorted(tmp_path.rglob("*")) == before and not Path("/etc/evil.wav").exists()
    inside = {path.resolve() for path in store.root.rglob("*")}
    assert all(path.is_relative_to(store.root.resolve()) for path in inside)
    assert not [path for path in store.root.parent.glob("*evil*")]


def test_s6_s7_another_model_cannot_fill_the_same_store(make, tiny_hps):
    store = make("s")
    (store.root / "level_0" / "details.json").unlink()
    with pytest.raises(StoreError, match=r"(?s)was made by model.*--output-path.*--restore_vqvae"):
        make("s", codec=VQVAECodec(net_of(tiny_hps, seed=1), 8000))
    with pytest.raises(StoreError, match="was made at 8000 Hz"):
        make("s", codec=VQVAECodec(net_of(tiny_hps), 11025))
    with pytest.raises(StoreError, match="begun with 1 shards"):
        make("s", shards=2)


def test_a_wrong_place_is_named_before_anything_is_scanned(make, tmp_path, monkeypatch):
    from jukebox.encoding import sources

    monkeypatch.setattr(sources, "find", lambda *_: pytest.fail("it was scanned"))
    (tmp_path / "holiday.jpg").touch()
    for place, reason in ((tmp_path, "holiday.jpg"), (tmp_path / "holiday.jpg", "is a file, not a folder")):
        with pytest.raises(StoreError, match=reason):
            make(output_path=str(place))


def test_s11_what_is_too_long_is_refused_before_it_is_decoded(make, tmp_path, caplog):
    make_song(tmp_path / "long.wav", 50_000)
    make_song(tmp_path / "short.wav", 5000)
    store = make(audio_files_dir=str(tmp_path), max_audio_sec=2.0, max_bad=1.0)
    assert store.relpaths == ["short.wav"] and "longer than 2 s" in caplog.text


def test_tars_are_encoded_as_files_are(make, songs, tiny_codec, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(songs / "a.wav", "one.wav")
        (tmp_path / "one.json").write_text(json.dumps({"text": "calm", "artist": "Ann", "padding_mask": [0]}))
        tar.add(tmp_path / "one.json", "one.json")
    config = tmp_path / "d.json"
    config.write_text(json.dumps({"dataset_type": "wds", "datasets": [{"id": "x", "path": str(tmp_path)}]}))
    store = make(dataset_config=str(config))
    meta = store.meta(0)
    assert store.relpaths == ["x.tar/one"] and meta["prompt"] == "calm" and meta["song"]["artist"] == "Ann"
    assert "padding_mask" not in meta and "audio" not in meta
    np.testing.assert_array_equal(store.codes(0, 0), tiny_codec.encode(mono(songs / "a.wav", tiny_codec))[0])


def test_tars_in_a_bucket_make_the_store_that_the_folder_makes(make, songs, tmp_path, bucket, tree, monkeypatch):
    """Type s3 of the published example, against a real server: the same codes, only the path says where they are from."""
    import tarfile

    import boto3

    from jukebox.data import wds

    admit = wds.admit  # workers that other tests started do not know of this server
    monkeypatch.setattr(wds, "admit", lambda config, comm, **how: admit(config, comm, **{**how, "workers": 0}))
    (tmp_path / "t").mkdir()
    with tarfile.open(tmp_path / "t" / "x.tar", "w") as tar:
        tar.add(songs / "a.wav", "one.wav")
        (tmp_path / "one.json").write_text('{"text": "calm"}')
        tar.add(tmp_path / "one.json", "one.json")
    boto3.client("s3").upload_file(str(tmp_path / "t" / "x.tar"), bucket, "set/x.tar")
    stores = []
    for kind, place in (("wds", {"path": str(tmp_path / "t")}), ("s3", {"s3_path": f"s3://{bucket}/set"})):
        config = tmp_path / f"{kind}.json"
        config.write_text(json.dumps({"dataset_type": kind, "datasets": [{"id": "x", **place}]}))
        stores.append(make(kind, dataset_config=str(config)))
    local, remote = (tree(store.root) for store in stores)
    assert {name: data for name, data in local.items() if name.endswith(".npy")} == {
        name: data for name, data in remote.items() if name.endswith(".npy")
    }
    assert stores[1].meta(0)["path"] == f"s3://{bucket}/set/x.tar/one" and stores[1].meta(0)["prompt"] == "calm"


def test_variants_train_and_only_the_unshifted_are_held_out(make):
    from jukebox.data.code_dataset import CodeDataset

    plain, shifted = make("plain"), make("shifted", shifts=4)
    one, other = (CodeDataset(store, 0, 256, part="test", train_test_split=0.5) for store in (plain, shifted))
    assert [item.file for item in map(one.item, range(len(one)))] == [
        item.file for item in map(other.item, range(len(other)))
    ]
    for i in range(len(one)):
        np.testing.assert_array_equal(one.item(i).codes, other.item(i).codes)
    train = CodeDataset(shifted, 0, 256, part="train", train_test_split=0.5)
    assert {train.item(i).offset_samples % 32 for i in range(len(train))} == {0, 8, 16, 24}
    assert not {train.item(i).file for i in range(len(train))} & {one.item(i).file for i in range(len(one))}
