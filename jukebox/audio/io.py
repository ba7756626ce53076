"""Sound files in and out: the only file that knows soundfile, av, soxr.

Reading: soundfile (libsndfile) for wav, flac, ogg, mp3, aiff, caf and au; av (FFmpeg) for m4a, aac, opus, video containers
and whatever has more than two channels, since only av tells which channel is which. The first bytes of a file decide,
never its name; FFmpeg gets our own open file and the one demuxer that fits, so playlists and protocols are never followed.

Every offset is exact to the sample, at the rate asked for. FFmpeg seeks land early, so we cut by time stamps, after a run-up
that the decoder needs to settle; where time stamps are coarser than a sample (Matroska) we decode from the beginning.
AAC decoders keep noise state, so a chunk read after a seek is a valid but slightly different signal there;
use `stream` where one true signal is needed.

Resampling: soxr "HQ", always through its streaming form; n samples become ceil(n * to / from). Sample k of the result lies
at second k / to, wherever reading began. Codes depend on this choice: `RESAMPLER` belongs into fingerprints.
"""

import functools
import io
import logging
import os
import re
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import gcd
from pathlib import Path
from typing import IO, Any, Protocol

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from jukebox import files
from jukebox.audio import xiph
from jukebox.audio.id3 import id3_tag
from jukebox.errors import DataError

Audio = npt.NDArray[np.float32]  # [T, C], full scale is 1

RESAMPLER = "soxr HQ"
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
EXTENSIONS = frozenset((
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".m4p", ".aax", ".aac", ".aif", ".aiff", ".aifc",
    ".caf", ".au", ".w64", ".rf64", ".wma", ".mp4", ".mov", ".mkv", ".mka", ".webm",
))  # fmt: skip

_BLOCK = 1 << 16  # samples decoded at a time
_RUN_UP_SEC = 0.3  # Opus needs 254 ms after a seek until it equals a straight decode (measured), mp3 84 ms
_SOXR_REACH = (
    256  # samples, of the slower of both rates, that one output sample depends on to each side (measured: < 90)
)

log = logging.getLogger(__name__)


class AudioError(DataError):
    """A sound file cannot be used; `reason` says why in a few words, without the file's name."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{files.printable(os.fspath(path))}: {reason}")
        self.path, self.reason = os.fspath(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        return AudioError, (self.path, self.reason)


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a file says. `length_samples` is at the file's own rate, 0 if not told, and may be untrue."""

    path: Path
    sr_hz: int
    channels: int
    length_samples: int
    format: str

    @property
    def length_sec(self) -> float:
        return self.length_samples / self.sr_hz


def resampled_length(length_samples: int, from_hz: int, to_hz: int) -> int:
    """The number of samples that `length_samples` at one rate become at another."""
    return -(-length_samples * to_hz // from_hz)


# ---- reading -------------------------------------------------------------------------------------------------------


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """What the header says, without decoding. Raises AudioError for what is no sound file."""
    with _opened(path) as source:
        return AudioInfo(Path(path), source.sr_hz, source.channels, source.declared_samples, source.format)


def read(
    path: str | os.PathLike[str],
    *,
    sr_hz: int | None = None,
    channels: int | None = None,
    start_sec: float = 0.0,
    start_samples: int | None = None,
    length_samples: int | None = None,
) -> Audio:
    """Audio [T, C] at the rate and with the channels asked for (default: the file's own).

    `start_samples` (or `start_sec`) and `length_samples` count at the returned rate. Raises AudioError when the file is
    unreadable, holds NaN or infinity, or gives fewer samples than asked for or than it declares.
    """
    with _opened(path) as source:
        rate = sr_hz or source.sr_hz
        start = round(start_sec * rate) if start_samples is None else start_samples
        blocks, got = [], 0
        for block in _converted(source, rate, channels, start):
            blocks.append(block if length_samples is None else block[: length_samples - got])
            got += len(blocks[-1])
            if length_samples is not None and got >= length_samples:
                break
        if length_samples is None:
            _check_complete(source, start * source.sr_hz // rate + got * source.sr_hz // rate)
        elif got < length_samples:
            raise AudioError(path, f"decoded {got} of the {length_samples} samples asked for at sample {start}")
        return np.concatenate(blocks) if blocks else np.zeros((0, channels or source.channels), np.float32)


def stream(path: str | os.PathLike[str], sr_hz: int, channels: int, block: int) -> Iterator[Audio]:
    """The whole file, decoded once from its start, as blocks [block, channels]; only the last may be shorter.

    Together they equal `read` of everything; memory does not grow with the file. Raises AudioError as `read` does.
    """
    with _opened(path) as source:
        kept, got = np.zeros((0, channels), np.float32), 0
        for piece in _converted(source, sr_hz, channels, 0):
            kept, got = np.concatenate([kept, piece]), got + len(piece)
            while len(kept) >= block:
                yield kept[:block]
                kept = kept[block:]
        _check_complete(source, got * source.sr_hz // sr_hz)
        if len(kept):
            yield kept


@dataclass(frozen=True)
class Survey:
    """What a file really holds, found by decoding all of it; lengths at its own rate."""

    info: AudioInfo
    length_samples: int
    peak: float


TOO_LONG = "longer than"


def survey(path: str | os.PathLike[str], *, max_sec: float = 0.0) -> Survey:
    """Decodes a whole file once, in bounded memory, to learn its true length and its peak.

    Raises AudioError for everything that would spoil a batch: no sound, less sound than declared, NaN or infinity; and,
    before it has decoded much, for what is longer than `max_sec` (0: no limit), since an hour of silence fits into 3 kB.
    """
    with _opened(path) as source:
        limit = max_sec * source.sr_hz or float("inf")
        length, peak = 0, 0.0
        for block in chain([np.zeros((0, 1), np.float32)], _converted(source, source.sr_hz, None, 0)):
            length, peak = length + len(block), max(peak, float(np.abs(block).max(initial=0.0)))
            if max(length, source.declared_samples if source.format in _DECLARES_TRULY else 0) > limit:
                raise AudioError(path, f"{TOO_LONG} {max_sec:g} s (--max_audio_sec)")
        _check_complete(source, length)
        info = AudioInfo(Path(path), source.sr_hz, source.channels, source.declared_samples, source.format)
        return Survey(info, length, peak)


def find_audio(folder: str | os.PathLike[str]) -> list[Path]:
    """All sound files below a folder, by extension, sorted; dot files, pipes and dangling links are passed over.

    Links to folders are followed, each folder once. Raises DataError if the folder is none.
    """
    root = os.fspath(folder)
    if not os.path.isdir(root):
        raise DataError(f"{files.printable(root)} is not a folder. Give a folder of sound files (--audio_files_dir).")
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        here = waiting.pop()
        try:
            state = os.stat(here)
            entries = list(os.scandir(here))
        except OSError as error:
            log.warning("%s passed over: %s", files.printable(here), error.strerror)
            continue
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is(entry, os.DirEntry.is_dir):
                waiting.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                if _is(entry, os.DirEntry.is_file):
                    found.append(entry.path)
                else:
                    log.warning("%s passed over: not a file that can be read", files.printable(entry.path))
    return [Path(name) for name in sorted(found)]


def _is(entry: os.DirEntry[str], kind: Any) -> bool:
    try:
        return bool(kind(entry))
    except OSError:  # a loop of links
        return False


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The tags in a file as FFmpeg names them, keys in lower case; those of the stream win over the container's."""
    with _file(path) as (file, kind), _container(path, file, kind) as container:
        streams = container.streams.audio
        found = chain(container.metadata.items(), streams[0].metadata.items() if streams else ())
        return {str(key).lower(): str(value) for key, value in found}


# ---- what is in the file ---------------------------------------------------------------------------------------------

# kind: FFmpeg's demuxer; those of _BY_SOUNDFILE are tried with soundfile first
_DEMUXER = {
    "wav": "wav", "w64": "w64", "aiff": "aiff", "flac": "flac", "ogg": "ogg", "opus": "ogg", "mp3": "mp3", "caf": "caf",
    "au": "au", "aac": "aac", "mp4": "mov", "matroska": "matroska", "asf": "asf", "avi": "avi", "flv": "flv", "ts": "mpegts",
}  # fmt: skip
_BY_SOUNDFILE = {"wav", "w64", "aiff", "flac", "ogg", "mp3", "caf", "au"}
_DECLARES_TRULY = _BY_SOUNDFILE | {"opus", "mp4", "matroska"}  # the rest estimate their length from the bit rate
_DRM = {"drms", "enca", "aavd"}  # sample entries of encrypted MP4 audio: FairPlay, Common Encryption, Audible


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
def _file(path: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], str]]:
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


class _Source(Protocol):
    """One open file. `blocks(start)` may be called once; it yields [t, C] beginning exactly at that sample."""

    path: str | os.PathLike[str]
    format: str
    sr_hz: int
    channels: int
    declared_samples: int
    layout: tuple[str, ...]  # FFmpeg's channel names; empty for one or two channels

    def blocks(self, start: int) -> Iterator[Audio]: ...

    def missing(self) -> str: ...


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[_Source]:
    """The file as a source, every fault of the decoders as an AudioError."""
    with _file(path) as (file, kind), ExitStack() as stack:
        try:
            yield _checked(_source(path, file, kind, stack))
        except (soundfile.LibsndfileError, av.FFmpegError) as error:
            raise AudioError(path, f"cannot be decoded as {kind} ({_first_line(error)})") from None


def _source(path: str | os.PathLike[str], file: IO[bytes], kind: str, stack: ExitStack) -> _Source:
    """The decoder for a file; what `stack` holds must be left when it is no longer used."""
    if kind in _BY_SOUNDFILE:
        try:
            source = stack.enter_context(_SoundFileSource(path, file, kind))
        except soundfile.LibsndfileError:
            if kind == "mp3":  # FFmpeg would guess at garbage here; a wav may hold a codec that it alone knows
                raise
        else:
            # More channels: av knows which is which. No frames: a wav whose length was left 0 while it was streamed.
            if (source.channels <= 2 or source.channels > 8) and source.declared_samples:
                return source
        file.seek(0)
    return _AvSource(path, file, stack.enter_context(_container(path, file, kind)), kind)


def _first_line(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return text.strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _checked(source: _Source) -> _Source:
    if not MIN_RATE_HZ <= source.sr_hz <= MAX_RATE_HZ:
        raise AudioError(source.path, f"sample rate {source.sr_hz} Hz (read are {MIN_RATE_HZ} to {MAX_RATE_HZ})")
    if source.channels < 1:
        raise AudioError(source.path, "no channels")
    if source.channels > 8:
        raise AudioError(source.path, f"{source.channels} channels (at most 8 can be mixed down)")
    return source


def _check_complete(source: _Source, decoded_samples: int) -> None:
    """Raises if clearly less came out (0.1 s, room for encoder padding) than the file declares."""
    if decoded_samples == 0:
        raise AudioError(source.path, "no audio frames")
    declared = source.declared_samples if source.format in _DECLARES_TRULY else 0
    if declared - decoded_samples > 0.1 * source.sr_hz:
        decoded_sec, declared_sec = decoded_samples / source.sr_hz, declared / source.sr_hz
        raise AudioError(source.path, f"decoded {decoded_sec:.2f} s of {declared_sec:.2f} s declared")
    if missing := source.missing():
        raise AudioError(source.path, missing)


_one_listener = threading.Lock()


@contextmanager
def _mpg123_unheard() -> Iterator[None]:
    """Keeps from stderr what libmpg123 writes there: after a seek it decodes some frames only to settle, and complains of
    what these lack. Whatever else is written meanwhile is passed on."""
    with _one_listener, tempfile.TemporaryFile() as kept:
        try:
            stderr = os.dup(2)
        except OSError:  # there is none
            yield
            return
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            kept.seek(0)
            for line in kept:
                if b"libmpg123" not in line:
                    os.write(stderr, line)
            os.close(stderr)


class _SoundFileSource:
    layout: tuple[str, ...] = ()

    def __init__(self, path: str | os.PathLike[str], file: IO[bytes], kind: str) -> None:
        self.path, self.format, self._file = path, kind, file
        with self._quiet():
            self._sound = soundfile.SoundFile(file)
        self.sr_hz, self.channels = self._sound.samplerate, self._sound.channels
        self.declared_samples = self._sound.frames

    def __enter__(self) -> "_SoundFileSource":
        return self

    def __exit__(self, *_: object) -> None:
        self._sound.close()

    def blocks(self, start: int) -> Iterator[Audio]:
        if start:
            self._seek(min(start, self._sound.frames))
        while len(block := self._next()):
            yield block

    def _next(self) -> Audio:
        with self._quiet():
            block: Audio = self._sound.read(_BLOCK, dtype="float32", always_2d=True)
        return block

    def _quiet(self) -> AbstractContextManager[None]:
        return _mpg123_unheard() if self.format == "mp3" else nullcontext()

    def _seek(self, start: int) -> None:
        """libsndfile 1.2 seeks exactly, but for the last page of an Ogg file, where it may be off by what encoding padded."""
        lead = 0
        if self.format == "ogg":
            before = xiph.last_page_start(self._file)
            lead = max(0, start - before + 1) if start >= before else 0
        self._sound.seek(max(0, start - lead))
        self._sound.read(min(lead, start), dtype="float32")

    def missing(self) -> str:
        """Says what libsndfile passes over silently: wav and aiff data cut short, and the like of Ogg."""
        for told, there in re.findall(
            r"^\s*(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", self._sound.extra_info, re.M
        ):
            if int(there) < int(told) < 0xFFFF_0000:  # streams write 0 or 0xFFFFFFFF for "until the end"
                return f"cut short: {there} of {told} bytes of sound are there"
        return _cut_ogg(self._file, self.format)


@contextmanager
def _container(path: str | os.PathLike[str], file: IO[bytes], kind: str) -> Iterator[Any]:
    # PyAV never closes a file object that it was given; probing a wav at full length costs 20 ms for nothing
    options = {"probesize": "8192"} if kind == "wav" else {}
    try:
        with av.open(file, format=_DEMUXER[kind], options=options) as container:
            yield container
    except av.FFmpegError as error:
        raise AudioError(path, f"cannot be decoded as {kind} ({_first_line(error)})") from None


class _AvSource:
    def __init__(self, path: str | os.PathLike[str], file: IO[bytes], container: Any, kind: str) -> None:
        self.path, self.format, self._file, self._container = path, kind, file, container
        if not container.streams.audio:
            raise AudioError(path, "no audio stream (video only)" if container.streams.video else "no audio stream")
        self._stream = stream = container.streams.best("audio") or container.streams.audio[0]
        code = str(stream.codec_context.codec_tag)
        if code in _DRM:
            raise AudioError(path, f"encrypted ({code}): cannot be read; a copy without DRM is needed")
        self._frames = container.decode(stream)
        self._first: Any = next(self._frames, None)  # HE-AAC tells its true rate only here
        if self._first is None:
            raise AudioError(path, "no audio frames")
        self.sr_hz, self.channels = self._first.sample_rate, self._first.layout.nb_channels
        names = tuple(channel.name for channel in self._first.layout.channels)
        self.layout = names if self.channels > 2 else ()
        self.declared_samples = self._declared()

    def _declared(self) -> int:
        stream, container = self._stream, self._container
        if stream.duration:
            return int(stream.duration * stream.time_base * self.sr_hz)
        if container.duration and not container.streams.video:
            return int(container.duration * self.sr_hz // av.time_base)
        return 0

    def blocks(self, start: int) -> Iterator[Audio]:
        frames: Iterator[Any] = chain([self._first], self._frames)
        position = 0
        exact = self._stream.time_base and self._stream.time_base * self.sr_hz <= 1
        if exact and start > 2 * _RUN_UP_SEC * self.sr_hz:
            frames, position = self._sought(start)
        for frame in frames:
            if (frame.sample_rate, frame.layout.nb_channels) != (self.sr_hz, self.channels):
                raise AudioError(
                    self.path, f"turns from {self.sr_hz} Hz to {frame.sample_rate} Hz, or its channels change"
                )
            if position + frame.samples > start:
                yield _as_float(frame)[max(0, start - position) :]
            position += frame.samples

    def _sought(self, start: int) -> tuple[Iterator[Any], int]:
        """Frames from at least the run-up before `start` on, and the position of the first of them in samples."""
        stream, origin = self._stream, self._first.pts or 0
        for back_sec in (_RUN_UP_SEC, 10 * _RUN_UP_SEC, start / self.sr_hz):
            wanted = (start / self.sr_hz - back_sec) / stream.time_base
            self._container.seek(origin + max(0, int(wanted)), stream=stream, backward=True)
            frames = self._container.decode(stream)
            first: Any = next(frames, None)
            if first is not None and first.pts is not None:
                position = round((first.pts - origin) * stream.time_base * self.sr_hz)
                if position <= max(0, start - int(_RUN_UP_SEC * self.sr_hz)):
                    return chain([first], frames), position
        raise AudioError(self.path, f"cannot be positioned at sample {start}")

    def missing(self) -> str:
        return _cut_ogg(self._file, self.format)


def _cut_ogg(file: IO[bytes], kind: str) -> str:
    cut = kind in ("ogg", "opus") and xiph.cut_short(file)
    return "cut short: its last Ogg page is not complete" if cut else ""


def _as_float(frame: Any) -> Audio:
    """Samples [t, C] of an FFmpeg frame of any sample format, full scale 1."""
    samples: npt.NDArray[Any] = frame.to_ndarray()  # planar: [C, t], packed: [1, t * C]
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    result: Audio = samples.astype(np.float32)
    if samples.dtype == np.uint8:
        result = (result - np.float32(128)) / np.float32(128)
    elif samples.dtype.kind == "i":
        result /= np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    return result


# ---- rate and channels ------------------------------------------------------------------------------------------------


def resample(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """[T, C] (or [T]) at another rate: ceil(T * to / from) samples, the first one in place."""
    if from_hz == to_hz:
        return audio
    resampler = _Resampler(from_hz, to_hz, 1 if audio.ndim == 1 else audio.shape[1])
    columns = audio.reshape(len(audio), -1)
    result = np.concatenate([resampler.push(columns), resampler.finish()])
    return result.reshape(len(result), *audio.shape[1:])


class _Resampler:
    """soxr in its streaming form, ending at exactly ceil(pushed * to / from) samples."""

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        self._from, self._to, self._channels = from_hz, to_hz, channels
        self._soxr = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality="HQ")
        self._pushed = self._given = 0

    def push(self, block: Audio, last: bool = False) -> Audio:
        result: Audio = self._soxr.resample_chunk(np.ascontiguousarray(block, np.float32), last=last)
        result = result.reshape(-1, self._channels)
        self._pushed, self._given = self._pushed + len(block), self._given + len(result)
        return result

    def finish(self) -> Audio:
        wanted = resampled_length(self._pushed, self._from, self._to) - self._given
        silence = np.zeros((self._from // self._to + 2, self._channels), np.float32)  # so that none is missing
        return self.push(silence, last=True)[:wanted]


def _converted(source: _Source, sr_hz: int, channels: int | None, start: int) -> Iterator[Audio]:
    """Blocks [t, channels] at `sr_hz`, the first beginning at sample `start` of that rate, until the file ends."""
    if sr_hz == source.sr_hz:
        for block in source.blocks(start):
            yield _mixed(source, block, channels)
        return
    # Begin where both rates have a sample at the same moment, early enough that the filter has settled at `start`.
    step = source.sr_hz // gcd(source.sr_hz, sr_hz)
    reach = _SOXR_REACH * max(1, -(-source.sr_hz // sr_hz))
    begin = max(0, start * source.sr_hz // sr_hz - reach) // step * step
    skip = start - begin * sr_hz // source.sr_hz
    resampler = _Resampler(source.sr_hz, sr_hz, channels or min(source.channels, 2))

    def resampled() -> Iterator[Audio]:
        for block in source.blocks(begin):
            yield resampler.push(_mixed(source, block, channels))
        yield resampler.finish()

    for block in resampled():
        if len(block) > skip:
            yield block[skip:]
        skip = max(0, skip - len(block))


# Weights of FFmpeg's channel names in a left and right mix (ITU-R BS.775: centre and surrounds at -3 dB, no LFE)
_SIDE = {
    "FL": (1, 0), "FR": (0, 1), "DL": (1, 0), "DR": (0, 1), "FC": (0.7071, 0.7071), "BC": (0.5, 0.5), "LFE": (0, 0),
    "BL": (0.7071, 0), "BR": (0, 0.7071), "SL": (0.7071, 0), "SR": (0, 0.7071), "FLC": (1, 0), "FRC": (0, 1),
}  # fmt: skip
_USUAL = {  # what wav and aiff mean when they do not say
    3: "FL FR FC", 4: "FL FR BL BR", 5: "FL FR FC BL BR", 6: "FL FR FC LFE BL BR", 7: "FL FR FC LFE BC SL SR",
    8: "FL FR FC LFE BL BR SL SR",
}  # fmt: skip


def _mixed(source: _Source, block: Audio, channels: int | None) -> Audio:
    """[t, C] -> [t, channels]; None keeps one or two channels and mixes more down to two. Raises on NaN and infinity."""
    if not np.isfinite(block).all():
        raise AudioError(source.path, f"{int((~np.isfinite(block)).sum())} samples are not finite numbers")
    if source.channels > 2:
        block = block @ _downmix(os.fspath(source.path), source.layout)
    if channels is None or channels == block.shape[1]:
        return block
    if channels == 1:
        mono: Audio = block.mean(axis=1, keepdims=True, dtype=np.float32)
        return mono
    if channels == 2:
        return np.repeat(block, 2, axis=1)
    raise ValueError(f"{channels} channels were asked for, there are only 1 and 2")


@functools.lru_cache(maxsize=64)
def _downmix(path: str, layout: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """Matrix [C, 2] whose columns sum to at most 1, so that no mix exceeds full scale, in every chunk the same."""
    names = tuple(_USUAL[len(layout)].split()) if set(layout) <= {"NONE", "UNK"} else layout
    unknown = [name for name in names if name not in _SIDE]
    if unknown:
        raise AudioError(path, f"unsupported channel layout ({' '.join(names)})")
    matrix: npt.NDArray[np.float32] = np.array([_SIDE[name] for name in names], np.float32)
    matrix /= matrix.sum(axis=0).max()
    _say_mixed(names)
    return matrix


@functools.cache
def _say_mixed(names: tuple[str, ...]) -> None:
    log.info(
        "files of %d channels (%s) are mixed down to two, scaled so that none can clip", len(names), " ".join(names)
    )


# ---- writing -----------------------------------------------------------------------------------------------------------

# suffix: FFmpeg encoder, muxer, bits per second and channel, rates the encoder takes (empty: any)
_ENCODERS = {
    ".mp3": ("libmp3lame", "mp3", 112_000, (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
    ".m4a": (
        "aac",
        "ipod",
        96_000,
        (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
    ),
    ".opus": ("libopus", "opus", 80_000, (48000,)),
}
_PCM = {".wav": "WAV", ".flac": "FLAC", ".aiff": "AIFF"}


def write(
    path: str | os.PathLike[str], audio: npt.ArrayLike, sr_hz: int, *, tags: Mapping[str, str] | None = None
) -> None:
    """Writes audio [T] or [T, C], C = 1 or 2, in the format of the suffix: wav, flac, aiff, mp3, ogg, opus or m4a.

    Samples are clipped to [-1, 1]. wav, flac and aiff hold 16 bits: round(x * 32768), halves to even, at most 32767, so
    what was read from 16 bits is written unchanged. A rate that an encoder does not know is raised to the next it does.
    `tags`: artist, title, genre, lyrics, comment, date, album; wav and aiff keep only artist, title and genre.
    The file appears whole or not at all. Raises DataError for an unknown suffix or audio that cannot be written.
    """
    suffix = Path(path).suffix.lower()
    samples = np.asarray(audio, np.float32)
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or samples.shape[1] not in (1, 2) or not np.isfinite(samples).all():
        raise AudioError(path, f"cannot be written: shape {samples.shape} must be [T] or [T, 1 or 2], all finite")
    samples = np.clip(samples, -1, 1)
    said = {key.lower(): value for key, value in (tags or {}).items() if value}
    if suffix in _PCM:
        data = _pcm_file(samples, sr_hz, _PCM[suffix], said)
        data = xiph.tagged_flac(data, said) if suffix == ".flac" else data
    elif suffix == ".ogg":
        data = xiph.tagged_vorbis(_vorbis_file(samples, sr_hz), said)
    elif suffix in _ENCODERS:
        data = _encoded(samples, sr_hz, suffix, said)
    else:
        accepted = " ".join(sorted([*_PCM, *_ENCODERS, ".ogg"]))
        raise AudioError(path, f"cannot be written: the suffix must be one of {accepted}")
    files.publish_bytes(Path(path), data)


def to_pcm16(audio: Audio) -> npt.NDArray[np.int16]:
    """Full scale 1 to 16 bits: round(x * 32768), halves to even, limited to what fits."""
    pcm: npt.NDArray[np.int16] = np.clip(np.rint(audio * np.float32(32768)), -32768, 32767).astype(np.int16)
    return pcm


def _pcm_file(samples: Audio, sr_hz: int, container: str, tags: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sr_hz, samples.shape[1], "PCM_16", format=container) as sound:
        for name in {"artist", "title", "genre"} & tags.keys() if container != "FLAC" else ():
            setattr(sound, name, tags[name])
        sound.write(to_pcm16(samples))
    return buffer.getvalue()


def _vorbis_file(samples: Audio, sr_hz: int) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sr_hz, samples.shape[1], "VORBIS", format="OGG") as sound:
        for begin in range(0, len(samples), _BLOCK):  # libsndfile 1.2 overflows its stack on long single writes
            sound.write(samples[begin : begin + _BLOCK])
    return buffer.getvalue()


def _encoded(samples: Audio, sr_hz: int, suffix: str, tags: Mapping[str, str]) -> bytes:
    codec, muxer, bit_rate, rates = _ENCODERS[suffix]
    rate = next((known for known in rates if known >= sr_hz), rates[-1])
    samples, channels = resample(samples, sr_hz, rate), samples.shape[1]
    layout = "mono" if channels == 1 else "stereo"
    options = {"fflags": "+bitexact"} | ({"id3v2_version": "0"} if suffix == ".mp3" else {})
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=muxer, options=options) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = bit_rate * channels if rate > 16000 else bit_rate * channels // 2
        if suffix != ".mp3":
            (stream if suffix == ".opus" else container).metadata.update(tags)
        for begin in range(0, len(samples), _BLOCK):
            planes = np.ascontiguousarray(samples[begin : begin + _BLOCK].T)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return (id3_tag(tags) if suffix == ".mp3" else b"") + buffer.getvalue()
