"""The autoregressive net: embeds the tokens before, runs the transformer, scores the next (arXiv:2005.00341 sec. 4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from jukebox.nn.cache import DecodeState
from jukebox.nn.linear import Head
from jukebox.nn.transformer import Transformer, TransformerShape


class AutoregressiveNet(nn.Module):
    """Position t holds token t-1 (at 0 the start vector), position embedding t and conditioning t; it predicts token t.

    bins: vocabulary. start: learn a start vector (False: one is given with every call). merged: the conditioning is not
    added again behind the transformer, and the output has its own weights instead of those of the embedding.
    output False: no logits, an encoder.
    """

    def __init__(
        self, shape: TransformerShape, bins: int, *, start: bool, merged: bool = False, output: bool = True,
        emb_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.bins, self.merged, self.n = bins, merged, shape.n
        if start:
            self.start = nn.Parameter(torch.empty(1, shape.width).normal_(std=0.01 * shape.init_scale))
        self.emb = nn.Embedding(bins, shape.width)
        nn.init.normal_(self.emb.weight, std=0.02 * shape.init_scale)
        self.pos = nn.Parameter(torch.empty(shape.n, shape.width).normal_(std=0.01 * shape.init_scale))
        self.dropout = nn.Dropout(emb_dropout)
        self.transformer = Transformer(shape)
        if output:
            self.out = Head(shape.width, bins, None if merged else self.emb)

    def forward(
        self, tokens: Tensor, x_cond: Tensor | None = None, start: Tensor | None = None, encoded: Tensor | None = None,
        *, dtype: torch.dtype = torch.float32, weights: Mapping[int, list[Tensor]] | None = None,
    ) -> Tensor:  # fmt: skip
        """All positions at once: tokens `[B, n]` -> hidden `[B, n, W]` float32, ready for `out`.

        x_cond `[B, n or 1, W]`; start `[B, 1, W]` where none is learnt; encoded `[B, E, W]` encoder states.
        """
        h = self.inputs(tokens[:, :-1], 0, x_cond, start)
        h = self.transformer(h, encoded, weights, dtype)
        return self._finish(h, 0, x_cond)

    def states(
        self, tokens: Tensor, layers: Collection[int], x_cond: Tensor | None = None, start: Tensor | None = None,
        encoded: Tensor | None = None, dtype: torch.dtype = torch.float32,
    ) -> dict[int, Tensor]:  # fmt: skip
        """As `Transformer.states`, from tokens `[B, m]`; behind all layers it is what `out` reads."""
        found = self.transformer.states(self.inputs(tokens[:, :-1], 0, x_cond, start), layers, encoded, dtype)
        last = self.transformer.shape.depth
        return {layer: self._finish(h, 0, x_cond) if layer == last else h for layer, h in found.items()}

    def inputs(
        self, before: Tensor, position: int | Tensor, x_cond: Tensor | None, start: Tensor | None
    ) -> Tensor:  # fmt: skip
        """What the transformer reads from `position` on.

        before: the tokens in front of each position, `[B, m]`; at position 0 the start vector comes before them, so
        that m tokens give m + 1 positions. A position on the device is behind 0. -> `[B, m or m + 1, W]`.
        """
        h: Tensor = self.emb(before)
        if isinstance(position, int) and position == 0:
            first = self.start.expand(len(before), 1, -1) if start is None else start
            h = torch.cat([first.to(h.dtype), h], 1)
        h = self.dropout(h) + self.dropout(_at(self.pos[None], position, h.shape[1]))
        return h if x_cond is None else h + _at(x_cond, position, h.shape[1])

    def extend(
        self, before: Tensor, state: DecodeState, x_cond: Tensor | None = None, start: Tensor | None = None
    ) -> Tensor:
        """The next positions after `state`, which moves on: before `[B, m]` as in `inputs` -> hidden `[B, m(+1), W]`."""
        position = state.position
        h = self.transformer.extend(self.inputs(before, position, x_cond, start), state)
        return self._finish(h, position, x_cond)

    def _finish(self, h: Tensor, position: int | Tensor, x_cond: Tensor | None) -> Tensor:
        return h if self.merged or x_cond is None else h + _at(x_cond, position, h.shape[1])


def _at(table: Tensor, position: int | Tensor, m: int) -> Tensor:
    """Rows position ... position+m-1 of `[B, n, W]`; a table of one row is for all positions."""
    if table.shape[1] == 1:
        return table
    return table[:, position : position + m] if isinstance(position, int) else table.index_select(1, position)
