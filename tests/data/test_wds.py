"""WebDataset tars, in a folder and in a bucket: encoded as folders of files are, and read as latents."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jukebox.data import admission
from jukebox.data.dataset_config import parse_config
from jukebox.data.pre_encoded_dataset import PreEncodedDataset
from jukebox.data.wds import admit, samples
from jukebox.errors import DataError, StoreError
from jukebox.parallel.comm import SoloComm

RULES = {"on_bad_file": "skip", "max_bad": 0.5, "max_audio_sec": 0.0}


def put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def sound(length: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(length).normal(0, 0.1, length), 8000, format="WAV")
    return file.getvalue()


def latents(frames: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(2 * frames, dtype=np.float32).reshape(2, frames))
    return file.getvalue()


def audio_tars(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "b.tar", "w") as tar:
        put(tar, "x/song1.wav", sound(4000))
        put(tar, "x/song1.json", json.dumps({"text": "calm", "artist": "Ann", "padding_mask": [1]}).encode())
        put(tar, "alone.wav", sound(100))  # no .json
    with tarfile.open(folder / "a.tar", "w") as tar:
        put(tar, "song2.json", b"{}")
        put(tar, "song2.wav", sound(5000))
        put(tar, "bad.wav", b"nothing")
        put(tar, "bad.json", b"{}")
    return folder


def config(**values: object):
    entry = {"id": "x", **{key: values.pop(key) for key in ("path", "s3_path") if key in values}}
    return parse_config({"dataset_type": "wds", "datasets": [entry], **values}, "test")


def test_samples_are_listed_in_order_and_judged_as_files_are(tmp_path, caplog):
    audio_tars(tmp_path)
    found = admit(config(path=str(tmp_path)), SoloComm(), **RULES)
    assert [sample.relpath for sample, _ in found] == ["a.tar/song2", "b.tar/x/song1"]
    assert [entry.length_samples for _, entry in found] == [5000, 4000]
    assert found[1][0].info()["prompt"] == "calm" and "a.tar/bad" in caplog.text
    with found[0][0].unpacked("wav") as path:
        assert soundfile.info(path).frames == 5000
    with pytest.raises(DataError, match="on_bad_file=error"):
        admit(config(path=str(tmp_path)), SoloComm(), **{**RULES, "on_bad_file": "error"})


def test_tars_are_decoded_once_and_again_when_they_change(tmp_path, monkeypatch):
    tars = config(path=str(audio_tars(tmp_path / "t")))
    first = admit(tars, SoloComm(), **RULES, cache=tmp_path / "known.json")
    monkeypatch.setattr(admission, "examine", lambda candidate: pytest.fail(f"{candidate} was decoded again"))
    assert admit(tars, SoloComm(), **RULES, cache=tmp_path / "known.json") == first
    monkeypatch.undo()
    with tarfile.open(tmp_path / "t" / "a.tar", "w") as tar:
        put(tar, "song2.json", b"{}")
        put(tar, "song2.wav", sound(6000))
    again = admit(tars, SoloComm(), **RULES, cache=tmp_path / "known.json")
    assert [entry.length_samples for _, entry in again] == [6000, 4000]
    with pytest.raises(DataError, match="changed since it was listed"):
        first[0][0].read("wav")


def test_what_is_no_tar_or_holds_nothing_is_named(tmp_path):
    with pytest.raises(DataError, match="no folder of tars"):
        samples(config(path=str(tmp_path / "gone")), "audio")
    with pytest.raises(DataError, match=r"holds no \.tar"):
        samples(config(path=str(tmp_path)), "audio")
    (tmp_path / "x.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(DataError, match="cannot be read as a tar"):
        samples(config(path=str(tmp_path)), "audio")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        put(tar, "a.json", b"{}")
    with pytest.raises(DataError, match=r"none of 1 samples has a \.json and \.npy"):
        samples(config(path=str(tmp_path)), "npy")


def test_latents_are_cropped_to_every_valid_frame(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        put(tar, "a.npy", latents(10))
        put(tar, "a.json", json.dumps({"padding_mask": [1] * 7 + [0] * 3, "text": "hm"}).encode())
    whole = PreEncodedDataset(config(path=str(tmp_path), pre_encoded=True)).item(0)
    assert whole.latents.shape == (2, 10) and whole.mask.tolist() == [1] * 7 + [0] * 3 and whole.info["prompt"] == "hm"
    data = PreEncodedDataset(config(path=str(tmp_path), pre_encoded=True, latent_crop_length=4))
    starts = {int(data.item(0, draw).latents[0, 0]) for draw in range(60)}
    assert starts == {0, 1, 2, 3} and data.item(0).latents.shape == (2, 4)


def test_objects_in_an_array_are_never_loaded(tmp_path):
    file = io.BytesIO()
    np.save(file, np.array([[{}]], dtype=object), allow_pickle=True)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        put(tar, "a.npy", file.getvalue())
        put(tar, "a.json", b'{"padding_mask": [1]}')
    with pytest.raises(StoreError, match="Python objects"):
        PreEncodedDataset(config(path=str(tmp_path), pre_encoded=True)).item(0)


def test_tars_in_a_bucket_are_those_of_a_folder(tmp_path, bucket):
    import boto3

    folder = audio_tars(tmp_path / "t")
    for path in folder.iterdir():
        boto3.client("s3").upload_file(str(path), bucket, f"set/{path.name}")
    local = admit(config(path=str(folder)), SoloComm(), **RULES)
    remote = admit(config(s3_path=f"s3://{bucket}/set"), SoloComm(), **RULES)
    assert [sample.relpath for sample, _ in remote] == [sample.relpath for sample, _ in local]
    apart = {"digest": "", "mtime_ns": 0}
    assert [asdict(entry) | apart for _, entry in remote] == [asdict(entry) | apart for _, entry in local]
    assert remote[0][0].read("wav") == local[0][0].read("wav")
    with pytest.raises(DataError, match="s3://nobody/set: .*Credentials and address are found"):
        samples(config(s3_path="s3://nobody/set"), "audio")


def test_buckets_say_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DataError, match="pip install s3fs"):
        samples(config(s3_path="s3://b/x"), "audio")
