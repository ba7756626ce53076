"""Rows A1 to A10 and A14 of design/reliability.md, seen through pre_encode.py: what bad files do to a store.

One run of the program over one folder of everything that people and disks put there answers nearly all of them.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from tests_encoding_nets import make_song

from jukebox.audio import io
from jukebox.codestore.store import CodeStore
from jukebox.encoding.hps import EncodeHps
from jukebox.encoding.run import encode_all
from jukebox.models.codec import VQVAECodec
from jukebox.parallel.comm import SoloComm

SR = 8000  # of the codec, too
FORMATS = ("wav", "flac", "mp3", "m4a", "ogg", "opus", "aac")
ODD_NAMES = [
    "-rf.wav", "a'b\"c.wav", "line\nfeed.wav", "🎵 мир שלום.wav", "<script>alert(1)</script>.wav".replace("/", "⁄"),
    "é.wav", "e\u0301.wav", "x" * 250 + ".wav", os.fsdecode(b"caf\xe9.wav"), "\x1b[31mred.wav", "%d.wav",
]  # fmt: skip
LIKE_PROTOCOLS = ["http:evil.wav", "concat:a.wav|b.wav", "subfile,,start,0,end,9,,:x.wav", "pipe:0.wav"]


def tone(seconds: float = 1.0, rate: int = SR) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(1).normal(0, 0.05, len(t))
    return (0.3 * np.sin(2 * np.pi * 330 * t) + noise).astype(np.float32)


def mux(path: Path, form: str, *, sounds: int = 1, picture: str = "") -> None:
    """A container with so many streams of AAC and, if asked, a moving picture or a cover."""
    with av.open(str(path), "w", format=form) as container:
        streams: list[Any] = [container.add_stream("aac", rate=SR, layout="mono") for _ in range(sounds)]
        if picture:
            film: Any = container.add_stream("mjpeg", rate=5)
            film.width = film.height = 16
            film.pix_fmt = "yuvj420p"
            if picture == "cover":
                film.disposition = av.stream.Disposition.attached_pic
            for _ in range(1 if picture == "cover" else 5):
                frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
                container.mux(film.encode(frame.reformat(format="yuvj420p")))
            container.mux(film.encode(None))
        for stream in streams:
            block = av.AudioFrame.from_ndarray(tone()[None], format="fltp", layout="mono")
            block.sample_rate = SR
            container.mux(stream.encode(block))
            container.mux(stream.encode(None))


def wav_head(rate: int, channels: int, data: bytes) -> bytes:
    head = struct.pack("<HHIIHH", 1, channels, rate, 2 * rate * channels, 2 * channels, 16)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt \x10\0\0\0" + head + b"data" + struct.pack("<I", len(data)) + data  # fmt: skip


def a1_damaged(folder: Path) -> None:
    for suffix in FORMATS:
        good = folder / f"good.{suffix}"
        if suffix == "aac":
            mux(good, "adts")
        else:
            io.write(good, tone(), SR)
        data = good.read_bytes()
        for percent in (10, 50, 90):
            (folder / f"cut{percent}.{suffix}").write_bytes(data[: len(data) * percent // 100])
        (folder / f"zero.{suffix}").touch()
        (folder / f"noise.{suffix}").write_bytes(np.random.default_rng(3).bytes(5000))
        (folder / f"page.{suffix}").write_text("<!DOCTYPE html><html>404")
        (folder / f"text.{suffix}").write_text("Only words.\n" * 9)
        shutil.copy(good, folder / f"really_{suffix}.wma")  # the content decides, not the name


def a2_pictures(folder: Path) -> None:
    mux(folder / "silent_film.mkv", "matroska", sounds=0, picture="film")
    mux(folder / "film.mkv", "matroska", picture="film")
    mux(folder / "two_streams.mp4", "mp4", sounds=2)
    mux(folder / "cover.mp4", "mp4", picture="cover")


def a3_encrypted(folder: Path) -> None:
    io.write(folder / "plain.m4a", tone(), SR)
    data = (folder / "plain.m4a").read_bytes()
    for code in ("drms", "enca", "aavd"):
        (folder / f"{code}.m4p").write_bytes(data.replace(b"mp4a", code.encode(), 1))


def a4_rates(folder: Path) -> None:
    for rate in (7999, 11_025, 37_800, 96_000, 384_000):
        soundfile.write(folder / f"{rate}.wav", tone(0.5, rate), rate)
    for rate in (0, 1):
        (folder / f"{rate}.wav").write_bytes(wav_head(rate, 1, b"\1\2" * 4000))


def a5_channels(folder: Path) -> None:
    for channels in (1, 2, 6, 8, 23):
        soundfile.write(folder / f"{channels}.wav", np.full((4000, channels), 0.9, np.float32), SR)
    (folder / "0.wav").write_bytes(wav_head(SR, 0, b"\1\2" * 4000))


def a6_values(folder: Path) -> None:
    for name, value in (("nan", np.nan), ("inf", np.inf), ("huge", 1e30)):
        audio = tone().copy()
        audio[100:202] = value
        soundfile.write(folder / f"{name}.wav", audio, SR, subtype="FLOAT")
    soundfile.write(folder / "still.wav", np.zeros(4000), SR)
    soundfile.write(folder / "denormal.wav", tone() + np.float32(1e-40), SR, subtype="FLOAT")
    soundfile.write(folder / "dc.wav", np.full(4000, 0.5), SR)
    soundfile.write(folder / "clipped.wav", np.clip(tone() * 9, -1, 1), SR)


def a7_lengths(folder: Path) -> None:
    for length in (0, 1, 31, 32, 33):  # a top code is 32 samples
        soundfile.write(folder / f"{length}.wav", np.full(length, 0.5, np.float32), SR)
    for n in range(10):
        soundfile.write(folder / f"short{n}.wav", tone(0.3), SR)
    with open(folder / "half_a_day.wav", "wb") as file:  # a file with a hole: 691 MB that take no room
        size = 2 * SR * 12 * 3600
        file.write(wav_head(SR, 1, b"")[:-4] + struct.pack("<I", size))
        file.truncate(44 + size)


def a8_names(folder: Path) -> None:
    for name in ODD_NAMES:
        make_song(folder / "x.tmp.wav", 900).rename(folder / name)


def a9_no_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe.wav")
    (folder / "folder.mp3").mkdir()
    (folder / "nowhere.wav").symlink_to(folder / "missing")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "device.wav").symlink_to("/dev/zero")
    (folder / "round").symlink_to(folder)
    make_song(folder / "real.wav", 900)


def a10_protocols(folder: Path) -> None:
    for name in LIKE_PROTOCOLS:
        make_song(folder / "x.tmp.wav", 900).rename(folder / name)
    (folder / "list.mp3").write_text("#EXTM3U\n/etc/passwd\n")
    (folder / "concat.wav").write_text("ffconcat version 1.0\nfile /etc/passwd\n")


ROWS = [a1_damaged, a2_pictures, a3_encrypted, a4_rates, a5_channels, a6_values, a7_lengths, a8_names, a9_no_files, a10_protocols]  # fmt: skip


@dataclass
class Result:
    """What the run left: the store, the reason for each file that is not in it, and what was said."""

    store: CodeStore
    reasons: dict[str, str]
    said: str

    def taken(self, row: str) -> dict[str, int]:
        """Files of a row's folder in the store, with their lengths in samples."""
        lengths = self.store.lengths.tolist()
        found = zip(self.store.relpaths, lengths, strict=True)
        return {name.removeprefix(f"{row}/"): length for name, length in found if name.startswith(f"{row}/")}

    def refused(self, row: str) -> dict[str, str]:
        return {name.removeprefix(f"{row}/"): why for name, why in self.reasons.items() if name.startswith(f"{row}/")}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, pre_encode: Callable[..., Any], tiny_run: Path) -> Result:
    folder = tmp_path_factory.mktemp("awkward")
    for build in ROWS:
        (folder / "music" / build.__name__.partition("_")[0]).mkdir(parents=True)
        build(folder / "music" / build.__name__.partition("_")[0])
    before = sorted(os.walk(folder / "music"))
    ran = pre_encode(
        [f"--restore_vqvae={tiny_run}", f"--audio_files_dir={folder / 'music'}", f"--output-path={folder / 'store'}",
         "--max_bad=1"],
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert sorted(os.walk(folder / "music")) == before, "nothing is written beside the music"
    lines = (folder / "store_bad_files.tsv").read_text().splitlines()
    return Result(CodeStore.open(folder / "store"), dict(line.split("\t") for line in lines), ran.err)


def test_a1_damaged_and_mislabelled_files_of_every_format(result):
    good = {f"good.{suffix}" for suffix in FORMATS} | {f"really_{suffix}.wma" for suffix in FORMATS}
    assert set(result.taken("a1")) == good
    refused = result.refused("a1")
    words = {
        "cut": ("declared", "cut short", "cannot be decoded", "no audio frames", "no audio stream"), "zero": ("empty file",),
        "noise": ("of no format that is read here",), "page": ("a web page",), "text": ("of no format that is read here",),
    }  # fmt: skip
    assert len(refused) == 7 * len(FORMATS)
    for name, reason in refused.items():
        assert any(word in reason for word in words[name.partition(".")[0].rstrip("0159")]), (name, reason)
    assert "files are left out" in result.said and "store_bad_files.tsv" in result.said


def test_a2_videos_several_streams_and_covers(result):
    assert set(result.taken("a2")) == {"film.mkv", "two_streams.mp4", "cover.mp4"}
    assert result.refused("a2") == {"silent_film.mkv": "no audio stream (video only)"}


def test_a3_encrypted_files_are_named_as_such(result):
    assert set(result.taken("a3")) == {"plain.m4a"}
    refused = result.refused("a3")
    assert (
        all(f"encrypted ({code})" in refused[f"{code}.m4p"] for code in ("drms", "enca", "aavd")) and len(refused) == 3
    )


def test_a4_every_rate_gives_the_right_length(result):
    expected = {f"{rate}.wav": -(-(rate // 2) * SR // rate) for rate in (7999, 11_025, 37_800, 96_000, 384_000)}
    assert result.taken("a4") == expected
    assert all("sample rate" in reason or "decoded" in reason for reason in result.refused("a4").values())
    assert set(result.refused("a4")) == {"0.wav", "1.wav"}


def test_a5_channels_are_mixed_without_clipping(result, tiny_codec):
    assert result.taken("a5") == {f"{channels}.wav": 4000 for channels in (1, 2, 6, 8)}
    assert set(result.refused("a5")) == {"0.wav", "23.wav"} and "23 channels" in result.refused("a5")["23.wav"]
    codes = [result.store.codes(0, result.store.find(f"a5/{channels}.wav")) for channels in (1, 2)]
    np.testing.assert_array_equal(*codes)  # one channel is the same song as twice that channel
    eight = Path(result.store.meta(result.store.find("a5/8.wav"))["path"])
    assert np.abs(io.read(eight, channels=2)).max() <= 1
    assert result.said.count("files of 8 channels") == 1


def test_a6_numbers_that_are_no_sound(result):
    assert set(result.taken("a6")) == {"denormal.wav", "dc.wav", "clipped.wav", "still.wav"}
    refused = result.refused("a6")
    assert refused["nan.wav"] == refused["inf.wav"] == "102 samples are not finite numbers"
    assert refused["huge.wav"].startswith("peak 1e+30") and "a6/still.wav: silent" in result.said


def test_a7_lengths_from_nothing_to_half_a_day(result):
    taken = result.taken("a7")
    assert {name: length for name, length in taken.items() if not name.startswith("short")} == {
        "1.wav": 1, "31.wav": 31, "32.wav": 32, "33.wav": 33,
    }  # fmt: skip
    assert sum(name.startswith("short") for name in taken) == 10
    store = result.store
    assert [store.frames(2, store.find(f"a7/{length}.wav")) for length in (1, 31, 32, 33)] == [1, 1, 1, 2]
    assert result.refused("a7") == {
        "0.wav": "no audio frames", "half_a_day.wav": "longer than 21600 s (--max_audio_sec)",
    }  # fmt: skip


def test_a8_names_of_every_sort(result):
    assert set(result.taken("a8")) == set(ODD_NAMES)
    for name in ODD_NAMES:
        item = result.store.find(f"a8/{name}")
        assert result.store.meta(item)["relpath"] == f"a8/{name}" and result.store.lengths[item] == 900


def test_a9_what_is_no_plain_file_is_passed_over(result):
    assert result.taken("a9") == {"real.wav": 900}  # once, though a link leads round to it
    for name in ("pipe.wav", "nowhere.wav", "loop.wav", "device.wav"):
        assert f"{name} passed over" in result.said


def test_a10_names_and_lists_never_become_protocols(result):
    assert set(result.taken("a10")) == set(LIKE_PROTOCOLS)
    assert set(result.refused("a10").values()) == {"not a sound file but a playlist"}


@pytest.fixture
def pre_encoded_here(tiny_codec: VQVAECodec) -> Callable[[Path, Path], CodeStore]:
    """`pre_encoded_here(music, store)`: a folder encoded in this process."""

    def run(music: Path, root: Path) -> CodeStore:
        encode = EncodeHps(audio_files_dir=str(music), output_path=str(root), num_workers=0)
        store = encode_all(encode, tiny_codec, {"checkpoint": "run", "hps": {}}, SoloComm())
        assert store is not None
        return store

    return run


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", b'{"file": "a.wav"}\n{"file": ', r"metadata\.jsonl, line 2"),
        ("metadata.jsonl", '\ufeff{"file": "a.wav", "artist": "Änn"}\n'.encode(), ""),
        ("metadata.jsonl", b'{"file": "a.wav", "artist": "\xc4nn"}\n', r"metadata\.jsonl"),
        ("metadata.jsonl", b'{"file": "nobody.wav", "artist": "x"}\n', ""),
        ("a.txt", b"la " * 400_000, ""),
        ("a.lrc", b"[00:00.10]la\n[99", r"a\.lrc, line 2"),
    ],
    ids=["broken", "byte order mark", "latin-1", "of no file", "a megabyte of lyrics", "cut lyrics"],
)
def test_a14_metadata_beside_the_songs(tmp_path, pre_encoded_here, name, content, message):
    make_song(tmp_path / "music" / "a.wav", 900)
    (tmp_path / "music" / name).write_bytes(content)
    if message:
        with pytest.raises(io.DataError, match=message):
            pre_encoded_here(tmp_path / "music", tmp_path / "s")
        assert not (tmp_path / "s").exists()
        return
    song = pre_encoded_here(tmp_path / "music", tmp_path / "s").meta(0)["song"]
    if name == "metadata.jsonl" and b"nobody" not in content:
        assert song["artist"] == "Änn"
    if name == "a.txt":
        assert len(song["lyrics"]) > 10**6
