"""Learning-rate schedules as functions of the number of steps taken so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jukebox.errors import HparamsError


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


# ------------------------------------------------------------------------------------ schedules named by model configs


class Rate(Protocol):
    """Any learning rate as a function of the steps taken. lr: the base rate. ends: whether it reaches 0 for good."""

    @property
    def lr(self) -> float:
        """The base rate."""

    @property
    def ends(self) -> bool:
        """Whether the rate reaches 0, which ends a run."""

    def __call__(self, step: int) -> float:
        """The rate used by the step that comes after `step` steps."""


@dataclass(frozen=True)
class Constant:
    """Always the same rate."""

    lr: float
    ends: bool = False

    def __call__(self, step: int) -> float:
        """The rate."""
        return self.lr


@dataclass(frozen=True)
class InverseLR:
    """(1 - warmup^(k + 1)) * max(final_lr, lr * (1 + k / inv_gamma)^-power) after k steps."""

    lr: float
    inv_gamma: float = 1.0
    power: float = 1.0
    warmup: float = 0.0
    final_lr: float = 0.0
    ends: bool = False

    def __call__(self, step: int) -> float:
        """The rate used by the step that comes after `step` steps."""
        decayed = self.lr * (1 + step / self.inv_gamma) ** -self.power
        return float((1 - self.warmup ** (step + 1)) * max(self.final_lr, decayed))


class TorchSchedule:
    """Any scheduler of torch that depends on the number of steps alone, by its class name and arguments.

    Raises HparamsError for a name or arguments that torch does not have.
    """

    ends = False

    def __init__(self, lr: float, kind: str, config: Mapping[str, Any]) -> None:
        self.lr, self._kind, self._config = lr, kind, dict(config)
        self._start()

    def _start(self) -> None:
        import torch

        made = getattr(torch.optim.lr_scheduler, self._kind, None)
        if not isinstance(made, type) or self._kind == "ReduceLROnPlateau":
            raise HparamsError(
                f"scheduler type {self._kind!r:.60}: neither InverseLR nor a scheduler of torch that steps alone"
            )
        self._optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=self.lr, momentum=0.9)
        try:
            self._scheduler = made(self._optimiser, **self._config)
        except (TypeError, ValueError) as error:
            raise HparamsError(f"scheduler {self._kind}: {error}") from None
        self._optimiser.step()  # torch warns where a schedule moves before its optimiser
        self._at = 0

    def __call__(self, step: int) -> float:
        """The rate used by the step that comes after `step` steps."""
        if step < self._at:
            self._start()
        while self._at < step:
            self._scheduler.step()
            self._at += 1
        return float(self._optimiser.param_groups[0]["lr"])


def named_schedule(lr: float, kind: str, config: Mapping[str, Any]) -> Rate:
    """The schedule that a model config names. Raises HparamsError."""
    if kind != "InverseLR":
        return TorchSchedule(lr, kind, config)
    wrong = {
        k: v for k, v in config.items() if k not in _INVERSE or isinstance(v, bool) or not isinstance(v, int | float)
    }
    if wrong:
        raise HparamsError(f"scheduler InverseLR: {wrong} fits none of the numbers {', '.join(_INVERSE)}")
    return InverseLR(lr, **config)


_INVERSE = ("inv_gamma", "power", "warmup", "final_lr")
