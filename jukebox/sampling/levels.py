"""Songs while they are made, and one window of one level for a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jukebox.labels.vector import Label, Labeller
from jukebox.prior.model import Prior
from jukebox.sampling.decode import decode_window
from jukebox.sampling.graphs import Steps
from jukebox.sampling.logits import draw, gumbel, noise_keys
from jukebox.sampling.plan import LevelPlan, Window
from jukebox.sampling.requests import LevelSettings, Request

Codes = NDArray[np.int64]


@dataclass
class Song:
    """An item while it is made: the codes it has so far, per level; length in samples; length of the imagined whole.

    origin_samples: where in that whole its codes begin, for an excerpt; a top code begins there.
    """

    request: Request
    length_samples: int
    total_samples: int
    codes: dict[int, Codes] = field(default_factory=dict)
    origin_samples: int = 0

    def have(self, level: int) -> int:
        """Codes of a level that are there."""
        return len(self.codes[level]) if level in self.codes else 0


@dataclass
class LevelSinger:
    """Samples windows of one level, all with the same settings. labeller None for an unlabelled prior; dtype of activations
    and caches; steps: recorded ones, to use again."""

    prior: Prior
    plan: LevelPlan
    settings: LevelSettings
    labeller: Labeller | None = None
    dtype: torch.dtype = torch.float32
    mask_lyric_codes: bool = False
    steps: Steps | None = None

    def extend(
        self, songs: Sequence[Song], window: Window, on_code: Callable[[int], None] | None = None
    ) -> None:  # fmt: skip
        """Sample a window of every song, which is the next one of each.

        on_code is called with the number of songs after each new code.
        """
        level = self.plan.level
        made = self._window(songs, window, on_code)
        for song, codes in zip(songs, made, strict=True):
            before = song.codes.get(level, np.zeros(0, np.int64))
            song.codes[level] = np.concatenate([before, codes[window.given :]])

    def _window(self, songs: Sequence[Song], window: Window, on_code: Callable[[int], None] | None) -> Codes:
        level, device = self.plan.level, next(self.prior.parameters()).device
        given: list[Any] = [
            song.codes[level][window.start : window.start + window.given] if window.given else [] for song in songs
        ]
        given_codes = torch.from_numpy(np.asarray(given, dtype=np.int64).reshape(len(songs), window.given)).to(device)
        seeds = torch.tensor([song.request.seed for song in songs])
        keys = noise_keys(seeds, torch.tensor([song.request.item for song in songs]), level).to(device)

        (origin,) = {song.origin_samples for song in songs}
        first = origin // self.plan.samples_per_code + window.start  # so noise is that of the whole song

        def choose(logits: Tensor, place: int) -> Tensor:
            return draw(logits, self.settings.knobs, gumbel(keys, first + place, logits.shape[1]))

        codes = decode_window(
            self.prior, given_codes, window.length, choose, upper=self._upper(songs, window, device),
            y=self._labels(songs, window, device), dtype=self.dtype, chunk_size=self.settings.chunk_size,
            mask_lyric_codes=self.mask_lyric_codes, on_code=(lambda: on_code(len(songs))) if on_code else None,
            steps=self.steps,
        )  # fmt: skip
        return codes.cpu().numpy()

    def _upper(self, songs: Sequence[Song], window: Window, device: torch.device) -> Tensor | None:
        ratio = self.plan.ratio
        if ratio is None:
            return None
        start, count = window.start // ratio, self.plan.n_ctx // ratio
        codes = np.stack([song.codes[self.plan.level + 1][start : start + count] for song in songs])
        return torch.from_numpy(codes).to(device)

    def _labels(self, songs: Sequence[Song], window: Window, device: torch.device) -> Tensor | None:
        if self.labeller is None:
            return None
        start = window.start * self.plan.samples_per_code
        found = [
            self.labeller.at(self.label(song), song.origin_samples + start, self.prior.sample_length)[0] for song in songs
        ]  # fmt: skip
        return torch.from_numpy(np.stack(found)).to(device)

    def label(self, song: Song) -> Label:
        """The label of the whole song, from which those of its windows are made."""
        assert self.labeller is not None
        return self.labeller.full(song.request.song, song.total_samples, 0)
