"""Batches of codes, in the same order and with the same face as batches of audio (loaders.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jukebox.data.code_dataset import CodeDataset, CodeItem
from jukebox.data.loaders import Order
from jukebox.labels.song import SongMeta


@dataclass(frozen=True)
class CodeBatch:
    """codes `[B, n_ctx]` and upper `[B, n_ctx / ratio]` int64 (None at the top), songs, offsets and totals in samples."""

    codes: torch.Tensor
    upper: torch.Tensor | None
    songs: list[SongMeta]
    offsets: torch.Tensor
    totals: torch.Tensor


def code_batches(
    dataset: CodeDataset, *, bs: int, comm_rank: int = 0, comm_size: int = 1, seed: int = 0, start_step: int = 0
) -> Iterator[CodeBatch]:
    """Training batches without end, from global step `start_step` on. Raises StoreError when a file is damaged."""
    order = Order(len(dataset), bs * comm_size, seed)
    step = start_step
    while True:
        places = order.positions(step, comm_rank, comm_size)
        yield _batch([dataset.item(*order.item(epoch, position)) for epoch, position in places])
        step += 1


def code_evaluation_batches(
    dataset: CodeDataset, *, bs: int, comm_rank: int = 0, comm_size: int = 1
) -> Iterator[CodeBatch]:
    """Every window once, in order; the last batch may be smaller."""
    mine = range(comm_rank, len(dataset), comm_size)
    for first in range(0, len(mine), bs):
        yield _batch([dataset.item(index) for index in mine[first : first + bs]])


def _batch(items: Sequence[CodeItem]) -> CodeBatch:
    upper = [item.upper for item in items if item.upper is not None]
    return CodeBatch(
        torch.from_numpy(np.stack([item.codes for item in items])),
        torch.from_numpy(np.stack(upper)) if upper else None,
        [item.song for item in items],
        torch.tensor([item.offset_samples for item in items]),
        torch.tensor([item.total_samples for item in items]),
    )
