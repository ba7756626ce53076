"""Discriminators and the adversarial losses they give.

A discriminator maps audio [B, C, T] to one `Judgement` per net: logits, and the features inside. From the judgements
of real and decoded audio follow the loss it is trained on and the two that train the autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.audio.spectral import STFT
from jukebox.autoencoder import recipe as R
from jukebox.autoencoder.layers import WNConv1d, WNConv2d


@dataclass(frozen=True)
class Judgement:
    """What one net says: logits of any shape, features of its layers."""

    logits: Tensor
    features: list[Tensor]


@dataclass(frozen=True)
class AdversarialLosses:
    """Scalars: what the discriminator minimises, and the autoencoder's two terms."""

    discriminator: Tensor
    adversarial: Tensor
    feature_matching: Tensor


class Discriminator(nn.Module):
    """The common part: who is compared with whom. Subclasses give `judge` and the three formulas."""

    def judge(self, audio: Tensor) -> list[Judgement]:
        raise NotImplementedError

    def discriminator_loss(self, real: list[Judgement], fake: list[Judgement]) -> Tensor:
        raise NotImplementedError

    def adversarial_loss(self, fake: list[Judgement]) -> Tensor:
        raise NotImplementedError

    def feature_matching(self, real: list[Judgement], fake: list[Judgement]) -> Tensor:
        raise NotImplementedError

    def losses(self, reals: Tensor, fakes: Tensor) -> AdversarialLosses:
        """All three from audio [B, C, T]; gradients reach every argument."""
        real, fake = self.judge(reals), self.judge(fakes)
        return AdversarialLosses(
            self.discriminator_loss(real, fake), self.adversarial_loss(fake), self.feature_matching(real, fake)
        )

    def own_loss(self, reals: Tensor, fakes: Tensor) -> Tensor:
        """What the discriminator is trained on; the autoencoder gets no gradient."""
        return self.discriminator_loss(self.judge(reals), self.judge(fakes.detach()))

    def generator_losses(self, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor]:
        """(adversarial, feature matching) for the autoencoder; the real side is computed without gradient."""
        with torch.no_grad():
            real = self.judge(reals)
        fake = self.judge(fakes)
        return self.adversarial_loss(fake), self.feature_matching(real, fake)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


# --------------------------------------------------------------------------------------------- multi-scale spectrograms


class _Conv2d(nn.Module):
    """A weight-normed convolution under the published name `conv`."""

    def __init__(self, n_in: int, n_out: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: int) -> None:
        super().__init__()
        padding = ((kernel[0] - 1) // 2 * dilation, (kernel[1] - 1) // 2)
        self.conv = WNConv2d(n_in, n_out, kernel, stride=stride, padding=padding, dilation=(dilation, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class _Window(nn.Module):
    window: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(length))


class _STFTNet(nn.Module):
    """2-D convolutions over the real and imaginary parts of one STFT (arXiv:2210.13438 sec. 3.4)."""

    def __init__(self, channels: int, n_fft: int, hop: int, window: int, args: R.EncodecDiscriminatorArgs) -> None:
        super().__init__()
        self.args = args
        self.stft = STFT(n_fft, hop, window)
        self.spec_transform = _Window(window)
        width, square = min(args.filters, args.max_filters), (args.kernel_size[0], args.kernel_size[0])
        convs = [_Conv2d(2 * channels, width, args.kernel_size, (1, 1), 1)]
        convs += [_Conv2d(width, width, args.kernel_size, args.stride, dilation) for dilation in args.dilations]
        convs.append(_Conv2d(width, width, square, (1, 1), 1))
        self.convs = nn.ModuleList(convs)
        self.conv_post = _Conv2d(width, args.out_channels, square, (1, 1), 1)

    def forward(self, audio: Tensor) -> Judgement:
        """Audio `[B, C, T]` -> logits over time and frequency of its STFT, and every layer's output."""
        window = self.spec_transform.window
        spectrum = self.stft.spectrum(audio.flatten(0, 1), window, centred=False)
        if self.args.normalized:
            spectrum = spectrum / window.square().sum().sqrt()
        if self.args.spec_scale_pow:
            spectrum = spectrum * (spectrum.abs() + 1e-6) ** self.args.spec_scale_pow
        x = spectrum.view(*audio.shape[:2], *spectrum.shape[1:]).mT  # (B C, bins, frames) -> (B, C, frames, bins)
        x = torch.cat([x.real, x.imag], dim=1)
        slope = self.args.activation_params.get("negative_slope", 0.01)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), slope)
            features.append(x)
        return Judgement(self.conv_post(x), features)


class _STFTNets(nn.Module):
    def __init__(self, channels: int, args: R.EncodecDiscriminatorArgs) -> None:
        super().__init__()
        scales = zip(args.n_ffts, args.hop_lengths, args.win_lengths, strict=True)
        self.discriminators = nn.ModuleList(_STFTNet(channels, *scale, args) for scale in scales)


class EncodecDiscriminator(Discriminator):
    """Nets at several STFT resolutions, hinge loss, everything averaged over the scales."""

    def __init__(self, channels: int, args: R.EncodecDiscriminatorArgs) -> None:
        super().__init__()
        self.normalise = args.normalize_losses
        self.discriminators = _STFTNets(channels, args)

    def judge(self, audio: Tensor) -> list[Judgement]:
        return [net(audio) for net in self.discriminators.discriminators]

    def discriminator_loss(self, real: list[Judgement], fake: list[Judgement]) -> Tensor:
        return _mean([
            F.relu(1 - r.logits).mean() + F.relu(1 + f.logits).mean() for r, f in zip(real, fake, strict=True)
        ])  # fmt: skip

    def adversarial_loss(self, fake: list[Judgement]) -> Tensor:
        return _mean([-f.logits.mean() for f in fake])

    def feature_matching(self, real: list[Judgement], fake: list[Judgement]) -> Tensor:
        return _mean([
            _mean([self._distance(a, b) for a, b in zip(r.features, f.features, strict=True)])
            for r, f in zip(real, fake, strict=True)
        ])  # fmt: skip

    def _distance(self, real: Tensor, fake: Tensor) -> Tensor:
        distance = F.l1_loss(real, fake)
        return distance / (real.abs().mean() + 1e-3) if self.normalise else distance


# ----------------------------------------------------------------------------------------------- waveforms and periods


class _OobleckNet(nn.Module):
    """Four strided convolutions; every output before its activation is a feature, the last one too."""

    def __init__(self, channels: int, two_axes: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in zip((channels, 32, 64, 128), (32, 64, 128, 256), strict=True):
            if two_axes:
                layers += [WNConv2d(n_in, n_out, (15, 15), stride=(4, 4), padding=(7, 7)), nn.SiLU()]
            else:
                layers += [WNConv1d(n_in, n_out, 15, stride=4, padding=7), nn.SiLU()]
        layers.append(nn.Conv2d(256, 1, 1) if two_axes else nn.Conv1d(256, 1, 1))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Judgement:
        features = []
        for layer in self.net:
            x = layer(x)
            if not isinstance(layer, nn.SiLU):
                features.append(x)
        return Judgement(x.flatten(1).mean(1), features)


class _OobleckNets(nn.Module):
    def __init__(self, channels: int, nets: int, two_axes: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_OobleckNet(channels, two_axes) for _ in range(nets))


class _OobleckGroups(nn.Module):
    def __init__(self, channels: int, scales: int, periods: int) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList([
            _OobleckNets(channels, scales, two_axes=False), _OobleckNets(channels, periods, two_axes=True)
        ])  # fmt: skip


class OobleckDiscriminator(Discriminator):
    """Nets on the waveform at three rates and folded at five periods; hinge loss on the sum of all scores."""

    scales, periods = 3, (2, 3, 5, 7, 11)

    def __init__(self, channels: int, args: R.OobleckDiscriminatorArgs) -> None:
        super().__init__()
        self.multi_discriminator = _OobleckGroups(args.in_channels or channels, self.scales, len(self.periods))

    def judge(self, audio: Tensor) -> list[Judgement]:
        by_scale, by_period = self.multi_discriminator.discriminators
        assert isinstance(by_scale, _OobleckNets) and isinstance(by_period, _OobleckNets)
        judgements, x = [], audio
        for net in by_scale.layers:
            judgements.append(net(x))
            x = F.avg_pool1d(x, 2)
        for net, period in zip(by_period.layers, self.periods, strict=True):
            folded = F.pad(audio, (0, -audio.shape[-1] % period))
            judgements.append(net(folded.reshape(*audio.shape[:2], -1, period)))
        return judgements

    def discriminator_loss(self, real: list[Judgement], fake: list[Judgement]) -> Tensor:
        return F.relu(1 - self._score(real)).mean() + F.relu(1 + self._score(fake)).mean()

    def adversarial_loss(self, fake: list[Judgement]) -> Tensor:
        return -self._score(fake).mean()

    def feature_matching(self, real: list[Judgement], fake: list[Judgement]) -> Tensor:
        return torch.stack([
            F.l1_loss(a, b) for r, f in zip(real, fake, strict=True) for a, b in zip(r.features, f.features, strict=True)
        ]).sum()  # fmt: skip

    @staticmethod
    def _score(judgements: list[Judgement]) -> Tensor:
        return torch.stack([j.logits for j in judgements]).sum(0)  # [B]


# --------------------------------------------------------------------------------------------- periods and STFT bands


def _leaky(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.LeakyReLU(0.1))


class _PeriodNet(nn.Module):
    """2-D convolutions over audio folded at a period (arXiv:2010.05646 sec. 2.3)."""

    def __init__(self, channels: int, period: int) -> None:
        super().__init__()
        self.period = period
        widths = (channels, 32, 128, 512, 1024, 1024)
        self.convs = nn.ModuleList(
            _leaky(WNConv2d(n_in, n_out, (5, 1), stride=(3 if index < 4 else 1, 1), padding=(2, 0)))
            for index, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.conv_post = WNConv2d(1024, 1, (3, 1), padding=(1, 0))

    def forward(self, audio: Tensor) -> Judgement:
        x = F.pad(audio, (0, self.period - audio.shape[-1] % self.period), mode="reflect")
        x = x.reshape(*audio.shape[:2], -1, self.period)
        features = []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
        return Judgement(self.conv_post(x), features)


class _BandNet(nn.Module):
    """2-D convolutions over frequency bands of one STFT (arXiv:2306.06546 sec. 3.3)."""

    def __init__(self, window: int, bands: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.stft = STFT(window, window // 4, window)
        bins = window // 2 + 1
        self.bands = [(int(low * bins), int(high * bins)) for low, high in bands]
        self.band_convs = nn.ModuleList(self._band() for _ in bands)
        self.conv_post = WNConv2d(32, 1, (3, 3), padding=(1, 1))

    @staticmethod
    def _band() -> nn.ModuleList:
        narrow = [_leaky(WNConv2d(32, 32, (3, 9), stride=(1, 2), padding=(1, 4))) for _ in range(3)]
        first, last = WNConv2d(2, 32, (3, 9), padding=(1, 4)), WNConv2d(32, 32, (3, 3), padding=(1, 1))
        return nn.ModuleList([_leaky(first), *narrow, _leaky(last)])

    def forward(self, audio: Tensor) -> Judgement:
        """Channels count as items."""
        spectrum = self._spectrum(audio.flatten(0, 1))  # [B C, 2, frames, bins]
        features, ends = [], []
        for (low, high), convs in zip(self.bands, self.band_convs, strict=True):
            assert isinstance(convs, nn.ModuleList)
            x = spectrum[..., low:high]
            for conv in convs:
                x = conv(x)
                features.append(x)
            ends.append(x)
        return Judgement(self.conv_post(torch.cat(ends, dim=-1)), features)

    def _spectrum(self, audio: Tensor) -> Tensor:
        """One frame per hop; the two frames at each end that see the padding of the transform itself are dropped."""
        hop = self.stft.hop
        side = (self.stft.window - hop) // 2
        padded = F.pad(audio, (side, side + -audio.shape[-1] % hop), mode="reflect")
        return torch.view_as_real(self.stft.spectrum(padded)[..., 2:-2]).permute(0, 3, 2, 1)


class _DACNets(nn.Module):
    def __init__(self, channels: int, args: R.DACDiscriminatorArgs) -> None:
        super().__init__()
        periods = [_PeriodNet(channels, period) for period in args.periods]
        bands = [_BandNet(window, args.bands) for window in args.fft_sizes]
        self.discriminators = nn.ModuleList([*periods, *bands])


class DACDiscriminator(Discriminator):
    """Period nets and band nets, least squares or hinge; audio is centred and scaled to a peak of 0.8 first."""

    def __init__(self, channels: int, args: R.DACDiscriminatorArgs) -> None:
        super().__init__()
        self.hinge = args.use_hinge
        self.discriminator = _DACNets(channels, args)

    def judge(self, audio: Tensor) -> list[Judgement]:
        audio = audio - audio.mean(dim=-1, keepdim=True)
        audio = 0.8 * audio / (audio.abs().amax(dim=-1, keepdim=True) + 1e-9)
        return [net(audio) for net in self.discriminator.discriminators]

    def losses(self, reals: Tensor, fakes: Tensor) -> AdversarialLosses:
        """As the base, but the discriminator's loss gives the fakes no gradient."""
        adversarial, matching = self.generator_losses(reals, fakes)
        return AdversarialLosses(self.own_loss(reals, fakes), adversarial, matching)

    def discriminator_loss(self, real: list[Judgement], fake: list[Judgement]) -> Tensor:
        def one(r: Tensor, f: Tensor) -> Tensor:
            if self.hinge:
                return F.relu(f).mean() + F.relu(1 - r).mean()
            return f.square().mean() + (1 - r).square().mean()

        return _mean([one(r.logits, f.logits) for r, f in zip(real, fake, strict=True)])

    def adversarial_loss(self, fake: list[Judgement]) -> Tensor:
        return _mean([(F.relu(1 - f.logits) if self.hinge else (1 - f.logits).square()).mean() for f in fake])

    def feature_matching(self, real: list[Judgement], fake: list[Judgement]) -> Tensor:
        return _mean([
            _mean([F.l1_loss(a.detach(), b) for a, b in zip(r.features, f.features, strict=True)])
            for r, f in zip(real, fake, strict=True)
        ])  # fmt: skip


def build_discriminator(part: R.Discriminator, channels: int) -> Discriminator:
    """The discriminator of a training section, for audio of `channels` channels."""
    match part.config:
        case R.EncodecDiscriminatorArgs() as args:
            return EncodecDiscriminator(channels, args)
        case R.OobleckDiscriminatorArgs() as args:
            return OobleckDiscriminator(channels, args)
        case R.DACDiscriminatorArgs() as args:
            return DACDiscriminator(channels, args)
