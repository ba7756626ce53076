"""Fixed transforms before the encoder and after the decoder, that trade samples for channels.

Legend: B batch, C audio channels, T audio samples, F frames. `encode` maps (B, C, T) -> (B, C', F), `decode` back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.autoencoder import config as C
from jukebox.autoencoder.filters import Taps, pqmf_bank, sinc_kernel, sinc_resample, wavelet_kernels
from jukebox.autoencoder.layers import Unbounded, hull
from jukebox.autoencoder.quantisers import Draws
from jukebox.nn.tiles import Span

if TYPE_CHECKING:
    from jukebox.autoencoder.model import Autoencoder, Chunks


class Pretransform(nn.Module):
    """`enable_grad`: gradients pass, and parameters, where there are any, are trained."""

    enable_grad = False

    def encode(self, audio: Tensor, draws: Draws) -> Tensor:
        raise NotImplementedError

    def decode(self, frames: Tensor, draws: Draws) -> Tensor:
        raise NotImplementedError

    def encode_span(self, span: Span) -> Span:
        """The audio that a span of frames depends on. Raises Unbounded."""
        raise Unbounded(type(self).__name__)

    def decode_span(self, span: Span) -> Span:
        """The frames that a span of audio depends on. Raises Unbounded."""
        raise Unbounded(type(self).__name__)


class _Kernel(nn.Module):
    """A low- and high-pass pair for each channel, block-diagonal, [2 C, C, k]."""

    kernel: Tensor

    def __init__(self, pair: Taps, channels: int) -> None:
        super().__init__()
        kernel = torch.zeros(2, channels, channels, pair.shape[1])
        for c in range(channels):
            kernel[:, c, c] = torch.from_numpy(pair)
        self.register_buffer("kernel", kernel.flatten(0, 1))


class Wavelet(Pretransform):
    """A biorthogonal wavelet transform; the low band is split again at each level. Ratio 2^levels."""

    def __init__(self, args: C.WaveletArgs) -> None:
        super().__init__()
        self.channels, self.levels = args.channels, args.levels
        analysis, synthesis = wavelet_kernels(args.wavelet)
        self.reach = analysis.shape[1] // 2
        self.encoder, self.decoder = _Kernel(analysis, self.channels), _Kernel(synthesis, self.channels)

    def encode(self, audio: Tensor, draws: Draws) -> Tensor:
        x = audio
        for _ in range(self.levels):
            low, rest = x[:, : self.channels], x[:, self.channels :]
            low = F.pad(low, (self.reach, self.reach), mode="reflect")
            low = F.conv1d(low, self.encoder.kernel, stride=2)
            x = torch.cat([low, self._fold(rest)], dim=1)
        return x

    def decode(self, frames: Tensor, draws: Draws) -> Tensor:
        x, pad = frames, self.reach + 2
        for _ in range(self.levels):
            low, rest = x[:, : 2 * self.channels], x[:, 2 * self.channels :]
            pairs = low.unflatten(1, (2, self.channels)).permute(0, 2, 3, 1).flatten(2)  # (B, 2 C, F) -> (B, C, 2 F)
            pairs = F.pad(pairs, (pad, pad), mode="reflect")
            low = pairs.unflatten(2, (-1, 2)).permute(0, 3, 1, 2).flatten(1, 2)
            low = F.conv_transpose1d(low, self.decoder.kernel, stride=2, padding=self.reach)
            x = torch.cat([low[..., pad - 1 : -pad], self._unfold(rest)], dim=1)
        return x

    def encode_span(self, span: Span) -> Span:
        for _ in range(self.levels):
            span = hull(span.down(2, 2 * self.reach + 1, self.reach), Span(2 * span.first, 2 * span.last + 1))
        return span

    def decode_span(self, span: Span) -> Span:
        pad = self.reach + 2
        for _ in range(self.levels):
            padded = Span(span.first + pad - 1, span.last + pad - 1).up(2, 2 * self.reach + 1, self.reach)
            low = Span(padded.first - pad // 2, padded.last - pad // 2)
            span = hull(low, Span(span.first // 2, span.last // 2))
        return span

    def _fold(self, x: Tensor) -> Tensor:
        """Pairs of samples become channels: (B, (a C), (F 2)) -> (B, (a 2 C), F)."""
        B, channels, T = x.shape
        x = x.reshape(B, channels // self.channels, self.channels, T // 2, 2)
        return x.permute(0, 1, 4, 2, 3).reshape(B, 2 * channels, T // 2)

    def _unfold(self, x: Tensor) -> Tensor:
        B, channels, T = x.shape
        x = x.reshape(B, channels // (2 * self.channels), 2, self.channels, T)
        return x.permute(0, 1, 3, 4, 2).reshape(B, channels // 2, 2 * T)


class Patched(Pretransform):
    """`patch_size` samples become channels, channel-major; the end is padded with zeros and not cut again.

    With `oversampling` they are samples of so many times the rate, so a frame stands for patch_size / oversampling.
    """

    up: Tensor
    down: Tensor

    def __init__(self, args: C.PatchedArgs) -> None:
        super().__init__()
        self.patch_size, self.oversampling = args.patch_size, args.oversampling
        up, self.up_half = sinc_kernel(args.oversampling, 1)
        down, self.down_half = sinc_kernel(1, args.oversampling)
        self.register_buffer("up", up, persistent=False)
        self.register_buffer("down", down, persistent=False)

    def encode(self, audio: Tensor, draws: Draws) -> Tensor:
        if self.oversampling > 1:
            audio = sinc_resample(audio, self.up, self.up_half, 1)
        audio = F.pad(audio, (0, -audio.shape[-1] % self.patch_size))
        patches: Tensor = audio.unflatten(2, (-1, self.patch_size))  # (B, C, T) -> (B, C, F, patch)
        return patches.mT.flatten(1, 2)

    def decode(self, frames: Tensor, draws: Draws) -> Tensor:
        audio = frames.unflatten(1, (-1, self.patch_size)).mT.flatten(2)
        return sinc_resample(audio, self.down, self.down_half, self.oversampling) if self.oversampling > 1 else audio

    def encode_span(self, span: Span) -> Span:
        span = span.down(self.patch_size, self.patch_size, 0)
        if self.oversampling == 1:
            return span
        return Span(span.first // self.oversampling, span.last // self.oversampling).grow(self.up_half)

    def decode_span(self, span: Span) -> Span:
        if self.oversampling > 1:
            span = span.down(self.oversampling, 2 * self.down_half + self.oversampling, self.down_half)
        return Span(span.first // self.patch_size, span.last // self.patch_size)


class PQMF(Pretransform):
    """A pseudo-QMF bank; every second sample of the odd bands changes sign, so that all spectra point the same way."""

    bank: Tensor

    def __init__(self, args: C.PQMFArgs) -> None:
        super().__init__()
        self.bands = args.num_bands
        self.register_buffer("bank", pqmf_bank(args.attenuation, args.num_bands)[:, None], persistent=False)

    def encode(self, audio: Tensor, draws: Draws) -> Tensor:
        half, frames = self.bank.shape[-1] // 2, audio.shape[-1] // self.bands
        padded = F.pad(audio.flatten(0, 1)[:, None], (half, half))
        split = F.conv1d(padded, self.bank, stride=self.bands)[..., :frames]
        return self._turn(split).reshape(audio.shape[0], -1, frames)

    def decode(self, frames: Tensor, draws: Draws) -> Tensor:
        half, samples = self.bank.shape[-1] // 2, frames.shape[-1] * self.bands
        split = frames.unflatten(1, (-1, self.bands))
        audio = F.conv_transpose1d(self._turn(split.flatten(0, 1)), self.bank, stride=self.bands) * self.bands
        return audio[:, 0, half : half + samples].reshape(frames.shape[0], -1, samples)

    def encode_span(self, span: Span) -> Span:
        return span.down(self.bands, self.bank.shape[-1], self.bank.shape[-1] // 2)

    def decode_span(self, span: Span) -> Span:
        half = self.bank.shape[-1] // 2
        return Span(span.first + half, span.last + half).up(self.bands, 2 * half, 0)

    @staticmethod
    def _turn(split: Tensor) -> Tensor:
        sign = torch.ones_like(split[:1])
        sign[:, 1::2, ::2] = -1
        return split * sign


class InnerAutoencoder(Pretransform):
    """A frozen autoencoder; its latents are divided by `scale`."""

    def __init__(self, args: C.AutoencoderPretransform, model: Autoencoder, chunks: Chunks | None) -> None:
        super().__init__()
        self.args, self.chunks = args, chunks
        self.model = model.half() if args.model_half else model

    def narrow(self, x: Tensor) -> Tensor:
        """x in the precision of the inner model."""
        return x.half() if self.args.model_half else x

    def encode(self, audio: Tensor, draws: Draws) -> Tensor:
        dtype, audio = audio.dtype, self.narrow(audio)
        whole = self.model.encode_audio(audio, self.chunks, iterate_batch=self.args.iterate_batch, draws=draws)
        return whole.to(dtype) / self.args.scale

    def decode(self, frames: Tensor, draws: Draws) -> Tensor:
        dtype, latents = frames.dtype, self.narrow(frames * self.args.scale)
        audio = self.model.decode_audio(latents, self.chunks, iterate_batch=self.args.iterate_batch, draws=draws)
        return audio.to(dtype)


def build_pretransform(part: C.Pretransform) -> Pretransform:
    """The pretransform that a part of a config describes, untrained, in evaluation mode; frozen unless gradients are asked."""
    transform: Pretransform
    match part.config:
        case C.WaveletArgs() as args:
            transform = Wavelet(args)
        case C.PatchedArgs() as args:
            transform = Patched(args)
        case C.PQMFArgs() as args:
            transform = PQMF(args)
        case _:
            from jukebox.autoencoder.model import Autoencoder, Chunks

            assert isinstance(part, C.AutoencoderPretransform)
            transform = InnerAutoencoder(part, Autoencoder(part.config), Chunks() if part.chunked else None)
    transform.enable_grad = part.enable_grad
    return transform.requires_grad_(part.enable_grad).eval()
