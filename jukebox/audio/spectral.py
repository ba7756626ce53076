"""Every short-time spectrum of the project, and the losses on them. Spectra are float32 whatever the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class STFT:
    """A short-time Fourier transform: n_fft, hop and window in samples; periodic Hann window, centred, reflected."""

    n_fft: int
    hop: int
    window: int

    def magnitude(self, x: Tensor) -> Tensor:
        """x `[B, T]` -> `[B, n_fft // 2 + 1, frames]`; the gradient at zero is zero."""
        window = torch.hann_window(self.window, device=x.device)
        z = torch.stft(x.float(), self.n_fft, self.hop, self.window, window, return_complex=True)
        return safe_norm(torch.view_as_real(z), dim=-1)


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
