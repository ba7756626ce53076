"""The past of a window while it is decoded: preallocated keys and values, made by the sampler and dropped by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jukebox.nn.patterns import Pattern


class LayerCache:
    """Keys and values of one layer, `[B, slots, S]` each, zero at the start of a window.

    Slots by kind: row: place in the row; previous row: page (row % 2) and place; column: column-major, so that a
    column is contiguous; dense and lyrics: position; summary: kept positions; encoder-decoder: encoder position.
    """

    def __init__(
        self, pattern: Pattern, batch: int, state: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.pattern = pattern
        shape = (batch, pattern.cache_slots(), state)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def put(self, slots: slice | Tensor, k: Tensor, v: Tensor) -> LayerCache:
        """Write `[B, m, S]` into slots."""
        self.k[:, slots], self.v[:, slots] = k, v
        return self

    def take(self, slots: slice) -> tuple[Tensor, Tensor]:
        """Views `[B, m, S]` of slots."""
        return self.k[:, slots], self.v[:, slots]

    def columns(self) -> tuple[Tensor, Tensor]:
        """Kind 2: views `[B, width, blocks, S]`."""
        split = (self.pattern.width, self.pattern.blocks)
        return self.k.view(len(self.k), *split, -1), self.v.view(len(self.v), *split, -1)

    def pages(self) -> tuple[Tensor, Tensor]:
        """Kind 3: views `[B, 2, width, S]`."""
        split = (2, self.pattern.width, -1)
        return self.k.view(len(self.k), *split), self.v.view(len(self.v), *split)

    def encoded(self) -> tuple[Tensor, Tensor]:
        """Kind 6: all encoder positions."""
        return self.k, self.v

    def write_encoded(self, k: Tensor, v: Tensor) -> None:
        """Kind 6: keys and values of all encoder positions."""
        self.k.copy_(k)
        self.v.copy_(v)

    def reset(self) -> None:
        """Forget the past, keep the memory."""
        self.k.zero_()
        self.v.zero_()


class DecodeState:
    """The caches of all layers and the position reached. Weights never live here, the past never lives in layers."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)
        self.position = 0

    def reset(self) -> None:
        """Start a new window in the same memory."""
        self.position = 0
        for layer in self.layers:
            layer.reset()

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for layer in self.layers for t in (layer.k, layer.v))
