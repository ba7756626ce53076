"""The SEANet encoder and decoder of EnCodec (arXiv:2210.13438 sec. 3.1): residual convolutions around an LSTM.

Legend: B batch, C channels, T audio samples, N latent frames, D latent channels. A level of stride s maps T to
ceil(T / s) and back to s N.
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.autoencoder.layers import Unbounded, WNConv1d, WNConvTranspose1d, hull, needed
from jukebox.autoencoder.parts import SEANetDecoderArgs, SEANetEncoderArgs
from jukebox.nn.tiles import Span

Args = SEANetEncoderArgs | SEANetDecoderArgs
LSTMState = tuple[Tensor, Tensor]


def _activation(name: str, params: Mapping[str, float | bool] | None) -> nn.Module:
    layer: nn.Module = getattr(nn, name)(**(params or {}))
    return layer


class _NormedConv(nn.Module):
    """A convolution and the norm the config asks for, under the published names `conv.*` and `norm.*`."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, dilation: int, args: Args) -> None:
        super().__init__()
        if args.norm == "weight_norm":
            self.conv: nn.Module = WNConv1d(n_in, n_out, kernel, stride=stride, dilation=dilation)
        else:
            conv: nn.Module = nn.Conv1d(n_in, n_out, kernel, stride=stride, dilation=dilation)
            self.conv = nn.utils.spectral_norm(conv) if args.norm == "spectral_norm" else conv
        self.norm = _norm(n_out, args)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y

    def span(self, span: Span) -> Span:
        return needed(self.conv, needed(self.norm, span))


class _NormedConvTranspose(nn.Module):
    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, args: Args) -> None:
        super().__init__()
        if args.norm == "weight_norm":
            self.convtr: nn.Module = WNConvTranspose1d(n_in, n_out, kernel, stride=stride)
        else:
            conv: nn.Module = nn.ConvTranspose1d(n_in, n_out, kernel, stride=stride)
            self.convtr = nn.utils.spectral_norm(conv) if args.norm == "spectral_norm" else conv
        self.norm = _norm(n_out, args)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.convtr(x))
        return y

    def span(self, span: Span) -> Span:
        return needed(self.convtr, needed(self.norm, span))


def _norm(channels: int, args: Args) -> nn.Module:
    """time_layer_norm is a published name that does nothing."""
    if args.norm != "time_group_norm":
        return nn.Identity()
    eps, affine = args.norm_params.get("eps", 1e-5), args.norm_params.get("affine", True)
    return nn.GroupNorm(1, channels, eps=float(eps), affine=bool(affine))


class PaddedConv(nn.Module):
    """A convolution padded so that its output has ceil(T / stride) frames; causal pads only before."""

    def __init__(self, n_in: int, n_out: int, kernel: int, args: Args, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride, self.causal, self.mode = kernel, stride, args.causal, args.pad_mode
        self.total = (kernel - 1) * dilation - (stride - 1)
        self.conv = _NormedConv(n_in, n_out, kernel, stride, dilation, args)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        frames = math.ceil((length - self.kernel + self.total) / self.stride + 1)
        extra = (frames - 1) * self.stride + self.kernel - self.total - length  # so that the last window is full
        after = 0 if self.causal else self.total // 2
        y: Tensor = self.conv(_pad(x, self.total - after, after + extra, self.mode))
        return y

    def span(self, span: Span) -> Span:
        if self.mode == "circular":
            raise Unbounded("circular padding")
        padded, before = needed(self.conv, span), self.total if self.causal else self.total - self.total // 2
        return Span(padded.first - before, padded.last - before)


def _pad(x: Tensor, before: int, after: int, mode: str) -> Tensor:
    """F.pad, also where the signal is shorter than its reflection: zeros are appended first and cut off again."""
    if mode != "reflect":
        return F.pad(x, (before, after), mode=mode)
    short = max(0, max(before, after) + 1 - x.shape[-1])
    padded = F.pad(F.pad(x, (0, short)), (before, after), mode="reflect")
    return padded[..., : padded.shape[-1] - short]


class TrimmedConvTranspose(nn.Module):
    """A transposed convolution of kernel 2 stride, cut to stride x N samples."""

    def __init__(self, n_in: int, n_out: int, stride: int, args: SEANetDecoderArgs) -> None:
        super().__init__()
        surplus = stride  # kernel - stride
        self.right = math.ceil(surplus * args.trim_right_ratio) if args.causal else surplus // 2
        self.left = surplus - self.right
        self.convtr = _NormedConvTranspose(n_in, n_out, 2 * stride, stride, args)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convtr(x)
        return y[..., self.left : y.shape[-1] - self.right]

    def span(self, span: Span) -> Span:
        return needed(self.convtr, Span(span.first + self.left, span.last + self.left))


class ResidualBlock(nn.Module):
    """Narrow, dilated, wide again; added to the input, or to a 1x1 convolution of it."""

    def __init__(self, channels: int, dilation: int, args: Args) -> None:
        super().__init__()
        hidden = channels // args.compress
        self.block = nn.Sequential(
            _activation(args.activation, args.activation_params),
            PaddedConv(channels, hidden, args.residual_kernel_size, args, dilation=dilation),
            _activation(args.activation, args.activation_params),
            PaddedConv(hidden, channels, 1, args),
        )
        self.shortcut = nn.Identity() if args.true_skip else PaddedConv(channels, channels, 1, args)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.block(x)
        return y

    def span(self, span: Span) -> Span:
        return hull(needed(self.shortcut, span), needed(self.block, span))


class SkipLSTM(nn.Module):
    """An LSTM over time whose output is added to its input, (B, C, N) -> (B, C, N)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.continued(x, None)[0]

    def continued(self, x: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        """As forward, from a state (None: zeros), with the state after the last frame."""
        sequence = x.permute(2, 0, 1)
        y, state = self.lstm(sequence, state)
        return (y + sequence).permute(1, 2, 0), state


class _SEANet(nn.Module):
    """`model` counts activations too; the LSTM, if any, is the one `SkipLSTM` in it."""

    model: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y

    def span(self, span: Span) -> Span:
        return needed(self.model, span)


class SEANetEncoder(_SEANet):
    """Audio (B, C, T) -> latents (B, D, N), downsampling in the listed order of `ratios`."""

    def __init__(self, args: SEANetEncoderArgs) -> None:
        super().__init__()
        width = args.n_filters
        layers: list[nn.Module] = [PaddedConv(args.channels, width, args.kernel_size, args)]
        for ratio in args.ratios:
            layers += [ResidualBlock(width, args.dilation_base**j, args) for j in range(args.n_residual_layers)]
            layers += [
                _activation(args.activation, args.activation_params),
                PaddedConv(width, 2 * width, 2 * ratio, args, stride=ratio),
            ]
            width *= 2
        if args.lstm:
            layers.append(SkipLSTM(width, args.lstm))
        layers += [
            _activation(args.activation, args.activation_params),
            PaddedConv(width, args.dimension, args.last_kernel_size, args),
        ]
        self.model = nn.Sequential(*layers)


class SEANetDecoder(_SEANet):
    """Latents (B, D, N) -> audio (B, C, T), upsampling in the listed order of `ratios`."""

    def __init__(self, args: SEANetDecoderArgs) -> None:
        super().__init__()
        width = args.n_filters * 2 ** len(args.ratios)
        layers: list[nn.Module] = [PaddedConv(args.dimension, width, args.kernel_size, args)]
        if args.lstm:
            layers.append(SkipLSTM(width, args.lstm))
        for ratio in args.ratios:
            layers += [
                _activation(args.activation, args.activation_params),
                TrimmedConvTranspose(width, width // 2, ratio, args),
            ]
            width //= 2
            layers += [ResidualBlock(width, args.dilation_base**j, args) for j in range(args.n_residual_layers)]
        layers += [
            _activation(args.activation, args.activation_params),
            PaddedConv(width, args.channels, args.last_kernel_size, args),
        ]
        if args.final_activation:
            layers.append(_activation(args.final_activation, args.final_activation_params))
        self.model = nn.Sequential(*layers)
