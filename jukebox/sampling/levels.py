"""Walks a plan: levels from top to bottom, windows from left to right, songs in batches."""

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
from jukebox.sampling.logits import draw, gumbel, noise_keys
from jukebox.sampling.plan import LevelPlan, Window, next_window
from jukebox.sampling.requests import LevelSettings, Request

Codes = NDArray[np.int64]


@dataclass
class Song:
    """An item while it is made: the codes it has so far, per level; length in samples; length of the imagined whole."""

    request: Request
    length_samples: int
    total_samples: int
    codes: dict[int, Codes] = field(default_factory=dict)

    def have(self, level: int) -> int:
        """Codes of a level that are there."""
        return len(self.codes[level]) if level in self.codes else 0


@dataclass
class LevelSinger:
    """Samples one level of many songs. labeller None for an unlabelled prior; dtype of activations and caches."""

    prior: Prior
    plan: LevelPlan
    settings: LevelSettings
    labeller: Labeller | None = None
    dtype: torch.dtype = torch.float32
    mask_lyric_codes: bool = False

    def sing(
        self, songs: Sequence[Song], on_window: Callable[[Sequence[Song], Window], None],
        on_code: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        """Extend every song to its length at this level.

        on_window is called with the songs of each finished window, on_code with the number of songs after each step.
        Songs whose next windows look alike are sampled together, at most max_batch_size of them.
        """
        while True:
            waiting = [(song, window) for song in songs if (window := self._next(song))]
            if not waiting:
                return
            first = waiting[0][1]
            batch = [song for song, window in waiting if window == first][: self.settings.max_batch_size]
            made = self._window(batch, first, on_code)
            for song, codes in zip(batch, made, strict=True):
                before = song.codes.get(self.plan.level, np.zeros(0, np.int64))
                song.codes[self.plan.level] = np.concatenate([before, codes[first.given :]])
            on_window(batch, first)

    def _next(self, song: Song) -> Window | None:
        plan = self.plan
        return next_window(plan.total(song.length_samples), plan.n_ctx, plan.hop, song.have(plan.level))

    def _window(self, songs: list[Song], window: Window, on_code: Callable[[int], None] | None) -> Codes:
        level, device = self.plan.level, next(self.prior.parameters()).device
        given: list[Any] = [
            song.codes[level][window.start : window.start + window.given] if window.given else [] for song in songs
        ]
        given_codes = torch.from_numpy(np.asarray(given, dtype=np.int64).reshape(len(songs), window.given)).to(device)
        seeds = torch.tensor([song.request.seed for song in songs])
        keys = noise_keys(seeds, torch.tensor([song.request.item for song in songs]), level).to(device)

        def choose(logits: Tensor, place: int) -> Tensor:
            return draw(logits, self.settings.knobs, gumbel(keys, window.start + place, logits.shape[1]))

        codes = decode_window(
            self.prior, given_codes, window.length, choose, upper=self._upper(songs, window, device),
            y=self._labels(songs, window, device), dtype=self.dtype, chunk_size=self.settings.chunk_size,
            mask_lyric_codes=self.mask_lyric_codes, on_code=(lambda: on_code(len(songs))) if on_code else None,
        )  # fmt: skip
        return codes.cpu().numpy()

    def _upper(self, songs: list[Song], window: Window, device: torch.device) -> Tensor | None:
        ratio = self.plan.ratio
        if ratio is None:
            return None
        start, count = window.start // ratio, self.plan.n_ctx // ratio
        codes = np.stack([song.codes[self.plan.level + 1][start : start + count] for song in songs])
        return torch.from_numpy(codes).to(device)

    def _labels(self, songs: list[Song], window: Window, device: torch.device) -> Tensor | None:
        if self.labeller is None:
            return None
        start_samples = window.start * self.plan.samples_per_code
        found = [self.labeller.at(self.label(song), start_samples, self.prior.sample_length)[0] for song in songs]
        return torch.from_numpy(np.stack(found)).to(device)

    def label(self, song: Song) -> Label:
        """The label of the whole song, from which those of its windows are made."""
        assert self.labeller is not None
        return self.labeller.full(song.request.song, song.total_samples, 0)
