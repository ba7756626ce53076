"""What a file holds, by its first bytes, and the one way that a sound file is opened."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from jukebox import files
from jukebox.errors import DataError

Audio = npt.NDArray[np.float32]  # [T, C], full scale is 1

BLOCK = 1 << 16  # samples decoded or encoded at a time


class AudioError(DataError):
    """A sound file cannot be used; `reason` says why in a few words, without the file's name."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{files.printable(os.fspath(path))}: {reason}")
        self.path, self.reason = os.fspath(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        return AudioError, (self.path, self.reason)


# kind: FFmpeg's demuxer; those of BY_SOUNDFILE are tried with soundfile first
DEMUXER = {
    "wav": "wav", "w64": "w64", "aiff": "aiff", "flac": "flac", "ogg": "ogg", "opus": "ogg", "mp3": "mp3", "caf": "caf",
    "au": "au", "aac": "aac", "mp4": "mov", "matroska": "matroska", "asf": "asf", "avi": "avi", "flv": "flv", "ts": "mpegts",
}  # fmt: skip
BY_SOUNDFILE = {"wav", "w64", "aiff", "flac", "ogg", "mp3", "caf", "au"}
DECLARES_TRULY = BY_SOUNDFILE | {"opus", "mp4", "matroska"}  # the rest estimate their length from the bit rate


def _sniff(head: bytes) -> str | None:
    """The kind of file by its first bytes; None for what we do not read."""
    if head[:4] in (b"RIFF", b"RF64", b"BW64"):
        return {b"WAVE": "wav", b"AVI ": "avi"}.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] == b"OggS":
        return "opus" if b"OpusHead" in head[:64] else "ogg"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mp4"
    for magic, kind in (
        (b"fLaC", "flac"), (b"riff\x2e\x91\xcf\x11", "w64"), (b"caff", "caf"), (b".snd", "au"), (b"ID3", "mp3"),
        (b"\x1a\x45\xdf\xa3", "matroska"), (b"\x30\x26\xb2\x75", "asf"), (b"FLV", "flv"),
    ):  # fmt: skip
        if head.startswith(magic):
            return kind
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return "ts"
    if len(head) > 3 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "mp3" if head[1] & 0x06 else "aac"  # MPEG layer 0 is what ADTS frames of AAC carry
    return None


def _sniff_file(file: IO[bytes]) -> str | None:
    head = file.read(1024)
    if head[:3] == b"ID3" and len(head) >= 10:  # what follows the tag decides: flac and aac files may carry one, too
        file.seek(10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)))
        return _sniff(file.read(1024)) or "mp3"
    return _sniff(head)


@contextmanager
def opened_file(path: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], str]]:
    """A regular file opened by ourselves, and the kind of sound in it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise AudioError(path, "not a regular file")
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise AudioError(path, f"cannot be opened ({error.strerror})") from None
    with file:
        head = file.read(64)
        if not head:
            raise AudioError(path, "empty file")
        file.seek(0)
        kind = _sniff_file(file)
        if kind is None:
            start = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
            if start.startswith((b"<!doctype", b"<html", b"<?xml")):
                raise AudioError(path, "not a sound file but a web page")
            if start.startswith((b"#extm3u", b"ffconcat", b"[playlist]")):
                raise AudioError(path, "not a sound file but a playlist")
            raise AudioError(path, "not a sound file (its first bytes are of no format that is read here)")
        file.seek(0)
        yield file, kind
