"""Damaged, mislabelled and hostile files: each is refused with a reason, none hangs, none is read as something else."""

import os
import struct

import av
import numpy as np
import pytest
import soundfile

from jukebox.audio import io

SR = 22050
FORMATS = ("wav", "flac", "mp3", "m4a", "ogg", "opus", "aac")


def _tone(seconds=2.0):
    t = np.arange(int(seconds * SR)) / SR
    return (0.3 * np.sin(2 * np.pi * 330 * t) + np.random.default_rng(1).normal(size=len(t)) * 0.05).astype(np.float32)


def _with_av(path, muxer, codec, audio=True, video=False, rate=SR, repeats=1):
    with av.open(str(path), "w", format=muxer) as container:
        streams = [container.add_stream(codec, rate=rate, layout="mono") for _ in range(repeats if audio else 0)]
        if video:
            pictures = container.add_stream("mjpeg", rate=5)
            pictures.width = pictures.height = 16
            pictures.pix_fmt = "yuvj420p"
            for _ in range(5):
                frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
                container.mux(pictures.encode(frame.reformat(format="yuvj420p")))
            container.mux(pictures.encode(None))
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(_tone()[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for suffix in FORMATS:
        if suffix == "aac":
            _with_av(folder / "a.aac", "adts", "aac")
        else:
            io.write(folder / f"a.{suffix}", _tone(), SR)
    return folder


def reason_of(path):
    with pytest.raises(io.AudioError) as caught:
        io.survey(path)
    assert os.fsencode(os.path.basename(path)).isascii() is False or os.path.basename(path) in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files_are_refused(good, suffix, share, tmp_path):
    data = (good / f"a.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    reason = reason_of(path)
    assert any(word in reason for word in ("declared", "cut short", "cannot be decoded", "no audio frames")), reason


@pytest.mark.parametrize("suffix", FORMATS)
def test_other_content_under_a_sound_name_is_refused(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    for data, reason in (
        (b"", "empty file"),
        (np.random.default_rng(3).bytes(30_000), "no format that is read here"),
        (b"\n<!DOCTYPE html><html>404" * 99, "web page"),
        (b"Only words.\n" * 200, "no format that is read here"),
        (b"\0" * 5000, "no format that is read here"),
        (b"#EXTM3U\n/etc/passwd\n", "playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "playlist"),
    ):
        path.write_bytes(data)
        assert reason in reason_of(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_content_decides_not_the_name(good, suffix, tmp_path):
    path = tmp_path / "a.wma"
    path.write_bytes((good / f"a.{suffix}").read_bytes())
    assert io.survey(path).length_samples >= len(_tone())


def test_heads_without_a_body_are_refused(tmp_path):
    for name, data in (
        ("a.flac", b"fLaC" + b"\0" * 100),
        ("a.mp3", b"ID3\x04\0\0\0\0\0\0"),
        ("b.mp3", b"\xff\xfb\x90\x00" + np.random.default_rng(3).bytes(20_000)),
        ("a.m4a", b"\0\0\0\x18ftypM4A " + b"\0" * 100),
        ("a.ogg", b"OggS" + b"\0" * 100),
        (
            "a.wav",
            b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\0\0" + struct.pack("<IIHH", 44100, 0, 0, 16) + b"data\0\0\0\0",
        ),
    ):
        (tmp_path / name).write_bytes(data)
        assert reason_of(tmp_path / name)


def test_a_hole_in_the_middle_is_refused(good, tmp_path):
    for suffix in ("ogg", "opus", "flac", "mp3"):
        data = bytearray((good / f"a.{suffix}").read_bytes())
        middle = len(data) // 2
        data[middle : middle + len(data) // 5] = b"\0" * (len(data) // 5)
        (tmp_path / f"a.{suffix}").write_bytes(data)
        assert reason_of(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("told", [0, 0xFFFFFFFF])
def test_a_wav_written_as_a_stream_is_read_to_its_end(good, told, tmp_path):
    data = bytearray((good / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", told)
    (tmp_path / "a.wav").write_bytes(data)
    assert io.survey(tmp_path / "a.wav").length_samples == len(_tone())


def test_numbers_that_are_no_sound_are_refused(tmp_path):
    for value in (np.nan, np.inf):
        audio = _tone()
        audio[100:202] = value
        soundfile.write(tmp_path / "a.wav", audio, SR, subtype="FLOAT")
        assert reason_of(tmp_path / "a.wav") == "102 samples are not finite numbers"
        with pytest.raises(io.AudioError, match="not finite"):
            io.read(tmp_path / "a.wav", sr_hz=8000)


def test_videos(tmp_path):
    _with_av(tmp_path / "silent.mkv", "matroska", "aac", audio=False, video=True)
    assert reason_of(tmp_path / "silent.mkv") == "no audio stream (video only)"
    _with_av(tmp_path / "film.mkv", "matroska", "aac", video=True)
    _with_av(tmp_path / "two.mp4", "mp4", "aac", repeats=2)
    for name in ("film.mkv", "two.mp4"):
        assert io.survey(tmp_path / name).length_samples >= len(_tone())
        whole = io.read(tmp_path / name)
        piece = io.read(tmp_path / name, start_samples=30_000, length_samples=1000)
        exact = name == "film.mkv"  # time stamps in whole milliseconds: decoded from the beginning
        assert np.abs(piece - whole[30_000:31_000]).max() < (1e-6 if exact else 0.2)


@pytest.mark.parametrize("code", [b"drms", b"enca"])
def test_encrypted_files_are_named_as_such(good, code, tmp_path):
    data = (good / "a.m4a").read_bytes()
    assert data.count(b"mp4a") >= 1
    (tmp_path / "a.m4p").write_bytes(data.replace(b"mp4a", code, 1))
    assert "encrypted" in reason_of(tmp_path / "a.m4p")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.mp3").mkdir()
    (tmp_path / "nowhere.wav").symlink_to(tmp_path / "missing")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    assert reason_of(tmp_path / "pipe.wav") == reason_of(tmp_path / "folder.mp3") == "not a regular file"
    assert "cannot be opened" in reason_of(tmp_path / "nowhere.wav")
    assert "cannot be opened" in reason_of(tmp_path / "loop.wav")
    assert io.find_audio(tmp_path) == []


ODD_NAMES = [
    "-rf.wav",
    "a'b\"c.wav",
    "line\nfeed.wav",
    "🎵 мир שלום.wav",
    "<script>.wav",
    "e\u0301.WAV",
    "x" * 250 + ".wav",
]


@pytest.mark.parametrize(
    "name", [*ODD_NAMES, os.fsdecode(b"caf\xe9.wav"), "http:evil.wav", "concat:a.wav|b.wav", "%d.wav"]
)
def test_odd_names_are_only_names(name, tmp_path):
    try:
        io.write(tmp_path / name, _tone(0.1), SR)
    except OSError:
        pytest.skip("the file system does not take this name")
    (found,) = io.find_audio(tmp_path)
    assert found.name == name
    assert io.survey(found).length_samples == len(_tone(0.1))
    (found).write_bytes(b"junk")
    with pytest.raises(io.AudioError) as caught:
        io.read(found)
    str(caught.value).encode("utf-8")
    assert "\n" not in str(caught.value)


def test_finding(tmp_path):
    for name in ("b.WAV", "a.mp3", ".hidden.wav", "notes.txt", ".git/x.wav", "sub/deep/c.opus", "sub/d.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub" / "again").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in io.find_audio(tmp_path)]
    assert found == ["a.mp3", "b.WAV", "sub/d.flac", "sub/deep/c.opus"]
    with pytest.raises(io.DataError, match="is not a folder"):
        io.find_audio(tmp_path / "missing")


def test_damaged_bytes_never_escape_as_another_error(good, tmp_path):
    """A hundred mutations: refused with a reason, or read; never a crash or a foreign exception."""
    rng = np.random.default_rng(7)
    for suffix in FORMATS:
        whole = (good / f"a.{suffix}").read_bytes()
        for _ in range(14):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 20):
                data[at] = rng.integers(256)
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(data)
            try:
                io.survey(path)
                io.read(path, sr_hz=16000, channels=2, start_samples=9000, length_samples=4000)
            except io.AudioError as error:
                assert error.reason
