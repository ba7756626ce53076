"""A player owns parameters and moves them: optimiser, schedule, loss scaler, clipping and EMA, over all ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jukebox.errors import UserError
from jukebox.parallel.comm import BUCKET_BYTES, Comm
from jukebox.training.ema import EMA
from jukebox.training.optim import LossScaler
from jukebox.training.schedule import Rate

log = logging.getLogger(__name__)

MOST_SKIPPED = 20


@dataclass(frozen=True)
class Stepped:
    """What became of one step. done: the weights moved. lr, grad_norm, loss_scale as logged."""

    done: bool
    lr: float
    grad_norm: float
    loss_scale: float

    @property
    def log2_scale(self) -> float:
        """`lg_loss_scale` as logged."""
        return math.log2(self.loss_scale)


class Player:
    """Parameters that learn together.

    `step` runs backward, averages gradients over ranks, clips, updates, and moves schedule and EMA. A step with a loss
    or gradient that is not finite on any rank, or whose norm exceeds `ignore_grad_norm`, moves nothing anywhere.
    20 steps in a row that are not finite raise UserError, unless the loss scale is still coming down.
    `accumulate`: batches per step. `bucket_bytes`: gradients sent in one message.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], optimiser: torch.optim.Optimizer, schedule: Rate, comm: Comm,
        *, ema: EMA | None, scaler: LossScaler | None = None, clip: float = 1.0, ignore_grad_norm: float = 0.0,
        accumulate: int = 1, bucket_bytes: int = BUCKET_BYTES,
    ) -> None:  # fmt: skip
        pairs = list(named)
        self.names, self.params = [n for n, _ in pairs], [p for _, p in pairs]
        self.optimiser, self.schedule, self.comm, self.ema, self.scaler = optimiser, schedule, comm, ema, scaler
        self.clip, self.ignore_grad_norm, self.accumulate = clip, ignore_grad_norm, accumulate
        self.bucket_bytes = bucket_bytes
        self.steps = 0  # schedule steps taken
        self.waiting = 0  # batches whose gradients wait for an update
        self.skipped = 0  # steps skipped in a row
        self._losses = torch.zeros(())  # of the waiting batches: a loss may overflow where its gradient does not
        self._set_lr()

    @property
    def lr(self) -> float:
        """The rate the next step will use."""
        return self.schedule(self.steps)

    @property
    def finished(self) -> bool:
        """The schedule has reached 0 for good."""
        return self.schedule.ends and self.steps > 0 and self.lr == 0.0

    def step(self, loss: Tensor) -> Stepped | None:
        """Backward and, when enough batches have come, one update. None while gradients are being summed."""
        scale = self.scaler.scale if self.scaler else 1.0
        if self.scaler and self.comm.any(not math.isfinite(float(loss.detach()) * scale)):
            return self._skip(scale, math.nan)  # as published: no backward, and the scale stays
        (loss * (scale / self.accumulate)).backward()
        self._losses = self._losses.to(loss.device) + loss.detach().float()
        self.waiting += 1
        if self.waiting < self.accumulate:
            return None
        self._average_gradients()
        norm = self._gradient_norm() / scale
        overflow = not math.isfinite(norm + float(self._losses))  # of averages, so the same on all ranks
        if self.scaler:
            self.scaler.update(overflow)
        if overflow or 0.0 < self.ignore_grad_norm < norm:
            return self._skip(scale, norm if math.isfinite(norm) else math.inf)
        if self.ema and self.ema.before_update:
            self.ema.step()
        lr = self.lr
        self._set_lr()  # an optimiser's restored state may have brought another
        self.optimiser.step(scale=scale * max(1.0, norm / self.clip))  # type: ignore[call-overload]
        self._clear()
        self.steps += 1
        self.skipped = 0
        self._set_lr()
        if self.ema and not self.ema.before_update:
            self.ema.step()
        return Stepped(True, lr, norm, scale)

    def _skip(self, scale: float, norm: float) -> Stepped:
        self._clear()
        self.skipped += 1
        if self.skipped % MOST_SKIPPED == 0:
            self._judge(scale, norm)
        return Stepped(False, self.lr, norm, scale)

    def _judge(self, scale: float, norm: float) -> None:
        """Many steps were skipped in a row: stop, unless they were large only or a smaller loss scale may help."""
        if math.isfinite(norm):
            log.info("%d steps in a row were skipped: gradient norms like %.3g are above --ignore_grad_norm=%g",
                        self.skipped, norm, self.ignore_grad_norm)  # fmt: skip
        elif self.scaler is None or self.scaler.fixed is not None or math.isnan(norm) or scale <= 1.0:
            raise UserError(
                f"The loss or its gradient was not finite in {self.skipped} steps in a row. The last checkpoint is good: "
                "lower --lr or --clip, or look at the data with --on_bad_file=error."
            )

    def _clear(self) -> None:
        self.waiting = 0
        self._losses = torch.zeros(())
        for p in self.params:
            p.grad = None

    def _set_lr(self) -> None:
        """The next step's rate, beside the base rate, as published checkpoints carry them."""
        for group in self.optimiser.param_groups:
            group |= {"lr": self.lr, "initial_lr": self.schedule.lr}

    def _average_gradients(self) -> None:
        if self.comm.size == 1:
            return
        for p in self.params:
            if p.grad is None and p.requires_grad:  # what is frozen for now stands still, weight decay included
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in self.params if p.grad is not None]
        self.comm.all_reduce_tensors([*grads, self._losses], bucket_bytes=self.bucket_bytes)
        torch._foreach_div_(grads, float(self.comm.size))

    def _gradient_norm(self) -> float:
        grads = [p.grad.float() for p in self.params if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads)) if grads else torch.zeros(1)
        return float(norms.norm())

    def restart(self, steps: int) -> None:
        """Go on from weights alone, as after `steps` steps: averages begin from them."""
        self.steps = steps
        if self.ema:
            self.ema.restart()
        self._set_lr()

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs beside the optimiser's own state; weights and averages by parameter name."""
        return {
            "steps": self.steps,
            "raw": dict(zip(self.names, (p.detach() for p in self.params), strict=True)),
            "ema": dict(zip(self.names, self.ema.averages, strict=True)) if self.ema else {},
            "ema_steps": self.ema.steps if self.ema else 0,
            "scaler": self.scaler.state_dict() if self.scaler else {},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.steps = int(state["steps"])
        for name, p in zip(self.names, self.params, strict=True):
            p.copy_(state["raw"][name])
        if self.ema and state["ema"]:
            for name, e in zip(self.names, self.ema.averages, strict=True):
                e.copy_(state["ema"][name])
            self.ema.steps = int(state["ema_steps"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._set_lr()
