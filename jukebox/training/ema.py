"""The moving average of weights that is saved, measured and sampled from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["plain", "fused", "cpu"]


class EMA:
    """e = mu e + (1 - mu) p after every step, in float32.

    kind: "plain" keeps one tensor per parameter, "fused" one flat buffer, "cpu" keeps host copies and moves them by
    mu^every after every `every` steps. All three are copies of the weights, equal up to rounding.
    """

    def __init__(self, params: Iterable[nn.Parameter], mu: float, kind: Kind = "plain", every: int = 100) -> None:
        self.params = list(params)
        self.kind, self.steps = kind, 0
        self.every = every if kind == "cpu" else 1
        self.mu = mu**self.every
        copies = [p.detach().float().clone() for p in self.params]
        if kind == "cpu":
            copies = [c.cpu() for c in copies]
        if kind == "fused" and copies:
            flat = torch.cat([c.flatten() for c in copies])
            parts = flat.split([c.numel() for c in copies])
            copies = [part.view(c.shape) for part, c in zip(parts, copies, strict=True)]
        self.averages: Sequence[Tensor] = copies

    @torch.no_grad()
    def step(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        if self.steps % self.every or not self.params:
            return
        weights = [p.detach().to(e.device, torch.float32) for p, e in zip(self.params, self.averages, strict=True)]
        averages = list(self.averages)
        torch._foreach_mul_(averages, self.mu)
        torch._foreach_add_(averages, weights, alpha=1 - self.mu)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the weights as they are."""
        for p, e in zip(self.params, self.averages, strict=True):
            e.copy_(p)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average; a half parameter rounds both on the way. Twice is as before, but for that."""
        for p, e in zip(self.params, self.averages, strict=True):
            weight = p.detach().float().clone()
            p.copy_(e)
            e.copy_(weight)

    def __enter__(self) -> EMA:
        self.swap()
        return self

    def __exit__(self, *_: object) -> None:
        self.swap()


def default_mu(bs: int, ranks: int) -> float:
    """The published factor: 1 - (bs * ranks / 8) / 1000."""
    return 1.0 - (bs * ranks / 8) / 1000
