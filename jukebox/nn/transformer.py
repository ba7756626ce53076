"""The factored transformer: pre-norm blocks of attention and MLP, no final norm (arXiv:2005.00341 sec. 4.1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jukebox.nn import patterns as P
from jukebox.nn.attention import Attention
from jukebox.nn.cache import DecodeState, LayerCache
from jukebox.nn.linear import Linear
from jukebox.nn.patterns import Pattern, Place, layer_kind


@dataclass(frozen=True)
class TransformerShape:
    """Everything that shapes a transformer; field by field the hyperparameters of the prior or the lyric encoder.

    n: positions. width, depth, heads. blocks: rows. m_attn, m_mlp: attention state and MLP width relative to width.
    lyric_len: lyric positions in front (kind 7). encoder_len: encoder positions (kind 6). recompute_*: activation
    recomputation in training (`c_res`, `c_attn`, `c_mlp`).
    """

    n: int
    width: int
    depth: int
    heads: int
    attn_order: int
    blocks: int = 1
    spread: int = 0
    lyric_len: int = 0
    encoder_len: int = 0
    m_attn: float = 0.25
    m_mlp: float = 1.0
    init_scale: float = 1.0
    zero_out: bool = False
    res_scale: bool = False
    attn_dropout: float = 0.0
    resid_dropout: float = 0.0
    recompute_block: bool = False
    recompute_attn: bool = False
    recompute_mlp: bool = False

    def pattern(self, layer: int) -> Pattern:
        """The attention pattern of a layer. Raises ValueError when the numbers do not fit."""
        kind = layer_kind(self.attn_order, layer)
        return Pattern(kind, self.n, self.blocks, self.spread, self.lyric_len, self.encoder_len)

    def whole_rows(self, m: int) -> int:
        """The fewest positions, at least m, over which `Transformer.states` can be computed."""
        kinds = {layer_kind(self.attn_order, layer) for layer in range(self.depth)}
        width = self.n if kinds & {P.SUMMARY, P.SUMMARY_SPREAD} else self.n // self.blocks
        return -(-m // width) * width


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32 whatever the dtype of x; eps 1e-5. `[..., W]` -> `[..., W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation of arXiv:1606.08415."""
    return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    """W -> m_mlp * W -> W with the quick GELU between."""

    def __init__(self, width: int, hidden: int, dropout: float, init_scale: float, zero_out: bool) -> None:
        super().__init__()
        self.fc = Linear(width, hidden, init_scale=init_scale)
        self.out = Linear(hidden, width, init_scale=init_scale, zero_out=zero_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., W]` -> `[..., W]`."""
        y: Tensor = self.out(quick_gelu(self.fc(x)))
        return self.dropout(y) if self.training else y


class Block(nn.Module):
    """x + s * (a + m) with a = attention(norm1(x)), m = MLP(norm2(x + a)); s = 1/depth with res_scale, else 1."""

    def __init__(self, shape: TransformerShape, layer: int) -> None:
        super().__init__()
        pattern = shape.pattern(layer)
        zero_out = shape.zero_out or pattern.kind == P.ENCODER
        self.attn = Attention(
            shape.width, int(shape.m_attn * shape.width), shape.heads, pattern, dropout=shape.attn_dropout,
            resid_dropout=shape.resid_dropout, init_scale=shape.init_scale, zero_out=zero_out,
        )  # fmt: skip
        self.norm1 = LayerNorm(shape.width)
        self.mlp = MLP(shape.width, int(shape.m_mlp * shape.width), shape.resid_dropout, shape.init_scale, zero_out)
        self.norm2 = LayerNorm(shape.width)
        self.scale = 1.0 / shape.depth if shape.res_scale else 1.0
        self.recompute_attn, self.recompute_mlp = shape.recompute_attn, shape.recompute_mlp

    def forward(self, x: Tensor, encoded: Tensor | None = None, weights: list[Tensor] | None = None) -> Tensor:
        """`[B, n, W]` -> `[B, n, W]`."""
        recompute = self.training and torch.is_grad_enabled()
        if self.recompute_attn and recompute:
            a = checkpoint(lambda h: self.attn(self.norm1(h), encoded), x, use_reentrant=False)
        else:
            a = self.attn(self.norm1(x), encoded, weights)
        if self.recompute_mlp and recompute:
            m = checkpoint(lambda h: self.mlp(self.norm2(h)), x + a, use_reentrant=False)
        else:
            m = self.mlp(self.norm2(x + a))
        return self._join(x, a, m)

    def extend(self, x: Tensor, start: int | Tensor, cache: LayerCache, place: Place | None = None) -> Tensor:
        """The positions from `start` on, `[B, m, W]` float32 -> `[B, m, W]` float32; place as in `Attention.extend`."""
        a = self.attn.extend(self.norm1(x), start, cache, place)
        if self.scale == 1.0:
            x = x + a
            return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]
        return self._join(x, a, self.mlp(self.norm2(x + a)))

    def _join(self, x: Tensor, a: Tensor, m: Tensor) -> Tensor:
        return x + a + m if self.scale == 1.0 else x + self.scale * (a + m)


class Transformer(nn.Module):
    """A stack of blocks under an attention order. Holds weights, nothing else."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(shape.depth))

    def forward(
        self, x: Tensor, encoded: Tensor | None = None, weights: Mapping[int, list[Tensor]] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:  # fmt: skip
        """`[B, n, W]` float32 -> `[B, n, W]` float32, computed in `dtype`.

        encoded: encoder states `[B, E, W]` for kind 6. weights: for each layer named as a key, the list that its
        softmax weights are appended to.
        """
        x = x.to(dtype)
        for index, layer in enumerate(self.layers):
            kept = weights.get(index) if weights else None
            if self.shape.recompute_block and self.training and torch.is_grad_enabled() and kept is None:
                x = checkpoint(layer, x, encoded, use_reentrant=False)
            else:
                x = layer(x, encoded, kept)
        return x.float()

    def states(
        self, x: Tensor, layers: Collection[int], encoded: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> dict[int, Tensor]:
        """The states behind the first d layers for every d of `layers`, `[B, m, W]` float32; 0 is x itself.

        Layers behind the last one asked for are not computed. x `[B, m, W]` may end early, after whole rows.
        """
        x, found = x.to(dtype), {}
        for done in range(max(layers) + 1):
            x = self.layers[done - 1](x, encoded) if done else x
            if done in layers:
                found[done] = x.float()
        return found

    def new_state(self, batch: int, dtype: torch.dtype = torch.float32) -> DecodeState:
        """Preallocated caches of all layers for `batch` items."""
        device = next(self.parameters()).device
        state = int(self.shape.m_attn * self.shape.width)
        patterns: list[Pattern] = [layer.attn.pattern for layer in self.layers]  # type: ignore[union-attr, misc]
        return DecodeState([LayerCache(pattern, batch, state, dtype, device) for pattern in patterns])

    def encode(self, encoded: Tensor, state: DecodeState) -> None:
        """Hand encoder states `[B, E, W]` to the layers that look at them, once per window."""
        for layer, cache in zip(self.layers, state.layers, strict=True):
            if cache.pattern.kind == P.ENCODER:
                layer.attn.encode(encoded, cache)  # type: ignore[union-attr, operator]

    def extend(self, x: Tensor, state: DecodeState) -> Tensor:
        """The next m positions, `[B, m, W]` -> `[B, m, W]` float32; `state` moves on by m.

        The sum over layers stays in float32, whatever the products and the caches are computed in.
        """
        start, m = state.position, x.shape[1]
        places = state.places() if m == 1 else {}
        for layer, cache in zip(self.layers, state.layers, strict=True):
            x = layer.extend(x, start, cache, places.get(cache.pattern))  # type: ignore[operator]
        state.position = start + m
        return x


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in bits: logits `[..., K]`, targets `[...]` -> scalar (arXiv:2005.00341 sec. 4)."""
    nats = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    return nats / 0.6931471805599453
