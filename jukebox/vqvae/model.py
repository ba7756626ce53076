"""The hierarchical VQ-VAE: for each level one encoder, one codebook and one decoder (arXiv:2005.00341 sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jukebox.nn.codebook import Codebook
from jukebox.vqvae.encdec import Decoder, Encoder, LevelShape


@dataclass
class LevelOutput:
    """One level of a forward pass.

    estimate `[B, T, 1]`: audio decoded from this level. codes `[B, N]`. rows `[B*N, emb]`: what was quantised, for
    learning the codebook. commit, distance (`fit`), prenorm (`pn`): scalars.
    """

    estimate: Tensor
    codes: Tensor
    rows: Tensor
    commit: Tensor
    distance: Tensor
    prenorm: Tensor


def quantise(codebook: Codebook, x: Tensor) -> tuple[Tensor, LevelOutput]:
    """Encoder output `[B, emb, N]` -> vectors `[B, emb, N]` with the gradient passed straight through, and the codes.

    The commitment loss moves x only (arXiv:1711.00937 eq. 3). An input of 2 * emb channels is folded by adding its
    halves. `estimate` of the result is left empty.
    """
    B, C, N = x.shape
    rows = x.transpose(1, 2).reshape(B * N, C)
    if codebook.width * 2 == C:
        parts = rows.chunk(2, dim=1)
        prenorm = torch.stack([_spread(part) for part in parts]).sum()
        rows = parts[0] + parts[1]
    else:
        prenorm = _spread(rows)
    with torch.no_grad():
        found = codebook(rows.float())
    commit = ((found.vectors - rows) ** 2).sum() / rows.numel()
    straight = rows + (found.vectors - rows).detach()
    out = LevelOutput(
        rows.new_empty(0), found.codes.view(B, N), rows.detach(), commit, found.distance, prenorm.detach()
    )
    return straight.view(B, N, codebook.width).transpose(1, 2), out


def _spread(rows: Tensor) -> Tensor:
    spread: Tensor = (rows - rows.mean()).norm() / rows.numel() ** 0.5
    return spread


class VQVAE(nn.Module):
    """Audio `[B, T, 1]` to codes of several levels and back; level 0 is the finest.

    shapes: one LevelShape a level. bins: codes per level. use_bottleneck False passes embeddings through unquantised.
    """

    def __init__(self, shapes: Sequence[LevelShape], bins: int, use_bottleneck: bool = True) -> None:
        super().__init__()
        self.levels, self.bins, self.use_bottleneck = len(shapes), bins, use_bottleneck
        self.encoders = nn.ModuleList(Encoder(shape) for shape in shapes)
        self.decoders = nn.ModuleList(Decoder(shape) for shape in shapes)
        self.codebooks = nn.ModuleList(
            Codebook(bins, shape.emb_width) for shape in (shapes if use_bottleneck else ())
        )  # fmt: skip
        self.hops = tuple(shape.hop for shape in shapes)

    def codebook(self, level: int) -> Codebook:
        """The codebook of a level."""
        book = self.codebooks[level]
        assert isinstance(book, Codebook)
        return book

    def forward(self, x: Tensor) -> list[LevelOutput]:
        """All levels of a batch `[B, T, 1]`, level 0 first; T a multiple of the top hop. Changes nothing."""
        if x.shape[1] % self.hops[-1]:
            raise ValueError(f"{x.shape[1]} samples are not a multiple of the top hop {self.hops[-1]}")
        outputs = []
        for level in range(self.levels):
            embedded = self.encoders[level](x.transpose(1, 2).float())
            if self.use_bottleneck:
                vectors, out = quantise(self.codebook(level), embedded)
            else:
                zero = embedded.new_zeros(())
                vectors, out = embedded, LevelOutput(x, x.new_empty(0), x.new_empty(0), zero, zero, zero)
            out.estimate = self.decoders[level](vectors).transpose(1, 2)
            outputs.append(out)
        return outputs

    def embed(self, x: Tensor, level: int) -> Tensor:
        """Audio `[B, T, 1]` -> encoder output of one level `[B, emb, T // hop]`."""
        return self.encoders[level](x.transpose(1, 2).float())  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode(self, x: Tensor, start_level: int = 0, end_level: int | None = None, bs_chunks: int = 1) -> list[Tensor]:
        """Audio `[B, T, 1]` -> codes `[B, T // hop]` int64 of the levels start_level ... end_level - 1, lowest first.

        Only the levels asked for are computed; bs_chunks splits the batch to save memory.
        """
        levels = range(start_level, self.levels if end_level is None else end_level)
        parts = [[self._codes(part, level) for level in levels] for part in x.chunk(bs_chunks)]
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    def _codes(self, x: Tensor, level: int) -> Tensor:
        embedded = self.embed(x, level)
        B, C, N = embedded.shape
        rows = embedded.transpose(1, 2).reshape(B * N, C)
        book = self.codebook(level)
        if 2 * book.width == C:
            rows = rows[:, : C // 2] + rows[:, C // 2 :]
        return book(rows).codes.view(B, N)  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode(
        self, codes: Sequence[Tensor], start_level: int = 0, end_level: int | None = None, bs_chunks: int = 1
    ) -> Tensor:
        """Codes `[B, N]` of the levels start_level ..., lowest first -> audio `[B, N * hop, 1]` float32, unclipped.

        Audio is decoded from the lowest level given alone. Raises ValueError when the number of levels is wrong.
        """
        end_level = self.levels if end_level is None else end_level
        if len(codes) != end_level - start_level:
            raise ValueError(f"{len(codes)} levels of codes given for levels {start_level} to {end_level - 1}")
        return torch.cat([self._audio(part, start_level) for part in codes[0].chunk(bs_chunks)])

    def _audio(self, codes: Tensor, level: int) -> Tensor:
        vectors = self.codebook(level).lookup(codes).transpose(1, 2)  # (B, N) -> (B, emb, N)
        return self.decoders[level](vectors).transpose(1, 2)  # type: ignore[no-any-return]
