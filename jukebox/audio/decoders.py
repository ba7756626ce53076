"""Decoders: soundfile (libsndfile) and av (FFmpeg) behind one Source that begins at any sample, exactly."""

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import IO, Any, Protocol

import av
import numpy as np
import numpy.typing as npt
import soundfile

from jukebox.audio import xiph
from jukebox.audio.kinds import BLOCK, BY_SOUNDFILE, DECLARES_TRULY, DEMUXER, Audio, AudioError, opened_file

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
_RUN_UP_SEC = 0.3  # Opus needs 254 ms after a seek until it equals a straight decode (measured), mp3 84 ms
_DRM = {"drms", "enca", "aavd"}  # sample entries of encrypted MP4 audio: FairPlay, Common Encryption, Audible


class Source(Protocol):
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
def opened(path: str | os.PathLike[str]) -> Iterator[Source]:
    """The file as a source, every fault of the decoders as an AudioError."""
    with opened_file(path) as (file, kind), ExitStack() as stack:
        try:
            yield _checked(_source(path, file, kind, stack))
        except (soundfile.LibsndfileError, av.FFmpegError) as error:
            raise AudioError(path, f"cannot be decoded as {kind} ({_first_line(error)})") from None


def _source(path: str | os.PathLike[str], file: IO[bytes], kind: str, stack: ExitStack) -> Source:
    """The decoder for a file; what `stack` holds must be left when it is no longer used."""
    if kind in BY_SOUNDFILE:
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
    return _AvSource(path, file, stack.enter_context(container(path, file, kind)), kind)


def _first_line(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return text.strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _checked(source: Source) -> Source:
    if not MIN_RATE_HZ <= source.sr_hz <= MAX_RATE_HZ:
        raise AudioError(source.path, f"sample rate {source.sr_hz} Hz (read are {MIN_RATE_HZ} to {MAX_RATE_HZ})")
    if source.channels < 1:
        raise AudioError(source.path, "no channels")
    if source.channels > 8:
        raise AudioError(source.path, f"{source.channels} channels (at most 8 can be mixed down)")
    return source


def check_complete(source: Source, decoded_samples: int) -> None:
    """Raises if clearly less came out (0.1 s, room for encoder padding) than the file declares."""
    if decoded_samples == 0:
        raise AudioError(source.path, "no audio frames")
    declared = source.declared_samples if source.format in DECLARES_TRULY else 0
    if declared - decoded_samples > 0.1 * source.sr_hz:
        decoded_sec, declared_sec = decoded_samples / source.sr_hz, declared / source.sr_hz
        raise AudioError(source.path, f"decoded {decoded_sec:.2f} s of {declared_sec:.2f} s declared")
    if missing := source.missing():
        raise AudioError(source.path, missing)


_one_listener = threading.Lock()


@contextmanager
def mpg123_unheard() -> Iterator[None]:
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
            block: Audio = self._sound.read(BLOCK, dtype="float32", always_2d=True)
        return block

    def _quiet(self) -> AbstractContextManager[None]:
        return mpg123_unheard() if self.format == "mp3" else nullcontext()

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
def container(path: str | os.PathLike[str], file: IO[bytes], kind: str) -> Iterator[Any]:
    # PyAV never closes a file object that it was given; probing a wav at full length costs 20 ms for nothing
    options = {"probesize": "8192"} if kind == "wav" else {}
    try:
        with av.open(file, format=DEMUXER[kind], options=options) as container:
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
