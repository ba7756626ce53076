"""The separate lyric encoder that code priors of kind 6 attend to (arXiv:2005.00341 sec. 4.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jukebox.nn.linear import Linear
from jukebox.nn.transformer import LayerNorm, TransformerShape, bits
from jukebox.prior.net import AutoregressiveNet


class LyricHead(nn.Module):
    """Scores the lyric vocabulary: `[..., W]` -> `[..., n_vocab]`, no bias."""

    def __init__(self, width: int, bins: int, init_scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(bins, width).normal_(std=0.02 * init_scale))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., W]` -> `[..., n_vocab]`."""
        return x @ self.weight.t()


class LyricEncoder(nn.Module):
    """Lyric characters -> states for the prior: a causal, shifted transformer, a projection and a norm.

    shape: of the lyric transformer (`prime_*`); width: of the prior; init_scale: of the prior.
    """

    def __init__(
        self, shape: TransformerShape, n_vocab: int, width: int, init_scale: float, emb_dropout: float
    ) -> None:
        super().__init__()
        self.net = AutoregressiveNet(shape, n_vocab, start=True, output=False, emb_dropout=emb_dropout)
        self.proj = Linear(shape.width, width, init_scale=shape.init_scale)
        self.norm = LayerNorm(width)
        self.out = LyricHead(width, n_vocab, init_scale)

    def forward(self, lyrics: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """lyrics `[B, S]` int64 -> states `[B, S, W]` float32."""
        return self.norm(self.proj(self.net(lyrics, dtype=dtype)))  # type: ignore[no-any-return]

    def loss(self, states: Tensor, lyrics: Tensor) -> Tensor:
        """Bits per character of predicting the lyrics themselves, padding included; a scalar."""
        return bits(self.out(states.float()), lyrics)
