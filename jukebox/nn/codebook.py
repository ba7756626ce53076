"""The codebook learnt by moving averages, for whoever quantises (arXiv:2005.00341 sec. 3.1, arXiv:1711.00937 A.1).

A forward never changes it. It returns the sums of what fell on each code; the caller adds these up over its ranks and
calls `update` when the step counts. So skipped steps, accumulation and any number of ranks give the same codebook.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Quantised:
    """What quantising rows `[R, w]` gives.

    codes `[R]` int64; vectors `[R, w]`, the codebook rows; distance: mean squared distance to them (`fit`).
    """

    codes: Tensor
    vectors: Tensor
    distance: Tensor


class Codebook(nn.Module):
    """K vectors of width w, with the averaged sums and counts of what fell on each.

    Buffers: vectors `[K, w]`, sums `[K, w]`, counts `[K]`, ready (False until `start` or `restore`).
    """

    vectors: Tensor
    sums: Tensor
    counts: Tensor
    ready: Tensor

    def __init__(self, bins: int, width: int) -> None:
        super().__init__()
        self.bins, self.width = bins, width
        self.register_buffer("vectors", torch.zeros(bins, width))
        self.register_buffer("sums", torch.zeros(bins, width))
        self.register_buffer("counts", torch.zeros(bins))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, rows: Tensor) -> Quantised:
        """The nearest vector of each row; rows `[R, w]` float32. The first of equally near ones is taken."""
        vectors = self.vectors.float()
        # |x - k|^2 in the published order of operations, so that near ties fall the same way.
        distance = -2 * rows @ vectors.t()
        distance.add_((rows**2).sum(-1, keepdim=True)).add_((vectors.t() ** 2).sum(0, keepdim=True))
        least, codes = distance.min(-1)
        return Quantised(codes, self.lookup(codes), least.mean())

    def lookup(self, codes: Tensor) -> Tensor:
        """codes `[...]` int64 in [0, K) -> vectors `[..., w]`."""
        return nn.functional.embedding(codes, self.vectors)

    @torch.no_grad()
    def statistics(self, rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Sums `[K, w]` and counts `[K]` of the rows that fell on each code; to be added up over ranks."""
        sums = torch.zeros_like(self.vectors).index_add_(0, codes, rows.detach().float())
        counts = torch.bincount(codes, minlength=self.bins).to(sums.dtype)
        return sums, counts

    @torch.no_grad()
    def start(self, rows: Tensor, counts: Tensor | None = None) -> None:
        """Begin with K drawn rows `[K, w]`, or with the means of `counts` `[K]` rows each."""
        self.vectors.copy_(rows)
        self.counts.copy_(torch.ones_like(self.counts) if counts is None else counts)
        self.sums.copy_(rows * self.counts[:, None])
        self.ready.fill_(True)

    @torch.no_grad()
    def restore(self, expected_count: float) -> None:
        """Go on from vectors alone, as if each had been used `expected_count` times a step."""
        self.sums.copy_(self.vectors * expected_count)
        self.counts.fill_(expected_count)
        self.ready.fill_(True)

    @torch.no_grad()
    def update(
        self, sums: Tensor, counts: Tensor, candidates: Tensor, *, mu: float, threshold: float = 1.0,
        reset_revived: bool = False, smoothing: float = 0.0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Move the averages; a code whose averaged count falls below `threshold` is re-drawn from `candidates` `[K, w]`.

        sums and counts are those of all ranks. Returns the metrics entropy (nats), used_curr, usage and dk. With
        `reset_revived` a re-drawn code also starts its averages anew, at the threshold (the published one is re-drawn at
        every step until its count reaches it). `smoothing` is added to each count before dividing (Laplace).
        """
        old = self.vectors.clone()
        self.sums.mul_(mu).add_(sums, alpha=1 - mu)
        self.counts.mul_(mu).add_(counts, alpha=1 - mu)
        used = self.counts >= threshold
        total = self.counts.sum()
        smooth = (self.counts + smoothing) * (total / (total + self.bins * smoothing)) if smoothing else self.counts
        averaged = self.sums / smooth.clamp_min(1e-30)[:, None]
        self.vectors.copy_(torch.where(used[:, None], averaged, candidates))
        if reset_revived:
            self.sums.copy_(torch.where(used[:, None], self.sums, candidates * threshold))
            self.counts.copy_(torch.where(used, self.counts, torch.full_like(self.counts, threshold)))
        p = counts / counts.sum()
        return {
            "entropy": -(p * torch.log(p + 1e-8)).sum(),
            "used_curr": (counts >= threshold).sum().to(p.dtype),
            "usage": used.sum().to(p.dtype),
            "dk": (self.vectors - old).norm() / math.sqrt(old.numel()),
        }


@torch.no_grad()
def draw_candidates(
    rows: Tensor, row_ids: Tensor, total: int, order: Tensor, bins: int, noise: Tensor | None
) -> Tensor:
    """The rows that `order` puts first, `[bins, w]`, for starting or reviving a codebook.

    rows `[R, w]` are this rank's, `row_ids` `[R]` their places among the `total` rows of all ranks; rows of other ranks
    are left zero, so that a sum over ranks gives the same candidates for any number of ranks. `order` is a permutation
    of all rows, or, when they are fewer than bins, of the rows repeated; `noise`, standard normal, one row per entry of
    `order`, then keeps the copies apart.
    """
    chosen = order[:bins].to(rows.device)
    place = torch.full((total,), -1, dtype=torch.int64, device=rows.device)
    place[row_ids] = torch.arange(len(rows), device=rows.device)
    local = place[chosen % total]
    drawn = rows[local.clamp_min(0)].detach().float().clone()
    if noise is not None:
        drawn += noise.to(rows.device)[chosen] * (0.01 / math.sqrt(rows.shape[1]))
    return drawn * (local >= 0)[:, None]
