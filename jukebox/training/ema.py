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

    before_update = False  # of the weights; otherwise after it

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


class WarmingEMA(EMA):
    """The average of autoencoders: its factor grows with the steps, and it takes in the weights before each update.

    At step s the factor is 0 up to the third, then min(1 - (s - 1)^-power, beta). Buffers of floating point (codebooks)
    are averaged too.
    """

    before_update = True

    def __init__(
        self, params: Iterable[nn.Parameter], buffers: Iterable[Tensor] = (), beta: float = 0.9999, power: float = 0.75
    ) -> None:
        super().__init__(params, beta)
        self.beta, self.power = beta, power
        self.buffers = [b for b in buffers if b.is_floating_point()]
        self.buffer_averages = [b.detach().float().clone() for b in self.buffers]

    def factor(self, steps: int) -> float:
        """How much of the average stays at this step."""
        return min(1 - (steps - 1.0) ** -self.power, self.beta) if steps > 3 else 0.0

    @torch.no_grad()
    def step(self) -> None:
        """Take in the weights as they are before a step."""
        self.steps += 1
        weight = 1 - self.factor(self.steps)
        for source, average in self._pairs():
            if weight == 1.0:
                average.copy_(source)
            else:
                average.lerp_(source.detach().float(), weight)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip([*self.params, *self.buffers], [*self.averages, *self.buffer_averages], strict=True))

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the weights as they are."""
        self.steps = 0
        for source, average in self._pairs():
            average.copy_(source)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages, buffers included."""
        for source, average in self._pairs():
            weight = source.detach().float().clone()
            source.copy_(average)
            average.copy_(weight)


def default_mu(bs: int, ranks: int) -> float:
    """The published factor: 1 - (bs * ranks / 8) / 1000."""
    return 1.0 - (bs * ranks / 8) / 1000
