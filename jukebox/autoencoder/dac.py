"""The DAC encoder and decoder (arXiv:2306.06546): as Oobleck's, channels doubling at each level, Snake activations.

Legend: B batch, C channels, T audio samples, N latent frames, D latent channels.
"""

import math

from torch import Tensor, nn

from jukebox.autoencoder.layers import Recomputing, Snake, WNConv1d, WNConvTranspose1d, needed
from jukebox.autoencoder.parts import DACDecoderArgs, DACEncoderArgs
from jukebox.nn.tiles import Span

DILATIONS = (1, 3, 9)


class ResidualUnit(Recomputing):
    """x + conv1(snake(conv7(snake(x)))), the wide convolution dilated."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake(channels),
            WNConv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            Snake(channels),
            WNConv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.run(self.block, x)

    def span(self, span: Span) -> Span:
        return needed(self.block, span)


class _Block(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y

    def span(self, span: Span) -> Span:
        return needed(self.block, span)


def _down(n_in: int, stride: int) -> nn.Module:
    return _Block(
        *[ResidualUnit(n_in, dilation) for dilation in DILATIONS],
        Snake(n_in),
        WNConv1d(n_in, 2 * n_in, 2 * stride, stride=stride, padding=math.ceil(stride / 2)),
    )


def _up(n_in: int, n_out: int, stride: int) -> nn.Module:
    return _Block(
        Snake(n_in),
        WNConvTranspose1d(n_in, n_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2)),
        *[ResidualUnit(n_out, dilation) for dilation in DILATIONS],
    )


class DACEncoder(nn.Module):
    """Audio (B, C, T) -> latents (B, D, N); without `latent_dim` D is the width of the last level."""

    def __init__(self, args: DACEncoderArgs) -> None:
        super().__init__()
        widths = [args.d_model * 2**i for i in range(len(args.strides) + 1)]
        self.encoder = _Block(
            WNConv1d(args.in_channels, widths[0], 7, padding=3),
            *[_down(width, stride) for width, stride in zip(widths, args.strides, strict=False)],
            Snake(widths[-1]),
            WNConv1d(widths[-1], widths[-1], 3, padding=1),
        )
        self.proj_out = nn.Identity() if args.latent_dim is None else nn.Conv1d(widths[-1], args.latent_dim, 1)

    def forward(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.proj_out(self.encoder(audio))
        return latents

    def span(self, span: Span) -> Span:
        return needed(self.encoder, needed(self.proj_out, span))


class DACDecoder(nn.Module):
    """Latents (B, D, N) -> audio (B, C, T), bounded by tanh. The rates are listed from the latents down."""

    def __init__(self, args: DACDecoderArgs) -> None:
        super().__init__()
        widths = [args.channels // 2**i for i in range(len(args.rates) + 1)]
        self.decoder = _Model(
            WNConv1d(args.latent_dim, widths[0], 7, padding=3),
            *[_up(n_in, n_out, rate) for n_in, n_out, rate in zip(widths, widths[1:], args.rates, strict=False)],
            Snake(widths[-1]),
            WNConv1d(widths[-1], args.out_channels, 7, padding=3),
            nn.Tanh(),
        )

    def forward(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.decoder(latents)
        return audio

    def span(self, span: Span) -> Span:
        return needed(self.decoder, span)


class _Model(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y

    def span(self, span: Span) -> Span:
        return needed(self.model, span)
