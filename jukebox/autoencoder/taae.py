"""The transformer-augmented encoder and decoder: strided convolutions with transformers between them.

Legend: B batch, C channels, T audio samples, N latent frames, D latent channels, W width, H heads, h head width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.autoencoder.layers import Recomputing, SnakeBeta, Stack, Unbounded, WNConv1d, WNConvTranspose1d, needed
from jukebox.autoencoder.oobleck import DILATIONS, ResidualUnit
from jukebox.autoencoder.parts import TAAEDecoderArgs, TAAEEncoderArgs
from jukebox.nn.tiles import Span

Args = TAAEEncoderArgs | TAAEDecoderArgs


class LayerNorm(nn.Module):
    """Layer norm with a learnt gain; the offset is a stored zero."""

    beta: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta, eps=1e-2)


class LayerScale(nn.Module):
    """A gain per channel that starts near zero (arXiv:2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Rotary(nn.Module):
    """Rotation angles of the first half of each head (arXiv:2104.09864)."""

    inv_freq: Tensor

    def __init__(self, head_width: int) -> None:
        super().__init__()
        rotated = head_width // 2
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, rotated, 2).float() / rotated))

    def angles(self, length: int) -> Tensor:
        """[N, h // 2] float32; the frequencies stand twice, dimension i turns with i + h / 4."""
        angles = torch.arange(length, device=self.inv_freq.device).float()[:, None] * self.inv_freq.float()
        return torch.cat([angles, angles], dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the first dimensions of x [B, H, N, h] by `angles` [N, r], in float32."""
    turned, kept = x[..., : angles.shape[-1]].float(), x[..., angles.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
    return torch.cat([turned.to(x.dtype), kept], dim=-1)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> Tensor:
    """Attention in which position i sees i - left ... i + right; q, k, v [B, H, N, h] -> [B, H, N, h].

    Blocks of queries against the keys they can reach, so that memory grows with N x window and not with N x N.
    """
    B, H, N, h = q.shape
    block = left + right + 1
    if block >= N:
        return _attend_band(q, k, v, torch.arange(N, device=q.device), torch.arange(N, device=q.device), left, right)
    blocks = -(-N // block)
    reach = block + left + right
    spare = blocks * block - N
    q = F.pad(q, (0, 0, 0, spare)).view(B, H, blocks, block, h)
    k, v = (F.pad(y, (0, 0, left, right + spare)).unfold(2, reach, block).mT for y in (k, v))
    queries = torch.arange(block, device=q.device)
    keys = torch.arange(reach, device=q.device) - left
    first = torch.arange(blocks, device=q.device)[:, None] * block
    inside = (first + keys >= 0) & (first + keys < N)  # [blocks, reach]
    y = _attend_band(q, k, v, queries, keys, left, right, inside[:, None])
    return y.flatten(2, 3)[:, :, :N]


def _attend_band(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, left: int, right: int, inside: Tensor | None = None
) -> Tensor:
    distance = keys[None, :] - queries[:, None]
    seen = (distance >= -left) & (distance <= right)
    if inside is not None:
        seen = seen & inside
        # A padded query sees no key at all; let it see everything, its output is cut away.
        seen = seen | ~seen.any(-1, keepdim=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys; heads of at most 128."""

    def __init__(self, width: int, window: tuple[int, int] | None, zero_out: bool) -> None:
        super().__init__()
        self.head_width, self.window = min(128, width), window
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        if zero_out:
            nn.init.zeros_(self.to_out.weight)
        self.q_norm = nn.LayerNorm(self.head_width, eps=1e-6)
        self.k_norm = nn.LayerNorm(self.head_width, eps=1e-6)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for y in self.to_qkv(x).chunk(3, dim=-1))
        q, k = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles)
        if self.window is None:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = windowed_attention(q, k, v, *self.window)
        out: Tensor = self.to_out(y.transpose(1, 2).flatten(2))  # (B, H, N, h) -> (B, N, W)
        return out


class Gated(nn.Module):
    """First half of a projection times SiLU of the second."""

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * n_out)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.silu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int, zero_out: bool) -> None:
        super().__init__()
        self.ff = nn.Sequential(Gated(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))
        if zero_out:
            for parameter in self.ff[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ff(x)
        return y


class Conformer(nn.Module):
    """Gated depthwise convolution over time (arXiv:2005.08100 sec. 2.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_norm = LayerNorm(width)
        self.pointwise_conv = nn.Conv1d(width, width, 1, bias=False)
        self.glu = Gated(width, width)
        self.depthwise_conv = nn.Conv1d(width, width, 17, padding=8, groups=width, bias=False)
        self.mid_norm = LayerNorm(width)
        self.pointwise_conv_2 = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.glu(self.pointwise_conv(self.in_norm(x).mT).mT)
        x = F.silu(self.mid_norm(self.depthwise_conv(x.mT).mT))
        y: Tensor = self.pointwise_conv_2(x.mT).mT
        return y


class TransformerBlock(nn.Module):
    """Attention, optional conformer, feed-forward, each added to its input; (B, N, W) -> (B, N, W)."""

    def __init__(self, width: int, args: Args) -> None:
        super().__init__()
        zero_out = not args.layer_scale
        self.pre_norm = LayerNorm(width)
        self.self_attn = Attention(width, args.sliding_window, zero_out)
        self.self_attn_scale = LayerScale(width) if args.layer_scale else nn.Identity()
        self.conformer = Conformer(width) if args.conformer else None
        if args.conformer:
            self.conformer_scale = LayerScale(width) if args.layer_scale else nn.Identity()
        self.ff_norm = LayerNorm(width)
        self.ff = FeedForward(width, zero_out)
        self.ff_scale = LayerScale(width) if args.layer_scale else nn.Identity()
        self.rope = Rotary(min(128, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn_scale(self.self_attn(self.pre_norm(x), self.rope.angles(x.shape[1])))
        if self.conformer is not None:
            x = x + self.conformer_scale(self.conformer(x))
        x = x + self.ff_scale(self.ff(self.ff_norm(x)))
        return x

    def span(self, span: Span) -> Span:
        """Rotation depends on differences of positions alone, so a chunk may begin anywhere."""
        if self.self_attn.window is None:
            raise Unbounded("full attention")
        left, right = self.self_attn.window
        span = span if self.conformer is None else span.grow(8)
        return Span(span.first - left, span.last + right)


class _Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT

    def span(self, span: Span) -> Span:
        return span


def _transformer(width: int, depth: int, args: Args) -> nn.Module:
    """(B, W, N) -> (B, W, N)."""
    return nn.Sequential(_Transpose(), *[TransformerBlock(width, args) for _ in range(depth)], _Transpose())


def _activation(channels: int, use_snake: bool) -> nn.Module:
    """Without snake there is no activation between these layers: the transformers bring their own."""
    return SnakeBeta(channels) if use_snake else nn.Identity()


def _dilated(channels: int, args: Args) -> list[nn.Module]:
    return [ResidualUnit(channels, dilation, args.use_snake) for dilation in DILATIONS] if args.use_dilated_conv else []


class _Block(Recomputing):
    def __init__(self, *layers: nn.Module, recompute: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layers, x)

    def span(self, span: Span) -> Span:
        return needed(self.layers, span)


def _encoder_block(n_in: int, n_out: int, stride: int, depth: int, args: TAAEEncoderArgs) -> nn.Module:
    down = WNConv1d(n_in, n_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
    return _Block(
        *_dilated(n_in, args),
        _activation(n_in, args.use_snake),
        down if stride > 1 else nn.Identity(),
        _transformer(n_out, depth, args),
        recompute=args.checkpointing,
    )


def _decoder_block(n_in: int, n_out: int, stride: int, depth: int, args: TAAEDecoderArgs) -> nn.Module:
    """The activation has the width it sees; the published one has n_out, which fits only where both are equal."""
    up = WNConvTranspose1d(n_in, n_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
    return _Block(
        _transformer(n_in, depth, args),
        _activation(n_in, args.use_snake),
        up if stride > 1 else nn.Identity(),
        *_dilated(n_out, args),
        recompute=args.checkpointing,
    )


def _widths(args: Args) -> list[int]:
    return [m * args.channels for m in (args.c_mults[0], *args.c_mults)]


class TAAEEncoder(Stack):
    """Audio (B, C, T) -> latents (B, D, N)."""

    def __init__(self, args: TAAEEncoderArgs) -> None:
        widths = _widths(args)
        super().__init__(
            WNConv1d(args.in_channels, widths[0], 7, padding=3),
            *[
                _encoder_block(n_in, n_out, stride, depth, args)
                for n_in, n_out, stride, depth in zip(
                    widths, widths[1:], args.strides, args.transformer_depths, strict=False
                )
            ],
            _activation(widths[-1], args.use_snake),
            WNConv1d(widths[-1], args.latent_dim, 3, padding=1),
        )


class TAAEDecoder(Stack):
    """Latents (B, D, N) -> audio (B, C, T); strides and depths are listed from the audio up, like the encoder's."""

    def __init__(self, args: TAAEDecoderArgs) -> None:
        widths = _widths(args)
        levels = list(zip(widths[1:], widths, args.strides, args.transformer_depths, strict=False))
        super().__init__(
            WNConv1d(args.latent_dim, widths[-1], 3, padding=1),
            *[_decoder_block(n_in, n_out, stride, depth, args) for n_in, n_out, stride, depth in reversed(levels)],
            _activation(widths[0], args.use_snake),
            WNConv1d(widths[0], args.out_channels, 7, padding=3, bias=False),
        )
