"""The Oobleck encoder and decoder: strided convolutions with dilated residual units (the nets of Stable Audio's VAE).

Legend: B batch, C channels, T audio samples, N latent frames, D latent channels. Encoder (B, C, T) -> (B, D, N),
decoder (B, D, N) -> (B, C, T). A level of even stride s maps T to T // s and back to s N; an odd stride maps T to
(T + 1) // s and back to s N - 1.
"""

import math

from torch import Tensor, nn

from jukebox.autoencoder.layers import AntiAliased, Recomputing, SnakeBeta, Stack, WNConv1d, WNConvTranspose1d, needed
from jukebox.autoencoder.parts import OobleckDecoderArgs, OobleckEncoderArgs
from jukebox.nn.tiles import Span

DILATIONS = (1, 3, 9)


def activation(channels: int, use_snake: bool, antialias: bool = False) -> nn.Module:
    act: nn.Module = SnakeBeta(channels) if use_snake else nn.ELU()
    return AntiAliased(act) if antialias else act


class ResidualUnit(Recomputing):
    """x + conv1(act(conv7(act(x)))), the wide convolution dilated."""

    def __init__(self, channels: int, dilation: int, use_snake: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            activation(channels, use_snake),
            WNConv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            activation(channels, use_snake),
            WNConv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.run(self.layers, x)

    def span(self, span: Span) -> Span:
        return needed(self.layers, span)


class EncoderBlock(Stack):
    """Three residual units, then a strided convolution."""

    def __init__(self, n_in: int, n_out: int, stride: int, use_snake: bool) -> None:
        super().__init__(
            *[ResidualUnit(n_in, dilation, use_snake) for dilation in DILATIONS],
            activation(n_in, use_snake),
            WNConv1d(n_in, n_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2)),
        )


class DecoderBlock(Stack):
    """An upsampling convolution, then three residual units."""

    def __init__(self, n_in: int, n_out: int, stride: int, args: OobleckDecoderArgs) -> None:
        super().__init__(
            activation(n_in, args.use_snake, args.antialias_activation),
            _upsample(n_in, n_out, stride, args.use_nearest_upsample),
            *[ResidualUnit(n_out, dilation, args.use_snake) for dilation in DILATIONS],
        )


def _upsample(n_in: int, n_out: int, stride: int, nearest: bool) -> nn.Module:
    if not nearest:
        return WNConvTranspose1d(n_in, n_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
    return nn.Sequential(
        nn.Upsample(scale_factor=stride, mode="nearest"),
        WNConv1d(n_in, n_out, 2 * stride, padding=(stride - 1, stride), bias=False),
    )


class OobleckEncoder(Stack):
    """Audio (B, C, T) -> latents (B, D, N)."""

    def __init__(self, args: OobleckEncoderArgs) -> None:
        widths = [args.channels, *(m * args.channels for m in args.c_mults)]
        super().__init__(
            WNConv1d(args.in_channels, widths[0], 7, padding=3),
            *[
                EncoderBlock(n_in, n_out, stride, args.use_snake)
                for n_in, n_out, stride in zip(widths, widths[1:], args.strides, strict=False)
            ],
            activation(widths[-1], args.use_snake, args.antialias_activation),
            WNConv1d(widths[-1], args.latent_dim, 3, padding=1),
        )


class OobleckDecoder(Stack):
    """Latents (B, D, N) -> audio (B, C, T). The strides are listed from the audio up, like the encoder's."""

    def __init__(self, args: OobleckDecoderArgs) -> None:
        widths = [args.channels, *(m * args.channels for m in args.c_mults)]
        levels = list(zip(widths[1:], widths, args.strides, strict=False))
        super().__init__(
            WNConv1d(args.latent_dim, widths[-1], 7, padding=3),
            *[DecoderBlock(n_in, n_out, stride, args) for n_in, n_out, stride in reversed(levels)],
            activation(widths[0], args.use_snake, args.antialias_activation),
            WNConv1d(widths[0], args.out_channels, 7, padding=3, bias=False),
            nn.Tanh() if args.final_tanh else nn.Identity(),
        )
