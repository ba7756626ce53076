"""Every short-time spectrum of the project, and the losses on them. Spectra are float32 whatever the input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class STFT:
    """A short-time Fourier transform: n_fft, hop and window in samples; periodic Hann window, centred, reflected."""

    n_fft: int
    hop: int
    window: int

    def magnitude(self, x: Tensor) -> Tensor:
        """x `[B, T]` -> `[B, n_fft // 2 + 1, frames]`; the gradient at zero is zero."""
        return self.spectrum(x).abs()

    def spectrum(self, x: Tensor, window: Tensor | None = None, *, centred: bool = True) -> Tensor:
        """x `[B, T]` -> complex `[B, n_fft // 2 + 1, frames]`; another window than Hann may be given."""
        window = torch.hann_window(self.window, device=x.device) if window is None else window
        return torch.stft(x.float(), self.n_fft, self.hop, self.window, window, center=centred, return_complex=True)


PUBLISHED = STFT(2048, 256, 1536)
"""The STFT of the published spectral loss and of the bandwidth normaliser (arXiv:2005.00341 sec. 3.2)."""


def safe_norm(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Euclidean norm over `dim` whose gradient is zero, not undefined, where the norm is zero."""
    square = (x**2).sum(dim)
    zero = square == 0
    return torch.where(zero, torch.zeros_like(square), torch.where(zero, torch.ones_like(square), square).sqrt())


def mono(x: Tensor) -> Tensor:
    """`[B, T, C]` -> `[B, T]`, the mean over channels."""
    return x.float().mean(-1)


def spectral_distance(target: Tensor, estimate: Tensor) -> Tensor:
    """Frobenius norm of the difference of two magnitudes `[B, F, frames]` -> `[B]`."""
    return safe_norm(target - estimate, dim=(-2, -1))


def spectral_convergence(target: Tensor, estimate: Tensor, floor: float = 2e-3) -> Tensor:
    """Distance relative to the target's norm (arXiv:1808.06719 eq. 1); 0 for items whose norm is below `floor`.

    Magnitudes `[B, F, frames]` -> `[B]`.
    """
    norm = safe_norm(target, dim=(-2, -1))
    return torch.where(norm > floor, spectral_distance(target, estimate) / norm.clamp_min(floor), 0.0)


def log_magnitude_distance(target: Tensor, estimate: Tensor, floor: float = 1e-4) -> Tensor:
    """Mean absolute difference of natural logarithms (arXiv:1808.06719 eq. 2); magnitudes -> scalar."""
    return (torch.log(target + floor) - torch.log(estimate + floor)).abs().mean()


# ---------------------------------------------------------------------------------------------------------------------
# Losses over several resolutions, for autoencoders (arXiv:1910.11480 sec. 2.2, arXiv:2010.10291)
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpectralTerms:
    """What the loss of one resolution is made of.

    w_sc, w_log_mag, w_lin_mag, w_phs: weights of spectral convergence, log and linear magnitude, and phase terms;
    mag_distance "L1" or "L2" (squared); scale "mel" or "chroma" with n_bins reduces the frequency axis;
    perceptual_weighting filters both signals by the A curve first; scale_invariance fits the level of y to x.
    """

    window: str = "hann_window"
    w_sc: float = 1.0
    w_log_mag: float = 1.0
    w_lin_mag: float = 0.0
    w_phs: float = 0.0
    scale: str | None = None
    n_bins: int | None = None
    perceptual_weighting: bool = False
    scale_invariance: bool = False
    eps: float = 1e-8
    mag_distance: str = "L1"


class STFTLoss(nn.Module):
    """Loss of one resolution between x and y `[B, C, T]`; spectral convergence is relative to y. A scalar."""

    window: Tensor
    taps: Tensor
    bank: Tensor

    def __init__(self, stft: STFT, terms: SpectralTerms, sr_hz: int) -> None:
        super().__init__()
        self.stft, self.terms = stft, terms
        self.register_buffer("window", make_window(terms.window, stft.window), persistent=False)
        if terms.perceptual_weighting:
            self.register_buffer("taps", a_weighting_taps(sr_hz)[None, None], persistent=False)
        if terms.scale:
            make_bank = {"mel": mel_bank, "chroma": chroma_bank}[terms.scale]
            self.register_buffer("bank", make_bank(sr_hz, stft.n_fft, terms.n_bins or 0), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.compare(self.weighted(x), self.weighted(y))

    def weighted(self, x: Tensor) -> Tensor:
        """`[B, C, T]` -> `[B C, T]`, as the ear weights it if the terms say so."""
        x = x.float().flatten(0, 1)
        if self.terms.perceptual_weighting:
            x = functional.conv1d(x[:, None], self.taps, padding=self.taps.shape[-1] // 2)[:, 0]
        return x

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss between signals that are weighted already, `[B, T]`."""
        terms = self.terms
        x_complex, y_complex = self.stft.spectrum(x, self.window), self.stft.spectrum(y, self.window)
        x_mag, y_mag = self._magnitude(x_complex), self._magnitude(y_complex)
        if terms.scale_invariance:
            fit = (x_mag * y_mag).sum((-2, -1), keepdim=True) / y_mag.square().sum((-2, -1), keepdim=True)
            y_mag = y_mag * fit
        loss = x_mag.new_zeros(())
        if terms.w_sc:
            distance = torch.linalg.matrix_norm(y_mag - x_mag) / torch.linalg.matrix_norm(y_mag)
            loss = loss + terms.w_sc * distance.mean()
        if terms.w_log_mag:
            loss = loss + terms.w_log_mag * self._distance(x_mag.log(), y_mag.log())
        if terms.w_lin_mag:
            loss = loss + terms.w_lin_mag * self._distance(x_mag, y_mag)
        if terms.w_phs:
            size = (x_complex.abs() + y_complex.abs()) / 2 + 1e-7
            loss = loss + terms.w_phs * ((x_complex - y_complex).abs() / size).mean()
        return loss

    def _magnitude(self, spectrum: Tensor) -> Tensor:
        power = torch.view_as_real(spectrum).square().sum(-1)
        magnitude = power.clamp_min(self.terms.eps).sqrt()
        return self.bank @ magnitude if self.terms.scale else magnitude

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.l1_loss(x, y) if self.terms.mag_distance == "L1" else functional.mse_loss(x, y)


class MultiSTFTLoss(nn.Module):
    """The mean of one STFTLoss per resolution."""

    def __init__(self, stfts: Sequence[STFT], terms: SpectralTerms, sr_hz: int) -> None:
        super().__init__()
        self.losses = nn.ModuleList(STFTLoss(stft, terms, sr_hz) for stft in stfts)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        losses = [loss for loss in self.losses if isinstance(loss, STFTLoss)]
        x, y = losses[0].weighted(x), losses[0].weighted(y)  # the same for all
        return torch.stack([loss.compare(x, y) for loss in losses]).mean()


def sum_and_difference_loss(loss: MultiSTFTLoss, x: Tensor, y: Tensor) -> Tensor:
    """`loss` of L + R and of L - R of stereo x, y `[B, 2, T]`, averaged (arXiv:2010.10291 sec. 3)."""

    def mixed(sign: float) -> Tensor:
        value: Tensor = loss(x[:, :1] + sign * x[:, 1:], y[:, :1] + sign * y[:, 1:])
        return value

    return (mixed(1.0) + mixed(-1.0)) / 2


class MelLoss(nn.Module):
    """Log and linear mel distances summed over scales (as arXiv:2306.06546 sec. 3.4): hop a quarter of the window."""

    def __init__(
        self, n_mels: Sequence[int], windows: Sequence[int], power: float, log_weight: float, mag_weight: float, sr_hz: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.stfts = [STFT(window, window // 4, window) for window in windows]
        self.power, self.log_weight, self.mag_weight = power, log_weight, mag_weight
        for index, (bins, window) in enumerate(zip(n_mels, windows, strict=True)):
            self.register_buffer(f"bank_{index}", mel_bank(sr_hz, window, bins), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y `[B, C, T]` -> a scalar."""
        total = x.new_zeros((), dtype=torch.float32)
        for index, stft in enumerate(self.stfts):
            bank: Tensor = self.get_buffer(f"bank_{index}")
            x_mel, y_mel = (bank @ stft.magnitude(z.flatten(0, 1)) for z in (x, y))
            x_log, y_log = (self.power * mel.clamp_min(1e-5).log10() for mel in (x_mel, y_mel))
            total = total + self.log_weight * functional.l1_loss(x_log, y_log)
            total = total + self.mag_weight * functional.l1_loss(x_mel, y_mel)
        return total


def make_window(name: str, length: int) -> Tensor:
    """A window by the name of torch's function or of SciPy's; periodic. Raises ValueError for an unknown one."""
    if name.endswith("_window") and hasattr(torch, name):
        window: Tensor = getattr(torch, name)(length)
        return window
    from scipy.signal import get_window

    return torch.from_numpy(get_window(name, length)).float()


def a_weighting_taps(sr_hz: int, taps: int = 101) -> Tensor:
    """The A curve (IEC 61672) as a symmetric FIR filter, `[taps]`: least squares on 512 points of its magnitude."""
    from scipy.signal import bilinear_zpk, firls, freqz_zpk

    corners = 2 * np.pi * np.array([20.598997, 107.65265, 737.86223, 12194.217])
    poles = -corners[[0, 0, 1, 2, 3, 3]]
    gain = corners[3] ** 2 * 10 ** (1.9997 / 20)
    frequencies, response = freqz_zpk(*bilinear_zpk(np.zeros(4), poles, gain, sr_hz), worN=512, fs=sr_hz)
    return torch.from_numpy(firls(taps, frequencies, np.abs(response), fs=sr_hz)).float()


def mel_bank(sr_hz: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangular mel filters from 0 to the Nyquist frequency, `[n_mels, n_fft // 2 + 1]`; Slaney's scale and areas."""
    per_mel = math.log(6.4) / 27  # above 1000 Hz; below, a mel is 200 / 3 Hz
    nyquist = sr_hz / 2
    top = nyquist * 3 / 200 if nyquist < 1000 else 15 + math.log(nyquist / 1000) / per_mel
    mels = np.linspace(0.0, top, n_mels + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(per_mel * (mels - 15)))
    frequencies = np.linspace(0, sr_hz / 2, n_fft // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    area = 2 / (edges[2:] - edges[:-2])
    return torch.from_numpy(np.minimum(rising, falling).clip(0) * area[:, None]).float()


def chroma_bank(sr_hz: int, n_fft: int, n_chroma: int) -> Tensor:
    """Pitch classes from C upwards, `[n_chroma, n_fft // 2 + 1]`: Gaussian bumps, centred on the fifth octave (Ellis)."""
    octaves = np.log2(np.arange(1, n_fft) * sr_hz / n_fft / (440.0 / 16))
    bins = n_chroma * np.concatenate([[octaves[0] - 1.5], octaves])
    widths = np.concatenate([np.maximum(np.diff(bins), 1.0), [1.0]])
    half = round(n_chroma / 2)
    distance = np.remainder(bins - np.arange(n_chroma)[:, None] + half + 10 * n_chroma, n_chroma) - half
    weights = np.exp(-0.5 * (2 * distance / widths) ** 2)
    weights /= np.linalg.norm(weights, axis=0)
    weights *= np.exp(-0.5 * ((bins / n_chroma - 5.0) / 2.0) ** 2)
    return torch.from_numpy(np.roll(weights, -3 * (n_chroma // 12), axis=0)[:, : n_fft // 2 + 1]).float()
