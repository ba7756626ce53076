"""What a prior is told beside its own codes: upper codes, artist, genre and timing (arXiv:2005.00341 sec. 4.2-4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jukebox.nn.conv import DecoderBlock, ResidualStack
from jukebox.nn.transformer import LayerNorm


@dataclass(frozen=True)
class ConditionerShape:
    """Field by field the `cond_*` hyperparameters; down and stride are those of the level above."""

    bins: int
    width: int
    down: int
    stride: int
    cond_width: int = 128
    cond_depth: int = 3
    m_conv: float = 1.0
    growth_rate: int = 1
    cycle: int | None = None
    zero_out: bool = False
    res_scale: bool = False
    init_scale: float = 1.0
    recompute: bool = False


class UpperCodes(nn.Module):
    """Codes of the level above -> one vector per code of this level (arXiv:2005.00341 sec. 4.2)."""

    def __init__(self, shape: ConditionerShape) -> None:
        super().__init__()
        self.emb = nn.Embedding(shape.bins, shape.width)
        nn.init.normal_(self.emb.weight, std=0.02 * shape.init_scale)
        stacks = [
            ResidualStack(
                shape.cond_width, shape.cond_depth, m_conv=shape.m_conv, growth_rate=shape.growth_rate,
                cycle=shape.cycle, zero_out=shape.zero_out, res_scale=shape.res_scale, recompute=shape.recompute,
            )
            for _ in range(shape.down)
        ]  # fmt: skip
        self.up = DecoderBlock(shape.width, shape.cond_width, shape.width, shape.stride, stacks)
        self.norm = LayerNorm(shape.width)

    def forward(self, codes: Tensor) -> Tensor:
        """codes `[B, N / ratio]` int64 -> `[B, N, W]`."""
        return self.norm(self.up(self.emb(codes).transpose(1, 2)).transpose(1, 2))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LabelShape:
    """genres, artists: table sizes (`y_bins`). genre_slots: `max_bow_genre_size`. Durations in seconds.

    timing: True at the top level only, where the position in the song is embedded in t_bins bins.
    """

    width: int
    genres: int
    artists: int
    genre_slots: int
    n_ctx: int
    t_bins: int = 64
    sr_hz: int = 44100
    min_duration: float = 0.0
    max_duration: float = 600.0
    timing: bool = False
    init_scale: float = 1.0


def _table(rows: int, shape: LabelShape) -> nn.Embedding:
    table = nn.Embedding(rows, shape.width)
    nn.init.normal_(table.weight, std=0.01 * shape.init_scale)
    return table


class Labels(nn.Module):
    """Artist, genres and, at the top level, timing (arXiv:2005.00341 sec. 4.3)."""

    def __init__(self, shape: LabelShape) -> None:
        super().__init__()
        self.shape = shape
        self.genre = _table(shape.genres, shape)
        self.artist = _table(shape.artists, shape)
        if shape.timing:
            self.total_length = _table(shape.t_bins, shape)
            self.absolute_pos = _table(shape.t_bins, shape)
            self.relative_pos = _table(shape.t_bins, shape)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """y `[B, 4 + G ...]` int64: total, offset and window in samples, artist, genres (-1 = empty slot).

        Returns the start vector `[B, 1, W]`, and at the top level the timing `[B, n_ctx, W]`, else None. Raises
        ValueError naming the first id or time outside its table.
        """
        artist, genres = y[:, 3], y[:, 4 : 4 + self.shape.genre_slots]
        self._check(artist, 0, self.artist.num_embeddings, "artist id")
        self._check(genres, -1, self.genre.num_embeddings, "genre id")
        present = (genres >= 0)[..., None]
        words = (self.genre(genres.clamp_min(0)) * present).sum(1, keepdim=True)  # (B, G) -> (B, 1, W)
        start = words + self.artist(artist)[:, None]
        return start, self._timing(y) if self.shape.timing else None

    @torch.no_grad()
    def add(self, kind: str, parts: Sequence[tuple[Sequence[int], float]]) -> int:
        """A further "artist" or "genre" that is a blend of others, each given by its ids (summed) and its weight.

        Its vector is the weighted sum of theirs. Returns its id, the next one behind the table.
        """
        table: nn.Embedding = getattr(self, kind)
        row = sum(weight * table.weight[list(ids)].sum(0) for ids, weight in parts)
        assert isinstance(row, Tensor)
        table.weight = nn.Parameter(torch.cat([table.weight, row[None].to(table.weight)]), requires_grad=False)
        table.num_embeddings += 1
        return table.num_embeddings - 1

    @staticmethod
    def _check(ids: Tensor, low: int, high: int, what: str) -> None:
        if _any((ids < low) | (ids >= high)):
            raise ValueError(f"{what} {int(ids.max())} outside the table of {high} rows")

    def _timing(self, y: Tensor) -> Tensor:
        s = self.shape
        total, offset, window = (y[:, i : i + 1].float() for i in range(3))  # (B, 1) samples
        at = torch.arange(s.n_ctx, device=y.device).float() / s.n_ctx  # (n_ctx)
        low, high = s.min_duration * s.sr_hz, s.max_duration * s.sr_hz
        if _any((total < low) | (total >= high)):
            raise ValueError(
                f"total length outside [{s.min_duration}, {s.max_duration}) s (min_duration, max_duration)"
            )
        if _any(offset >= total):
            raise ValueError("a window starts behind the end of its song: raise the total length")
        end = ((offset + window) / total).clamp_max(1.0)
        begin = offset / total
        # The last windows of a song may reach past max_duration: the end is clamped, the grid is not.
        absolute = (offset + window * at).clamp_max(torch.nextafter(torch.tensor(high), torch.tensor(0.0)).item())
        return (  # type: ignore[no-any-return]
            self.total_length(self._bin(total, low, high))
            + self.absolute_pos(self._bin(absolute, 0.0, high))
            + self.relative_pos(self._bin(begin + (end - begin) * at, 0.0, 1.0))
        )

    def _bin(self, p: Tensor, low: float, high: float) -> Tensor:
        bins = torch.floor((p - low) / (high - low) * self.shape.t_bins).long()
        return bins.clamp(0, self.shape.t_bins - 1)


def _any(wrong: Tensor) -> bool:
    """Whether any is; not asked while a step is compiled, nor of tensors without memory, which have no values."""
    return not torch.compiler.is_compiling() and not wrong.is_meta and bool(wrong.any())
