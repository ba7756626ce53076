"""The priors of a run, in memory: all of them where they fit together, else the one at work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from jukebox.hparams.resolve import Resolved
from jukebox.models import build, model_set
from jukebox.models.model_set import ModelSet
from jukebox.prior.model import Prior
from jukebox.sampling import precision
from jukebox.sampling.graphs import Steps
from jukebox.sampling.hps import DrawHps
from jukebox.sampling.levels import LevelSinger
from jukebox.sampling.prepare import Level
from jukebox.sampling.requests import LevelSettings


class Choir:
    """Loads priors when they are asked for and packs them in the form that --dtype asks for.

    levels: what is known of each; together: keep every prior, else drop one before the next is loaded. record: folder that
    keeps which form was found to pass, for a run that goes on; None = measure.
    """

    def __init__(
        self, models: ModelSet, vqvae: Resolved, levels: Mapping[int, Level], draw: DrawHps, device: str,
        *, together: bool = True, record: Path | None = None,
    ) -> None:  # fmt: skip
        self.models, self.vqvae, self.levels, self.draw, self.device = models, vqvae, levels, draw, device
        self.together, self.record = together, record
        self._loaded: dict[int, tuple[Prior, torch.dtype]] = {}
        self._steps: dict[int, Steps] = {}  # recorded, with the memory they go on in

    def prior(self, level: int) -> tuple[Prior, torch.dtype]:
        """The prior of a level, packed, with the voices of its blends, and the dtype of its caches."""
        if level not in self._loaded:
            if not self.together:
                self._steps.clear()
                self._loaded.clear()
            part = self.models.priors[level]
            assert part is not None
            prior, _ = model_set.load_prior(part, self.vqvae, level)
            self.levels[level].add_blends(prior)
            record = self.record / f"precision_{level}.json" if self.record else None
            self._loaded[level] = prior, precision.pack(prior, self.draw.dtype, record, self.device)
        return self._loaded[level]

    def singer(self, level: int, settings: LevelSettings) -> LevelSinger:
        """Who samples windows of a level with these settings."""
        prior, dtype = self.prior(level)
        known = self.levels[level]
        steps = self._steps.setdefault(level, Steps())
        return LevelSinger(prior, known.plan, settings, known.labeller, dtype, self.draw.mask_lyric_codes, steps)


def parameters(level: Level) -> int:
    """Numbers in a prior; it is not loaded."""
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in build.build_prior(level.hps).parameters())
