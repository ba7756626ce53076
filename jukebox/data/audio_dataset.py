"""Chunks of fixed length out of a folder of songs: which item lies where, and reading it.

Two ways to deal songs to training and test. `chunk` is the first implementation's: all songs stand on one long axis, which
is cut into chunks, moved off the seams, and the last chunks are the test. `file`, the default, keeps each song in one
part. In both, test chunks are never shifted or blended, and random choices are a function of (seed, draw, item).
"""

import hashlib
import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Literal

import numpy as np

from jukebox.audio import io
from jukebox.data.admission import MAX_PEAK, Entry, Index, check_unchanged
from jukebox.data.split import held_out, random_numbers
from jukebox.errors import DataError
from jukebox.files import printable
from jukebox.labels.song import SongMeta

log = logging.getLogger(__name__)

_SHIFT, _BLEND = 1, 2  # separate streams of random numbers


# ---- where items lie -----------------------------------------------------------------------------------------------


def locate(n: int, shift: int, ends: Sequence[int], length: int) -> tuple[int, int]:
    """Item n of songs laid end to end -> (file, offset in it), both counted from 0, in samples.

    `ends[i]` is where file i ends on the common axis; each file is at least `length` long. The chunk at
    n * length + shift goes to the file that holds its middle; if it sticks out of it, it moves inwards by half a chunk.
    Spec 8.1; for odd lengths the published rule stuck out by one sample, here it does not.
    """
    offset = n * length + shift
    half = length // 2
    file = bisect_left(ends, offset + half)
    start, end = ends[file - 1] if file else 0, ends[file]
    if offset > end - length:
        offset = max(start, min(offset - half, end - length))
    elif offset < start:
        offset = min(end - length, offset + half)
    return file, offset - start


def chunk_table(lengths: Sequence[int], length: int, shifts: Iterable[int] | None = None) -> list[tuple[int, int]]:
    """(file, offset) of all floor(total / length) items of files of these lengths; one shift per item, default none."""
    ends = list(accumulate(lengths))
    count = ends[-1] // length if ends else 0
    moved = [0] * count if shifts is None else list(shifts)
    return [locate(n, moved[n], ends, length) for n in range(count)]


def duration_range(
    length: int, sr_hz: int, min_duration: float | None = None, max_duration: float | None = None
) -> tuple[float, float]:
    """Files kept are those of min <= seconds < max: by default from the whole second that holds one chunk (spec 8.1)."""
    shortest = ceil(length / sr_hz) if min_duration is None else max(min_duration, length / sr_hz)
    return shortest, float("inf") if max_duration is None else max_duration


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChunkRequest:
    """All that a worker process needs to read one chunk of a file as the scan saw it."""

    path: str
    size_bytes: int
    mtime_ns: int
    sr_hz: int
    offset_samples: int
    length_samples: int

    def __str__(self) -> str:
        return printable(self.path)

    def read(self) -> io.Audio:
        """The stereo audio [T, 2]. Raises AudioError if the file changed, ends early, or holds no sane samples."""
        check_unchanged(self.path, self.size_bytes, self.mtime_ns)
        return self.piece_of(self.path)

    def piece_of(self, path: str) -> io.Audio:
        """The chunk [T, 2], from the file that stands at `path`."""
        start, length = self.offset_samples, self.length_samples
        audio = io.read(path, sr_hz=self.sr_hz, channels=2, start_samples=start, length_samples=length)
        if (peak := float(np.abs(audio).max(initial=0.0))) > MAX_PEAK:
            raise io.AudioError(path, f"peak {peak:.3g} (full scale is 1)")
        return audio


def read_chunk(request: ChunkRequest) -> io.Audio:
    """What a worker process does with a request; raises AudioError."""
    return request.read()


# ---- the data set ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AudioItem:
    """One chunk: audio [T, 2], its song, where it lies in it, and the share of the left channel in a mono mix."""

    audio: io.Audio
    song: SongMeta
    offset_samples: int
    total_samples: int
    file: str
    mix: float


@dataclass(frozen=True)
class _File:
    entry: Entry
    song: SongMeta
    length_samples: int  # at the data set's rate, a part of a sample at the end not counted


class AudioDataset:
    """The chunks of one part ("train", "test" or "all") of an admitted folder.

    `songs`: one SongMeta per usable entry of the index, default unknown. `draw` (in the methods) numbers the visits to an
    item: the epoch. `left_out` lists the files outside the range of durations, with the limit. Lengths are in samples,
    durations in seconds. Raises DataError if the part has no items.
    """

    def __init__(
        self,
        index: Index,
        songs: Sequence[SongMeta] | None = None,
        *,
        sr_hz: int,
        sample_length: int,
        part: Literal["train", "test", "all"] = "train",
        split: Literal["file", "chunk"] = "file",
        train_test_split: float = 0.9,
        aug_shift: bool = False,
        aug_blend: bool = False,
        min_duration: float | None = None,
        max_duration: float | None = None,
        seed: int = 0,
    ) -> None:
        self.index, self.sr_hz, self.sample_length = index, sr_hz, sample_length
        self.part, self.split, self.seed = part, split, seed
        self.aug_shift, self.aug_blend = aug_shift and part != "test", aug_blend and part != "test"
        self.left_out: list[tuple[str, str]] = []
        usable = index.usable
        described = [SongMeta()] * len(usable) if songs is None else songs
        assert len(described) == len(usable), "one song per usable file"
        kept = self._kept(zip(usable, described, strict=True), min_duration, max_duration)
        if not kept:
            raise DataError(self._nothing_left(len(usable)))
        if self.left_out and part != "test":
            shown = "".join(f"\n  {printable(file)}: {why}" for file, why in self.left_out[:10])
            log.info("%d of %d files are too short or too long and left out:%s", len(self.left_out), len(usable), shown)
        if split == "file":
            self.files = _part_of_files(kept, sample_length, part, train_test_split, seed)
            self._ends = list(accumulate(file.length_samples // sample_length for file in self.files))
            self._items = range(self._ends[-1] if self._ends else 0)
        else:
            self.files = kept
            self._ends = list(accumulate(file.length_samples for file in kept))
            count = self._ends[-1] // sample_length
            bound = int(count * train_test_split)
            self._items = {"train": range(bound), "test": range(bound, count), "all": range(count)}[part]
        if not self._items:
            raise DataError(
                f"{printable(str(index.root))}: {len(kept)} usable files leave nothing for the {part} part. Give more "
                f"files, another --train_test_split (now {train_test_split:g}), or --split=chunk to divide songs."
            )

    def __len__(self) -> int:
        return len(self._items)

    def place(self, index: int, draw: int = 0) -> tuple[int, int]:
        """(file, offset in samples) of an item, the random shift of this draw included."""
        if self.split == "chunk":
            n, half = self._items[index], self.sample_length // 2
            shift = int(self._random(index, draw, _SHIFT).integers(-half, half)) if self.aug_shift and half else 0
            return locate(n, shift, self._ends, self.sample_length)
        file = bisect_right(self._ends, index)
        chunk = index - (self._ends[file - 1] if file else 0)
        if not self.aug_shift:
            return file, chunk * self.sample_length
        # Each of a song's chunks begins anywhere in its own equal share of the song, so no region is preferred.
        begins = self.files[file].length_samples - self.sample_length + 1
        chunks = self.files[file].length_samples // self.sample_length
        low, high = begins * chunk // chunks, begins * (chunk + 1) // chunks
        return file, int(self._random(index, draw, _SHIFT).integers(low, high))

    def mix(self, index: int, draw: int = 0) -> float:
        """The share of the left channel in the mono mix: 0.5, or drawn from [0, 1) with aug_blend (spec 2.7)."""
        return float(self._random(index, draw, _BLEND).random()) if self.aug_blend else 0.5

    def request(self, index: int, draw: int = 0) -> ChunkRequest:
        """What a worker needs to read an item."""
        file, offset = self.place(index, draw)
        entry = self.files[file].entry
        path = os.path.join(self.index.root, entry.file)
        return ChunkRequest(path, entry.size_bytes, entry.mtime_ns, self.sr_hz, offset, self.sample_length)

    def describe(self, index: int, draw: int, audio: io.Audio) -> AudioItem:
        """An item whose audio was read elsewhere."""
        file, offset = self.place(index, draw)
        about = self.files[file]
        return AudioItem(audio, about.song, offset, about.length_samples, about.entry.file, self.mix(index, draw))

    def item(self, index: int, draw: int = 0) -> AudioItem:
        """Reads an item here and now. Raises AudioError as `read_chunk` does."""
        return self.describe(index, draw, read_chunk(self.request(index, draw)))

    def fingerprint(self) -> str:
        """Changes when the items do: other files, other lengths, another rate, division or seed."""
        how = (
            self.sr_hz,
            self.sample_length,
            self.part,
            self.split,
            self.seed,
            self.aug_shift,
            self._items,
            io.RESAMPLER,
        )
        what = [(file.entry.file, file.entry.size_bytes, file.length_samples) for file in self.files]
        return hashlib.sha256(repr((how, what)).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def _random(self, index: int, draw: int, stream: int) -> np.random.Generator:
        return random_numbers(self.seed, draw, index, stream)

    def _kept(
        self, described: Iterable[tuple[Entry, SongMeta]], min_duration: float | None, max_duration: float | None
    ) -> list[_File]:
        shortest, longest = duration_range(self.sample_length, self.sr_hz, min_duration, max_duration)
        if self.split == "file" and min_duration is None:
            shortest = self.sample_length / self.sr_hz
        kept = []
        for entry, song in described:
            length = entry.length_samples * self.sr_hz // entry.sr_hz
            if length < self.sample_length or entry.length_sec < shortest:
                self.left_out.append((entry.file, f"{entry.length_sec:.2f} s, shorter than {shortest:.2f} s"))
            elif entry.length_sec >= longest:
                self.left_out.append((entry.file, f"{entry.length_sec:.2f} s, not below {longest:.2f} s"))
            else:
                kept.append(_File(entry, song, length))
        return kept

    def _nothing_left(self, usable: int) -> str:
        shown = "".join(f"\n  {printable(file)}: {why}" for file, why in self.left_out[:10])
        return (
            f"{printable(str(self.index.root))}: none of {usable} usable files has a length that fits. Lower "
            f"--sample_length (now {self.sample_length} samples = {self.sample_length / self.sr_hz:.2f} s) or "
            f"--min_duration, or raise --max_duration.{shown}"
        )


def _part_of_files(files: list[_File], length: int, part: str, train_share: float, seed: int) -> list[_File]:
    if part == "all":
        return files
    test = held_out({file.entry.file: file.length_samples // length for file in files}, train_share, seed)
    return [file for file in files if (file.entry.file in test) == (part == "test")]
