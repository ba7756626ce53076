"""Sound files in and out: the face of this room, the only one that knows soundfile, av and soxr.

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

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jukebox import files
from jukebox.audio import encoders
from jukebox.audio.convert import RESAMPLER, converted, resample, resampled_length
from jukebox.audio.decoders import MAX_RATE_HZ, MIN_RATE_HZ, check_complete, container, opened
from jukebox.audio.encoders import to_pcm16
from jukebox.audio.kinds import DECLARES_TRULY, Audio, AudioError, opened_file
from jukebox.errors import DataError

__all__ = [
    "EXTENSIONS", "MAX_RATE_HZ", "MIN_RATE_HZ", "RESAMPLER", "TOO_LONG", "Audio", "AudioError", "AudioInfo", "Survey",
    "find_audio", "metadata", "probe", "read", "resample", "resampled_length", "stream", "survey", "to_pcm16", "write",
]  # fmt: skip

EXTENSIONS = frozenset((
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".m4p", ".aax", ".aac", ".aif", ".aiff", ".aifc",
    ".caf", ".au", ".w64", ".rf64", ".wma", ".mp4", ".mov", ".mkv", ".mka", ".webm",
))  # fmt: skip

log = logging.getLogger(__name__)


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


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """What the header says, without decoding. Raises AudioError for what is no sound file."""
    with opened(path) as source:
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
    with opened(path) as source:
        rate = sr_hz or source.sr_hz
        start = round(start_sec * rate) if start_samples is None else start_samples
        blocks, got = [], 0
        for block in converted(source, rate, channels, start):
            blocks.append(block if length_samples is None else block[: length_samples - got])
            got += len(blocks[-1])
            if length_samples is not None and got >= length_samples:
                break
        if length_samples is None:
            check_complete(source, start * source.sr_hz // rate + got * source.sr_hz // rate)
        elif got < length_samples:
            raise AudioError(path, f"decoded {got} of the {length_samples} samples asked for at sample {start}")
        return np.concatenate(blocks) if blocks else np.zeros((0, channels or source.channels), np.float32)


def stream(path: str | os.PathLike[str], sr_hz: int, channels: int, block: int) -> Iterator[Audio]:
    """The whole file, decoded once from its start, as blocks [block, channels]; only the last may be shorter.

    Together they equal `read` of everything; memory does not grow with the file. Raises AudioError as `read` does.
    """
    with opened(path) as source:
        kept, got = np.zeros((0, channels), np.float32), 0
        for piece in converted(source, sr_hz, channels, 0):
            kept, got = np.concatenate([kept, piece]), got + len(piece)
            while len(kept) >= block:
                yield kept[:block]
                kept = kept[block:]
        check_complete(source, got * source.sr_hz // sr_hz)
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
    with opened(path) as source:
        limit = max_sec * source.sr_hz or float("inf")
        length, peak = 0, 0.0
        for block in chain([np.zeros((0, 1), np.float32)], converted(source, source.sr_hz, None, 0)):
            length, peak = length + len(block), max(peak, float(np.abs(block).max(initial=0.0)))
            if max(length, source.declared_samples if source.format in DECLARES_TRULY else 0) > limit:
                raise AudioError(path, f"{TOO_LONG} {max_sec:g} s (--max_audio_sec)")
        check_complete(source, length)
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
    with opened_file(path) as (file, kind), container(path, file, kind) as inside:
        streams = inside.streams.audio
        found = chain(inside.metadata.items(), streams[0].metadata.items() if streams else ())
        return {str(key).lower(): str(value) for key, value in found}


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
    if suffix not in encoders.SUFFIXES:
        accepted = " ".join(sorted(encoders.SUFFIXES))
        raise AudioError(path, f"cannot be written: the suffix must be one of {accepted}")
    files.publish_bytes(Path(path), encoders.encoded(samples, sr_hz, suffix, said))
