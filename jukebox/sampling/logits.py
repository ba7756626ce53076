"""From logits to codes: temperature, top-k, top-p, min-p and counted noise, as pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15, the odd constant of splitmix64 (doi:10.1145/2714064.2660195)
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


@dataclass(frozen=True)
class Knobs:
    """How codes are drawn.

    temp divides the logits. top_k keeps the k likeliest codes (0 = all). top_p keeps the likeliest codes until their
    probabilities sum to p (0 = all). min_p drops codes less likely than min_p times the likeliest (0 = none).
    """

    temp: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    min_p: float = 0.0


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0, min_p: float = 0.0) -> Tensor:
    """Logits `[..., K]` with the removed codes at -inf; at least one stays. Raises ValueError for top_k and top_p both.

    top_k: ties with the k-th largest stay. top_p: a code is removed when those before it exceed p (arXiv:1904.09751).
    min_p: arXiv:2407.01082.
    """
    if top_k and top_p:
        raise ValueError("give top_k or top_p, not both")
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        removed = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(removed, -torch.inf)
    if min_p:
        p = logits.softmax(-1)
        logits = logits.masked_fill(p < min_p * p.amax(-1, keepdim=True), -torch.inf)
    return logits


def draw(logits: Tensor, knobs: Knobs, noise: Tensor) -> Tensor:
    """One code per row: argmax of the filtered logits plus Gumbel noise, both `[B, K]` -> `[B]` int64."""
    return (filter_logits(logits / knobs.temp, knobs.top_k, knobs.top_p, knobs.min_p) + noise).argmax(-1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 (wrapping arithmetic, logical shifts)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def noise_keys(seeds: Tensor, items: Tensor, level: int) -> Tensor:
    """One key per row from its seed, its item number and the level; all int64 `[B]`."""
    levels = torch.full_like(seeds, level + 1)
    return _mix(_mix(_mix(seeds * _GAMMA) + items * _GAMMA) + levels * _GAMMA)


def gumbel(keys: Tensor, position: int | Tensor, bins: int) -> Tensor:
    """Gumbel noise `[B, bins]` float32 for one code: a function of key, position and bin alone.

    So a song does not depend on the batch, the ranks, the window or the order in which it is sampled.
    """
    counter = position * bins + torch.arange(bins, device=keys.device)
    bits = _mix(keys[:, None] + (counter + 1) * _GAMMA)
    uniform = (((bits >> 41) & 0x7FFFFF).to(torch.float32) + 0.5) / 0x800000  # in (0, 1), 23 bits
    return -torch.log(-torch.log(uniform))
