"""Tars as training audio: the chunks of a folder of the same sounds, and sound that is changed as its keys say."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jukebox.audio.loudness import at_loudness, find_loudness, without_long_silence
from jukebox.data import wds
from jukebox.data.admission import admit
from jukebox.data.audio_dataset import AudioDataset
from jukebox.data.dataset_config import WebDataset, parse_config
from jukebox.data.loaders import batches
from jukebox.data.tar_dataset import TarDataset
from jukebox.errors import UsageError
from jukebox.parallel.comm import SoloComm

FACTS = Path(__file__).parents[1] / "fixtures" / "pre_encode_example" / "dataset_facts.json"
SR, RULES = 8000, {"on_bad_file": "skip", "max_bad": 0.5, "max_audio_sec": 0.0}
HOW = {"sr_hz": SR, "sample_length": 2000, "part": "all", "seed": 3}


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Four sounds, in a folder and, under the same names, in two tars beside it."""
    (tmp_path / "songs").mkdir()
    (tmp_path / "tars").mkdir()
    for n in range(4):
        noise = np.random.default_rng(n).normal(0, 0.05 * (n + 1), (5000 + 700 * n, 2))
        noise[1500:4000] *= n != 3  # a long silence in the last
        soundfile.write(tmp_path / "songs" / f"{n}.wav", noise, SR)
        with tarfile.open(tmp_path / "tars" / f"{n // 2}.tar", "a") as tar:
            tar.add(tmp_path / "songs" / f"{n}.wav", f"{n}.wav")
            (tmp_path / "n.json").write_text(json.dumps({"artist": f"singer {n}"}))
            tar.add(tmp_path / "n.json", f"{n}.json")
    return tmp_path


def described(sounds: Path, **keys: object) -> WebDataset:
    data = {"dataset_type": "wds", "datasets": [{"id": "x", "path": str(sounds / "tars")}], **keys}
    config = parse_config(data, "test")
    assert isinstance(config, WebDataset)
    return config


def tars(sounds: Path, channels: int = 2, more: dict | None = None, **keys: object) -> TarDataset:
    config = described(sounds, **keys)
    return TarDataset(config, wds.admit(config, SoloComm(), **RULES), channels=channels, **{**HOW, **(more or {})})


def test_tars_give_what_the_folder_gives(sounds):
    folder = admit(sounds / "songs", sounds / "known.json", SoloComm(), max_bad=0.5, workers=0)
    for shift in (False, True):
        plain, packed = AudioDataset(folder, **HOW, aug_shift=shift), tars(sounds, more={"aug_shift": shift})
        assert len(plain) == len(packed) == 10
        for i in range(len(plain)):
            one, other = plain.item(i, 5), packed.item(i, 5)
            np.testing.assert_array_equal(one.audio, other.audio)
            assert (
                one.offset_samples == other.offset_samples
                and other.file == f"{int(one.file[0]) // 2}.tar/{one.file[0]}"
            )
            assert other.song.artist == f"singer {one.file[0]}"


def test_batches_come_through_workers(sounds):
    alone, helped = (next(batches(tars(sounds), bs=3, workers=workers)) for workers in (0, 1))
    assert alone.audio.shape == (3, 2000, 2) and (alone.audio == helped.audio).all() and alone.files == helped.files


def test_volume_is_brought_near_the_target(sounds):
    found = tars(sounds, volume_norm=True, volume_norm_param=[-20, 1])
    levels = [find_loudness(found.item(i, draw).audio, SR) for i in (0, 5) for draw in range(4)]
    assert max(levels) - min(levels) > 0.2 and all(-21.01 < level < -18.99 for level in levels)
    np.testing.assert_array_equal(found.item(0, 1).audio, found.item(0, 1).audio)
    assert found.fingerprint() != tars(sounds).fingerprint()


def test_silence_is_removed_from_mono(sounds):
    found = tars(sounds, 1, {"aug_shift": True}, remove_silence=True, silence_threshold=[0.001, 0.05])
    assert len(found) == 4  # one window of each sample
    windows = [found.item(3, draw).audio for draw in range(20)]
    assert all(window.shape == (2000, 2) and (window[:, 0] == window[:, 1]).all() for window in windows)
    assert all((np.abs(window[:, 0]) < 0.001).sum() < 0.06 * SR for window in windows)
    assert len({float(window[0, 0]) for window in windows}) > 5
    for channels, more in ((2, {}), (1, {"split": "chunk"})):
        with pytest.raises(UsageError, match="needs mono"):
            tars(sounds, channels, more, remove_silence=True)


def test_the_recorded_rule_of_long_silences():
    fact = json.loads(FACTS.read_text())["remove_long_silence"]
    parts = [part.split("x") for part in fact["segments_in"].split(", ")]
    mono = np.concatenate([np.full(int(count), float(value), np.float32) for count, value in parts])
    draw = np.random.default_rng(0)
    for keep in (0.5, 0.1):
        out = without_long_silence(mono, fact["rate"], 0.01, keep, 0.25, draw)
        assert len(out) == fact[f"out_len_threshold_{keep}s_max_0.25s"]
        np.testing.assert_array_equal(out[out != 0], mono[mono != 0])


def test_what_would_clip_is_brought_below_full_scale_and_silence_stays():
    loud = np.random.default_rng(0).normal(0, 0.2, (SR, 2)).astype(np.float32)
    assert np.abs(at_loudness(loud, SR, 0.0)).max() == pytest.approx(0.95)
    still = np.full((SR, 2), 1e-4, np.float32)
    assert at_loudness(still, SR, -16.0) is still
