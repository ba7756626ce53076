"""Blocks that the encoders, decoders and discriminators share: weight-normed convolutions and periodic activations.

Module and parameter names are the published ones, in the published order (`bias, weight_g, weight_v`), so a checkpoint
loads without renaming. Legend: B batch, C channels, T audio samples or latent frames.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jukebox.nn.tiles import Span


class Unbounded(Exception):
    """A layer whose every output depends on its whole input."""


_POINTWISE = (nn.Identity, nn.ELU, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)


def needed(layer: nn.Module, span: Span) -> Span:
    """The positions of a layer's input that a span of its output depends on. Raises Unbounded.

    Layers of this package have a method `span` for it.
    """
    own = getattr(layer, "span", None)
    if own is not None:
        found: Span = own(span)
        return found
    if isinstance(layer, _POINTWISE):
        return span
    if isinstance(layer, nn.Sequential):
        for one in reversed(layer):
            span = needed(one, span)
        return span
    if isinstance(layer, nn.Conv1d):
        (kernel,), (stride,), (dilation,) = layer.kernel_size, layer.stride, layer.dilation
        return span.down(stride, (kernel - 1) * dilation + 1, int(layer.padding[0]))
    if isinstance(layer, nn.ConvTranspose1d):
        return span.up(layer.stride[0], layer.kernel_size[0], int(layer.padding[0]))
    if isinstance(layer, nn.Upsample):
        factor = int(layer.scale_factor)  # type: ignore[arg-type]
        return Span(span.first // factor, span.last // factor)
    raise Unbounded(type(layer).__name__)


def hull(a: Span, b: Span) -> Span:
    return Span(min(a.first, b.first), max(a.last, b.last))


class Stack(nn.Module):
    """A net that is its `layers`, one after the other: (B, C, T) -> (B, C', T')."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y

    def span(self, span: Span) -> Span:
        return needed(self.layers, span)


class WeightNorm(nn.Module):
    """A weight as direction and length, `w = g * v / |v|`, the norm over all axes but the first (arXiv:1602.07868).

    For transposed convolutions the first axis is the input's; the published checkpoints do it that way.
    """

    def __init__(self, shape: tuple[int, ...], n_bias: int) -> None:
        super().__init__()
        fan_in = math.prod(shape[1:])
        direction = torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)
        self.bias = nn.Parameter(torch.empty(n_bias).uniform_(-(fan_in**-0.5), fan_in**-0.5)) if n_bias else None
        self.weight_g = nn.Parameter(_length(direction))
        self.weight_v = nn.Parameter(direction)

    def weight(self) -> Tensor:
        return self.weight_v * (self.weight_g / _length(self.weight_v))


def _length(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1)
    return length.view(-1, *[1] * (v.ndim - 1))


class WNConv1d(WeightNorm):
    """Weight-normed convolution, (B, C_in, T) -> (B, C_out, T'). `padding` may be (before, after)."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__((n_out, n_in, kernel), n_out if bias else 0)
        self.stride, self.dilation = stride, dilation
        self.sides = padding if isinstance(padding, tuple) else (0, 0)
        self.padding = 0 if isinstance(padding, tuple) else padding

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.sides) if any(self.sides) else x
        return F.conv1d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation)

    def span(self, span: Span) -> Span:
        reach = (self.weight_v.shape[-1] - 1) * self.dilation + 1
        return span.down(self.stride, reach, self.padding + self.sides[0])


class WNConvTranspose1d(WeightNorm):
    """Weight-normed transposed convolution, (B, C_in, T) -> (B, C_out, T')."""

    def __init__(self, n_in: int, n_out: int, kernel: int, *, stride: int, padding: int = 0) -> None:
        super().__init__((n_in, n_out, kernel), n_out)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(x, self.weight(), self.bias, self.stride, self.padding)

    def span(self, span: Span) -> Span:
        return span.up(self.stride, self.weight_v.shape[-1], self.padding)


class WNConv2d(WeightNorm):
    """Weight-normed convolution over two axes, (B, C_in, H, W) -> (B, C_out, H', W')."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__((n_out, n_in, *kernel), n_out)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation)


def snake(x: Tensor, frequency: Tensor, divisor: Tensor) -> Tensor:
    """x + sin^2(frequency x) / divisor, for periodic signals (arXiv:2006.08195)."""
    return x + torch.sin(x * frequency).square() / (divisor + 1e-9)


class Snake(nn.Module):
    """Snake with one frequency per channel, stored as [1, C, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return snake(x, self.alpha, self.alpha)

    def span(self, span: Span) -> Span:
        return span


class SnakeBeta(nn.Module):
    """Snake with frequency and size apart, both stored as logarithms, [C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return snake(x, self.alpha.exp()[:, None], self.beta.exp()[:, None])

    def span(self, span: Span) -> Span:
        return span


class Recomputing(nn.Module):
    """A block that can forget its activations and make them again in the backward pass: less memory, a third more work."""

    recompute = False

    def run(self, layers: nn.Module, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            out: Tensor = checkpoint(layers, x, use_reentrant=False)
            return out
        y: Tensor = layers(x)
        return y


def set_recompute(net: nn.Module, on: bool) -> None:
    """Let every block of `net` that can do so recompute its activations in training."""
    for module in net.modules():
        if isinstance(module, Recomputing):
            module.recompute = on


class AntiAliased(nn.Module):
    """An activation at twice the rate, between two low-pass filters, so that its overtones do not fold back."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.upsample = _DoubleRate()
        self.downsample = _HalveRate()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.downsample(self.act(self.upsample(x)))
        return y

    def span(self, span: Span) -> Span:
        doubled = span.down(2, 12, 5)
        padded = Span(doubled.first + 15, doubled.last + 15).up(2, 12, 0)
        return Span(padded.first - 5, padded.last - 5)


class _HalfBand(nn.Module):
    """The filter of both directions, for each channel by itself."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", _half_band_filter())


class _DoubleRate(_HalfBand):
    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        padded = F.pad(x, (5, 5), mode="replicate")
        doubled = F.conv_transpose1d(padded, self.filter.expand(channels, -1, -1), stride=2, groups=channels)
        return 2 * doubled[..., 15:-15]  # (B, C, T) -> (B, C, 2T)


class _HalveRate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lowpass = _LowPass()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lowpass(x)
        return y


class _LowPass(_HalfBand):
    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        padded = F.pad(x, (5, 6), mode="replicate")
        return F.conv1d(padded, self.filter.expand(channels, -1, -1), stride=2, groups=channels)


def _half_band_filter(taps: int = 12) -> Tensor:
    """Kaiser-windowed sinc at half the band, [1, 1, taps], sum 1 (Kaiser's formula for the window's beta)."""
    cutoff, half_width = 0.25, 0.3
    attenuation_db = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation_db > 50:
        beta = 0.1102 * (attenuation_db - 8.7)
    elif attenuation_db >= 21:
        beta = 0.5842 * (attenuation_db - 21) ** 0.4 + 0.07886 * (attenuation_db - 21)
    else:
        beta = 0.0
    time = torch.arange(taps) - (taps - 1) / 2
    window = torch.kaiser_window(taps, periodic=False, beta=beta)
    kernel = 2 * cutoff * window * torch.sinc(2 * cutoff * time)
    return (kernel / kernel.sum()).view(1, 1, taps)
