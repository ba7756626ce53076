"""Filter banks made from their definitions: biorthogonal wavelets, pseudo-QMF banks, windowed-sinc resampling."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Taps = NDArray[np.float64]

_WAVELETS = {
    "bior2.2": (2, 2),
    "bior2.4": (2, 4),
    "bior2.6": (2, 6),
    "bior2.8": (2, 8),
    "bior4.4": (4, 4),
    "bior6.8": (6, 8),
}


def wavelet_lowpass(name: str) -> tuple[Taps, Taps]:
    """Symmetric low-pass taps of a biorthogonal wavelet: (decomposition, reconstruction), each of sum sqrt(2).

    Both share the zeros of a half-band filter (Cohen, Daubechies, Feauveau 1992, sec. 6): `orders` at the Nyquist
    frequency, and the roots of its remainder in y = sin^2(w / 2). Of these the reconstruction filter gets none in the
    spline family, the real one in bior4.4, the middle pair in bior6.8.
    """
    recon_order, decomp_order = _WAVELETS[name]
    k = (recon_order + decomp_order) // 2
    roots = np.roots([math.comb(k - 1 + j, j) for j in reversed(range(k))])
    roots = roots[np.lexsort((roots.imag, roots.real))]
    mine = {2: slice(0, 0), 4: slice(0, 1), 6: slice(2, 4)}[recon_order]
    return _from_zeros(decomp_order, np.delete(roots, mine)), _from_zeros(recon_order, roots[mine])


def _from_zeros(order: int, roots: NDArray[Any]) -> Taps:
    taps = np.ones(1, dtype=np.complex128)
    for _ in range(order):
        taps = np.convolve(taps, [0.5, 0.5])
    for root in roots:  # the factor 1 - y / root, with y = (2 - z - 1 / z) / 4
        taps = np.convolve(taps, np.array([0.25, root - 0.5, 0.25]) / root)
    return math.sqrt(2) * taps.real


def wavelet_kernels(name: str) -> tuple[Taps, Taps]:
    """Analysis and synthesis kernels [2, k], low-pass then high-pass, aligned for polyphase use with odd k."""
    decomp, recon = wavelet_lowpass(name)
    k, inner = len(decomp), len(recon)
    alternating = (-1.0) ** np.arange(k)
    analysis, synthesis = np.zeros((2, k)), np.zeros((2, k))
    late, early = (k - inner) // 2 + 1, (k - inner) // 2 - 1
    analysis[0], analysis[1, late : late + inner] = decomp, recon * alternating[:inner]
    synthesis[0, early : early + inner], synthesis[1] = recon, -decomp * alternating
    return analysis, synthesis


def pqmf_bank(attenuation_db: int, bands: int) -> Tensor:
    """A cosine-modulated bank of near-perfect reconstruction, [bands, taps], taps a power of two.

    The Kaiser prototype's cutoff is the one whose autocorrelation is smallest at multiples of 2 bands (Lin and
    Vaidyanathan 1998).
    """
    from scipy.optimize import fmin  # type: ignore[import-untyped,unused-ignore]
    from scipy.signal import firwin, kaiserord  # type: ignore[import-untyped,unused-ignore]

    def prototype(cutoff: float) -> Taps:
        taps, beta = kaiserord(attenuation_db, cutoff / np.pi)
        kernel: Taps = firwin(2 * (taps // 2) + 1, cutoff, window=("kaiser", beta), scale=False, fs=2 * np.pi)
        return kernel

    def overlap(cutoff: NDArray[np.float64]) -> float:
        kernel = prototype(float(cutoff[0]))
        correlation = np.convolve(kernel, kernel[::-1])[len(kernel) - 1 :: 2 * bands]
        return float(np.abs(correlation[1:]).max())

    kernel = prototype(float(fmin(overlap, [1 / bands], disp=False)[0]))
    half = len(kernel) // 2
    band = np.arange(bands)[:, None]
    phase = (-1.0) ** band * np.pi / 4
    bank = 2 * kernel * np.cos((2 * band + 1) * np.pi / (2 * bands) * np.arange(-half, half + 1) + phase)
    spare = 2 ** math.ceil(math.log2(len(kernel))) - len(kernel)
    padded = np.pad(bank, ((0, 0), (spare // 2, spare - spare // 2)))
    return torch.from_numpy(padded).float()


def sinc_kernel(up: int, down: int, zero_crossings: int = 6, rolloff: float = 0.99) -> tuple[Tensor, int]:
    """Hann-windowed sinc kernels [up, 1, taps] that resample by up / down (coprime), and their half width."""
    cutoff = min(up, down) * rolloff
    half = math.ceil(zero_crossings * down / cutoff)
    time = torch.arange(-half, half + down, dtype=torch.float64) / down
    time = (time[None] - torch.arange(up, dtype=torch.float64)[:, None] / up) * cutoff
    time = time.clamp(-zero_crossings, zero_crossings)
    kernel = torch.sinc(time) * torch.cos(time * math.pi / zero_crossings / 2).square() * (cutoff / down)
    return kernel[:, None].float(), half


def sinc_resample(x: Tensor, kernel: Tensor, half: int, down: int) -> Tensor:
    """x [B, C, T] -> [B, C, ceil(T up / down)] with a kernel of `sinc_kernel`."""
    length = -(-x.shape[-1] * kernel.shape[0] // down)
    padded = F.pad(x.flatten(0, 1)[:, None], (half, half + down))
    phases = F.conv1d(padded, kernel.to(x.dtype), stride=down)  # (B C, 1, T) -> (B C, up, T')
    return phases.mT.reshape(*x.shape[:2], -1)[..., :length]
