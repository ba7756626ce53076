"""Several folders of songs as one data set."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from jukebox.audio import io
from jukebox.data.audio_dataset import AudioDataset, AudioItem, ChunkRequest


def joined(parts: Sequence[AudioDataset]) -> AudioDataset:
    """Data sets as one."""
    return parts[0] if len(parts) == 1 else JoinedDataset(parts)


class JoinedDataset(AudioDataset):
    """The items of data sets of one rate and length, one set after the other; files are numbered through."""

    def __init__(self, parts: Sequence[AudioDataset]) -> None:
        self.parts = list(parts)
        self.files = [file for part in parts for file in part.files]
        self.left_out = [entry for part in parts for entry in part.left_out]
        self.sr_hz, self.sample_length, self.part = parts[0].sr_hz, parts[0].sample_length, parts[0].part
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self._first_files = [0, *accumulate(len(part.files) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def _find(self, index: int) -> tuple[int, int]:
        """(data set, index in it)."""
        part = bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]

    def place(self, index: int, draw: int = 0) -> tuple[int, int]:
        """(file, offset in samples) of an item, the random shift of this draw included."""
        part, own = self._find(index)
        file, offset = self.parts[part].place(own, draw)
        return self._first_files[part] + file, offset

    def mix(self, index: int, draw: int = 0) -> float:
        """The share of the left channel in the mono mix."""
        part, own = self._find(index)
        return self.parts[part].mix(own, draw)

    def request(self, index: int, draw: int = 0) -> ChunkRequest:
        """What a worker needs to read an item."""
        part, own = self._find(index)
        return self.parts[part].request(own, draw)

    def describe(self, index: int, draw: int, audio: io.Audio) -> AudioItem:
        """An item whose audio was read elsewhere."""
        part, own = self._find(index)
        return self.parts[part].describe(own, draw, audio)

    def fingerprint(self) -> str:
        """Changes when the items do."""
        return hashlib.sha256(" ".join(part.fingerprint() for part in self.parts).encode()).hexdigest()[:16]
