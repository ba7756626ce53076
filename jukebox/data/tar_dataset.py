"""The sound of WebDataset tars as training data: the face and the rules of a folder of songs, read member by member.

Every sample comes once in an epoch, in an order of the seed. `remove_silence` and `volume_norm` change what is read
(spec/autoencoders.md 2.3); all they draw is a function of (seed, draw, item).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jukebox.audio import io
from jukebox.audio.loudness import at_loudness, without_long_silence
from jukebox.data import admission
from jukebox.data.audio_dataset import AudioDataset, ChunkRequest
from jukebox.data.dataset_config import WebDataset
from jukebox.data.split import random_numbers
from jukebox.data.wds import Sample
from jukebox.errors import UsageError

_SHAPE = 8  # a stream of random numbers


@dataclass(frozen=True)
class TarRequest(ChunkRequest):
    """A chunk of a sample. `rules` say what is done to its sound, with random numbers of `draws` (seed, draw, item)."""

    sample: Sample
    rules: WebDataset
    draws: tuple[int, int, int]
    anywhere: bool  # a window of shortened sound begins at random

    def read(self) -> io.Audio:
        """The stereo audio [T, 2]. Raises AudioError if the tar changed, ends early, or holds no sane samples."""
        draw = random_numbers(*self.draws, _SHAPE)
        with self.sample.unpacked(self.sample.audio) as path:
            audio = self._shortened(path, draw) if self.rules.remove_silence else self.piece_of(path)
        if self.rules.volume_norm:
            target_db, spread_db = self.rules.volume_norm_param
            audio = at_loudness(audio, self.sr_hz, target_db + float(draw.uniform(-spread_db, spread_db)))
        return audio

    def _shortened(self, path: str, draw: np.random.Generator) -> io.Audio:
        """A window of the mono sample without its long silences, the same on both sides; silence follows a short one."""
        below, keep_sec = self.rules.silence_threshold
        mono = io.read(path, sr_hz=self.sr_hz, channels=1)[:, 0]
        mono = without_long_silence(mono, self.sr_hz, below, keep_sec, self.rules.max_silence_duration, draw)
        room = max(0, len(mono) - self.length_samples)
        start = int(draw.integers(0, room + 1)) if self.anywhere else 0
        mono = mono[start : start + self.length_samples]
        return np.repeat(np.pad(mono, (0, self.length_samples - len(mono)))[:, None], 2, axis=1)


class TarDataset(AudioDataset):
    """The chunks of admitted samples, dealt as those of a folder; with `remove_silence` one window of each sample.

    Takes what AudioDataset takes besides index and songs. Raises DataError without items, UsageError for silence that is
    to be removed from stereo or from chunks.
    """

    def __init__(
        self, config: WebDataset, admitted: Sequence[tuple[Sample, admission.Entry]], *, channels: int, **how: Any
    ) -> None:
        if config.remove_silence and (channels != 1 or how.get("split") == "chunk"):
            raise UsageError("remove_silence of a wds data set needs mono (--channels=1) and --split=file.")
        self.config = config
        self._samples = {entry.file: sample for sample, entry in admitted}
        root = Path(config.datasets[0].s3_path or config.datasets[0].path)
        index = admission.Index(root, tuple(entry for _, entry in admitted))
        super().__init__(index, [sample.song() for sample, _ in admitted], **how)
        if config.remove_silence:
            self._items = range(len(self.files))

    def place(self, index: int, draw: int = 0) -> tuple[int, int]:
        """(sample, offset in samples) of an item; where silence is removed, windows count as from the beginning."""
        return (index, 0) if self.config.remove_silence else super().place(index, draw)

    def request(self, index: int, draw: int = 0) -> ChunkRequest:
        """What a worker needs to read an item."""
        file, offset = self.place(index, draw)
        entry = self.files[file].entry
        sample = self._samples[entry.file]
        return TarRequest(
            f"{sample.tar}/{sample.name}", entry.size_bytes, entry.mtime_ns, self.sr_hz, offset, self.sample_length,
            sample, self.config, (self.seed, draw, index), self.aug_shift,
        )  # fmt: skip

    def fingerprint(self) -> str:
        """Changes when the items do, or what is done to their sound."""
        return hashlib.sha256(f"{super().fingerprint()} {self.config}".encode()).hexdigest()[:16]
