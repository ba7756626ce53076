"""The loss of the VQ-VAE, term by term (arXiv:2005.00341 sec. 3.2, eq. 1-6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jukebox.audio.spectral import PUBLISHED, STFT, mono, spectral_convergence, spectral_distance


@dataclass(frozen=True)
class Bandwidth:
    """What the data set sounds like: normalisers of the losses. l1: mean magnitude, l2: variance, spec: spectral norm of
    an item."""

    l1: float = 1.0
    l2: float = 1.0
    spec: float = 1.0


@dataclass(frozen=True)
class LossShape:
    """Weights and settings; the fields are the hyperparameters of the same name."""

    loss_fn: str = "l2"
    linf_k: int = 2048
    lmix_l1: float = 0.0
    lmix_l2: float = 0.0
    lmix_linf: float = 0.0
    spectral: float = 0.0
    multispectral: float = 1.0
    commit: float = 1.0
    use_nonrelative_specloss: bool = True
    multispec: tuple[STFT, ...] = (STFT(2048, 240, 1200), STFT(1024, 120, 600), STFT(512, 50, 240))


def sample_loss(kind: str, target: Tensor, estimate: Tensor, bandwidth: Bandwidth, shape: LossShape) -> Tensor:
    """Distance of samples, a scalar. target and estimate `[B, T, C]`.

    kind l1, l2, linf (mean of the linf_k largest squared errors of each item), or lmix, their weighted sum. Raises
    ValueError for another kind, or when an item has fewer than linf_k samples.
    """
    error = estimate - target
    match kind:
        case "l1":
            return error.abs().mean() / bandwidth.l1
        case "l2":
            return (error**2).mean() / bandwidth.l2
        case "linf":
            squares = (error**2).flatten(1)
            if squares.shape[1] < shape.linf_k:
                raise ValueError(f"linf_k {shape.linf_k} exceeds the {squares.shape[1]} samples of a chunk")
            return squares.topk(shape.linf_k, dim=1).values.mean() / bandwidth.l2
        case "lmix":
            parts = (("l1", shape.lmix_l1), ("l2", shape.lmix_l2), ("linf", shape.lmix_linf))
            terms = [w * sample_loss(part, target, estimate, bandwidth, shape) for part, w in parts if w]
            return torch.stack(terms).sum() if terms else error.new_zeros(())
        case _:
            raise ValueError(f"loss_fn must be l1, l2, linf or lmix, got {kind!r}")


class SpectralLosses:
    """Spectral distances to one target, whose spectra are computed once for all levels.

    target `[B, T, C]`; each method takes an estimate of the same shape and gives one value per item, `[B]`.
    """

    def __init__(self, target: Tensor, shape: LossShape, bandwidth: Bandwidth) -> None:
        self.shape, self.bandwidth = shape, bandwidth
        with torch.no_grad():
            self.target = mono(target)
            self._magnitudes: dict[STFT, Tensor] = {}

    def _of_target(self, stft: STFT) -> Tensor:
        if stft not in self._magnitudes:
            with torch.no_grad():
                self._magnitudes[stft] = stft.magnitude(self.target)
        return self._magnitudes[stft]

    def _distance(self, stft: STFT, estimate: Tensor) -> Tensor:
        target, magnitude = self._of_target(stft), stft.magnitude(mono(estimate))
        if self.shape.use_nonrelative_specloss:
            return spectral_distance(target, magnitude) / self.bandwidth.spec
        return spectral_convergence(target, magnitude)

    def spectral(self, estimate: Tensor) -> Tensor:
        """Distance of the magnitudes of (2048, 256, 1536)."""
        return self._distance(PUBLISHED, estimate)

    def multispectral(self, estimate: Tensor) -> Tensor:
        """Mean distance over several resolutions (eq. 6)."""
        return torch.stack([self._distance(stft, estimate) for stft in self.shape.multispec]).mean(0)

    def convergence(self, estimate: Tensor) -> Tensor:
        """Spectral convergence, a measure without normaliser."""
        return spectral_convergence(self._of_target(PUBLISHED), PUBLISHED.magnitude(mono(estimate)))


def vqvae_loss(
    target: Tensor, estimates: Sequence[Tensor], commits: Sequence[Tensor], shape: LossShape, bandwidth: Bandwidth
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over levels of reconstruction, spectral, multispectral and commitment losses, and the published metrics.

    target `[B, T, 1]`, estimates one per level, level 0 first, commits likewise scalars. A spectral term of weight
    zero is measured without gradient.
    """
    spectra = SpectralLosses(target, shape, bandwidth)
    sums: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    for level in reversed(range(len(estimates))):
        estimate = estimates[level]
        terms = {"recons_loss": sample_loss(shape.loss_fn, target, estimate, bandwidth, shape)}
        with torch.set_grad_enabled(torch.is_grad_enabled() and shape.spectral != 0):
            terms["spectral_loss"] = spectra.spectral(estimate).mean()
        with torch.set_grad_enabled(torch.is_grad_enabled() and shape.multispectral != 0):
            terms["multispectral_loss"] = spectra.multispectral(estimate).mean()
        for name, value in terms.items():
            metrics[f"{name}_l{level + 1}"] = value.detach()
            sums[name] = sums[name] + value if name in sums else value
    commit = torch.stack(list(commits)).sum()
    loss = (
        sums["recons_loss"]
        + shape.spectral * sums["spectral_loss"]
        + shape.multispectral * sums["multispectral_loss"]
        + shape.commit * commit
    )
    with torch.no_grad():
        bottom = estimates[0]
        metrics |= {name: value.detach() for name, value in sums.items()}
        metrics["spectral_convergence"] = spectra.convergence(bottom).mean()
        for kind in ("l2", "l1", "linf"):
            if kind == "linf" and target[0].numel() < shape.linf_k:
                continue
            metrics[f"{kind}_loss"] = sample_loss(kind, target, bottom, bandwidth, shape)
        metrics["commit_loss"] = commit.detach()
    return loss, metrics
