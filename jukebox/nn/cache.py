"""The past of a window while it is decoded: preallocated keys and values, made by the sampler and dropped by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jukebox.nn.patterns import Pattern, Place


class LayerCache:
    """Keys and values of one layer side by side, `kv` `[B, pages, slots, 2S]`, zero at the start of a window.

    Page and slot by kind: row: place in the row; previous row: page row % 2 and place; column: a page for each column;
    dense and lyrics: position; summary: kept positions behind the zero slots; encoder-decoder: encoder position.
    """

    def __init__(
        self, pattern: Pattern, batch: int, state: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.pattern = pattern
        self.kv = torch.zeros(batch, pattern.pages, pattern.page_slots, 2 * state, dtype=dtype, device=device)
        self.slots = self.kv.flatten(1, 2)

    def write(self, place: Place, kv: Tensor) -> None:
        """Keep the key and value of one position, `[B, 1, 2S]`."""
        if isinstance(place.slot, int):
            self.slots[:, place.slot].copy_(kv[:, 0])
        else:
            self.slots.index_copy_(1, place.slot, kv.to(self.kv.dtype))

    def read(self, place: Place) -> tuple[Tensor, Tensor | None]:
        """What the position sees: `[B, L, 2S]`, and where L is more than that, a mask `[1, L]`, True for what it sees."""
        look, seen = place.look, place.seen
        page = self.kv[:, look] if isinstance(look, int) else self.kv.index_select(1, look)[:, 0]
        return (page[:, :seen], None) if isinstance(seen, int) else (page, seen)

    def reset(self) -> None:
        """Forget the past, keep the memory."""
        self.kv.zero_()


class DecodeState:
    """The caches of all layers and the position reached. Weights never live here, the past never lives in layers.

    position is an int; or, made so by `fixed()`, a tensor `[1]` on the device. Then every shape of a step is fixed, and
    the step can be recorded as a CUDA graph (`sampling/graphs.py`).
    """

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)
        self.patterns = {layer.pattern for layer in self.layers}
        self.position: int | Tensor = 0

    def places(self) -> dict[Pattern, Place]:
        """The place of the position for each pattern that occurs: worked out once for all layers that share one."""
        return {pattern: pattern.place(self.position) for pattern in self.patterns}

    def fixed(self) -> DecodeState:
        """The same caches with the position on the device."""
        state = DecodeState(self.layers)
        state.position = torch.as_tensor(self.position, device=self.layers[0].kv.device).reshape(1)
        return state

    def reset(self) -> None:
        """Start a new window in the same memory."""
        self.position = 0
        for layer in self.layers:
            layer.reset()

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(layer.kv.nbytes for layer in self.layers)
