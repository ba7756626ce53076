"""Rows of a whole global batch to start or revive codebooks with, the same for any number of ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jukebox.nn.codebook import draw_candidates
from jukebox.parallel.comm import Comm


def global_candidates(rows: Tensor, B: int, bins: int, comm: Comm, seed: int, draw: tuple[int, int, int]) -> Tensor:
    """This rank's share `[bins, w]` of the rows drawn from the global batch; the rest is 0, to be summed over ranks.

    rows `[B N, w]` of this rank's B items, which are items r, r + R, ... of the global batch. draw: numbers the draws.
    """
    N = len(rows) // B
    total = comm.size * len(rows)
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[*draw, 0]))
    items = torch.arange(B, device=rows.device) * comm.size + comm.rank
    ids = (items[:, None] * N + torch.arange(N, device=rows.device)).flatten()
    if total < bins:
        repeated = total * -(-bins // total)
        order = torch.from_numpy(rng.permutation(repeated))
        noise = torch.from_numpy(rng.standard_normal((repeated, rows.shape[1]), dtype=np.float32))
    else:
        order, noise = torch.from_numpy(rng.choice(total, bins, replace=False)), None
    return draw_candidates(rows, ids, total, order, bins, noise)
