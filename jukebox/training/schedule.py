"""Learning-rate schedules as functions of the number of steps taken so far."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """lr * lr_scale * warm-up * decay; the fields are the hyperparameters of the same name.

    Warm-up rises linearly from 0 (so the very first step has rate 0, as published). Decay is lr_gamma after every
    lr_decay steps, or from lr_start_linear_decay on a line or a cosine to 0 within lr_decay steps.
    """

    lr: float
    lr_scale: float = 1.0
    lr_warmup: float = 100.0
    lr_decay: float = 1e10
    lr_gamma: float = 1.0
    lr_use_linear_decay: bool = False
    lr_use_cosine_decay: bool = False
    lr_start_linear_decay: int = 0

    def __call__(self, step: int) -> float:
        """The rate used by the step that comes after `step` steps."""
        warm = min(1.0, step / self.lr_warmup) if self.lr_warmup else 1.0
        factor = self.lr_scale * warm
        if not self.ends:
            return float(self.lr * factor * self.lr_gamma ** (step // self.lr_decay))
        decayed = min(1.0, max(0.0, step - self.lr_start_linear_decay) / self.lr_decay)
        if self.lr_use_cosine_decay:
            return self.lr * factor * 0.5 * (1.0 + math.cos(math.pi * decayed)) if decayed < 1.0 else 0.0
        return self.lr * factor * max(0.0, 1.0 - decayed)

    @property
    def ends(self) -> bool:
        """Whether the rate reaches 0, which ends a run."""
        return self.lr_use_linear_decay or self.lr_use_cosine_decay
