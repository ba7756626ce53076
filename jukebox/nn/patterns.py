"""Attention patterns: one object per kind says which keys a query sees and which past must be kept.

The factored patterns cut a sequence of n positions into `blocks` rows of `width = n // blocks` positions
(arXiv:2005.00341 sec. 4.1 and appendix A; after arXiv:1904.10509). Training masks, cache capacity, prefill and the
tests are all derived from these objects; `nn/attention.py` computes with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DENSE, ROW, COLUMN, PREVIOUS_ROW, SUMMARY, SUMMARY_SPREAD, ENCODER, LYRICS = range(8)
NAMES = ("dense", "row", "column", "previous row", "summary", "summary spread", "encoder-decoder", "lyrics")


class Place(NamedTuple):
    """Where one position is kept in a cache of pages, and what its query sees there: slots of the page `look`.

    slot counts over all pages. seen: how many of the first slots are seen. With the position on the device these are
    tensors `[1]`, and seen is a mask `[1, slots of a page]`.
    """

    slot: int | Tensor
    look: int | Tensor
    seen: int | Tensor


@dataclass(frozen=True)
class Pattern:
    """Which keys the queries of one layer see.

    kind: one of the eight constants above. n: positions of the sequence. blocks: rows the sequence is cut into.
    spread: positions kept per row by kind 5. lyric_len: lyric positions in front of the codes (kind 7).
    encoder_len: encoder positions (kind 6).

    Raises ValueError when n is not divisible by blocks, or a kind lacks the number it needs.
    """

    kind: int
    n: int
    blocks: int = 1
    spread: int = 0
    lyric_len: int = 0
    encoder_len: int = 0

    def __post_init__(self) -> None:
        if self.n % self.blocks:
            raise ValueError(f"n_ctx {self.n} is not divisible by blocks {self.blocks}")
        if self.kind == SUMMARY_SPREAD and not 0 < self.spread <= self.width:
            raise ValueError(f"attention type 5 needs 0 < spread <= {self.width}, got {self.spread}")

    @property
    def width(self) -> int:
        """Positions in a row."""
        return self.n // self.blocks

    @property
    def seen_len(self) -> int:
        """Kind 7: how many leading positions can be keys. One whole row more than the lyrics need, even when the row
        divides them: the published weights were trained so."""
        return min(self.n, (self.lyric_len // self.blocks + 1) * self.blocks)

    @property
    def zero_slots(self) -> int:
        """Kinds 4 and 5: zero keys and values that take part in every softmax."""
        return {SUMMARY: 1, SUMMARY_SPREAD: self.spread}.get(self.kind, 0)

    def kept_positions(self) -> Tensor:
        """Kinds 4 and 5: the positions whose keys later rows can see, ascending."""
        rows = torch.arange(self.blocks - 1)
        last = torch.arange(self.width - (1 if self.kind == SUMMARY else self.spread), self.width)
        return (rows[:, None] * self.width + last).flatten()

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """The definition: bool, True where a query position sees a key position (broadcast; zero slots not counted)."""
        row_q, row_k = query // self.width, key // self.width
        causal = key <= query
        match self.kind:
            case 0:
                return causal
            case 1:
                return (row_q == row_k) & causal
            case 2:
                return (query % self.width == key % self.width) & causal
            case 3:
                return row_k == row_q - 1
            case 4 | 5:
                return torch.isin(key, self.kept_positions().to(key.device)) & causal
            case 6:
                return (key < self.encoder_len) & (query >= 0)
            case _:
                return (key < self.seen_len) & causal

    def cache_slots(self) -> int:
        """Keys kept per item while decoding (static capacity)."""
        match self.kind:
            case 1:
                return self.width
            case 3:
                return 2 * self.width
            case 4 | 5:
                return (self.blocks - 1) * self.zero_slots
            case 6:
                return self.encoder_len
            case 7:
                return self.seen_len
            case _:
                return self.n

    @property
    def spare(self) -> int | None:
        """The slot that takes what nobody will look at, so that every step writes; None where all are looked at."""
        if self.kind in (SUMMARY, SUMMARY_SPREAD, LYRICS):
            return self.zero_slots + self.cache_slots()
        return None

    @property
    def pages(self) -> int:
        """Pages of a cache: a column each, the two last rows, or one."""
        return {COLUMN: self.width, PREVIOUS_ROW: 2}.get(self.kind, 1)

    @property
    def page_slots(self) -> int:
        """Slots of a page, zero slots in front and the spare one at the end counted."""
        return self.cache_slots() // self.pages if self.spare is None else self.spare + 1

    def place(self, t: int | Tensor) -> Place:
        """Where position t is kept and what it sees. Plain arithmetic, so that t can be a tensor on the device."""
        slot, look, seen = self._place(t, t // self.width, t % self.width)
        if isinstance(seen, Tensor):
            seen = torch.arange(self.page_slots, device=seen.device)[None] < seen
        return Place(slot, look, seen)

    def _place(self, t: int | Tensor, row: int | Tensor, column: int | Tensor) -> Place:
        match self.kind:
            case 0:
                return Place(t, 0, t + 1)
            case 1:
                return Place(column, 0, column + 1)
            case 2:
                return Place(column * self.blocks + row, column, row + 1)
            case 3:
                return Place(row % 2 * self.width + column, 1 - row % 2, self.width)
            case 4 | 5:
                assert self.spare is not None
                first = self.width - self.zero_slots  # of the kept places of a row; they are as many as zero slots
                kept = (column >= first) * (row < self.blocks - 1)
                seen = self.zero_slots * (row + 1) + (column - first + 1) * kept
                return Place(self.spare + (seen - 1 - self.spare) * kept, 0, seen)
            case 6:
                return Place(0, 0, self.encoder_len)
            case _:
                slot = t - (t >= self.seen_len) * (t - self.seen_len)  # at most the spare one
                return Place(slot, 0, slot + (t < self.seen_len) * 1)


_ABC = (ROW, COLUMN, PREVIOUS_ROW)


def layer_kind(order: int, layer: int) -> int:
    """Attention kind of a layer under an `attn_order` (arXiv:2005.00341 appendix, 13 published orders).

    Raises ValueError for an unknown order.
    """
    abc = _ABC[layer % 3]
    repeating = {
        0: (DENSE,),
        1: (ROW, COLUMN),
        2: _ABC,
        3: (ROW, SUMMARY),
        4: (ROW, SUMMARY_SPREAD),
        5: (ROW, SUMMARY, ROW, ROW),
        6: (*_ABC, ENCODER),
        7: (*_ABC * 5, ENCODER),
        8: (*_ABC * 3, ENCODER),
        9: (*_ABC, DENSE),
        10: (*_ABC * 3, *(*_ABC * 3, ENCODER) * 7),
    }
    if order in repeating:
        cycle = repeating[order]
        return cycle[layer % len(cycle)]
    if order in (11, 12):
        special = ENCODER if order == 11 else LYRICS
        return (special, special, DENSE)[layer % 3] if layer % 16 == 15 else abc
    raise ValueError(f"attn_order must be 0 to 12, got {order}")
