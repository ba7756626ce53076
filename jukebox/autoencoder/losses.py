"""What an autoencoder is trained on: named, weighted terms whose sum is the loss; and figures of held-out audio.

Every spectrum comes from audio/spectral.py. Legend: B batch, C channels, T audio samples, D latent channels, N frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.audio.spectral import STFT, MelLoss, MultiSTFTLoss, SpectralTerms, STFTLoss, sum_and_difference_loss
from jukebox.autoencoder import recipe as R
from jukebox.autoencoder.bottlenecks import Info
from jukebox.autoencoder.config import ModelConfig


@dataclass(frozen=True)
class Teaching:
    """A teacher's view of the batch: its latents [B, D, N], and audio [B, C, T] decoded from latents.

    decoded: teacher's latents by the teacher; ours_by_teacher: our latents by the teacher; teachers_by_us: its latents
    by our decoder. All without gradient.
    """

    latents: Tensor
    decoded: Tensor
    ours_by_teacher: Tensor
    teachers_by_us: Tensor


class GeneratorLosses(nn.Module):
    """The autoencoder's terms in their published order and names, already weighted."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.training is not None
        self.config = losses = config.training.losses
        self.bottleneck = config.model.bottleneck.type if config.model.bottleneck else None
        self.stereo = config.model.channels_out == 2
        self.stft = multi_stft(losses.spectral.config, config.sample_rate) if losses.spectral else None
        self.mel = None
        if losses.mrmel and losses.mrmel.weights.mrmel > 0:
            mel = losses.mrmel.config
            self.mel = MelLoss(
                mel.n_mels, mel.window_lengths, mel.pow, mel.log_weight, mel.mag_weight, config.sample_rate
            )

    def forward(
        self,
        reals: Tensor,
        decoded: Tensor,
        info: Info,
        *,
        evaluation: int = 1,
        adversarial: tuple[Tensor, Tensor] | None = None,
        teaching: Teaching | None = None,
        latents: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """reals, decoded [B, C, T]; info as `Autoencoder.encode` gives it -> scalars by name.

        `evaluation` counts calls from 1 on: decaying weights have been multiplied that often. `adversarial` are the
        discriminator's (adversarial, feature matching) terms, where there is one. With a teacher, `latents` too.
        """
        terms: dict[str, Tensor] = {}
        if adversarial is not None and self.config.discriminator is not None:
            weights = self.config.discriminator.weights
            terms["loss_adv"] = weights.adversarial * adversarial[0]
            terms["feature_matching_loss"] = weights.feature_matching * adversarial[1]
        terms |= self._spectral(reals, decoded, evaluation, teaching, latents)
        if self.mel is not None and self.config.mrmel is not None:
            terms["mrmel_loss"] = self.config.mrmel.weights.mrmel * self.mel(decoded, reals)
        terms |= self._time(reals, decoded, evaluation)
        terms |= self._bottleneck(info)
        return terms

    def _spectral(
        self, reals: Tensor, decoded: Tensor, evaluation: int, teaching: Teaching | None, latents: Tensor | None
    ) -> dict[str, Tensor]:
        """The published order of arguments is (reals, decoded): convergence is relative to the decoded spectrum."""
        part, stft = self.config.spectral, self.stft
        if part is None or stft is None:
            return {}
        weight = part.weights.mrstft * part.decay**evaluation

        def compare(x: Tensor, y: Tensor) -> Tensor:
            value: Tensor = sum_and_difference_loss(stft, x, y) if self.stereo else stft(x, y)
            return value

        if teaching is not None:
            assert latents is not None
            quarter = weight / 4
            terms = {
                "latent_distill_loss": F.mse_loss(teaching.latents, latents),
                "mrstft_loss": compare(reals, decoded),
                "mrstft_loss_distill": compare(teaching.decoded, decoded),
                "mrstft_loss_own_latents_teacher": compare(reals, teaching.ours_by_teacher),
                "mrstft_loss_teacher_latents_own": compare(reals, teaching.teachers_by_us),
            }
            return {name: quarter * value for name, value in terms.items()}
        terms = {"mrstft_loss": weight * compare(reals, decoded)}
        if self.stereo:
            terms["stft_loss_left"] = weight / 2 * stft(reals[:, :1], decoded[:, :1])
            terms["stft_loss_right"] = weight / 2 * stft(reals[:, 1:], decoded[:, 1:])
        return terms

    def _time(self, reals: Tensor, decoded: Tensor, evaluation: int) -> dict[str, Tensor]:
        part, terms = self.config.time, {}
        if part is None:
            return {}
        factor = part.decay**evaluation
        if part.weights.l1 > 0:
            terms["l1_time_loss"] = part.weights.l1 * factor * F.l1_loss(reals, decoded)
        if part.weights.l2 > 0:
            terms["l2_time_loss"] = part.weights.l2 * factor * F.mse_loss(reals, decoded)
        return terms

    def _bottleneck(self, info: Info) -> dict[str, Tensor]:
        weights = self.config.bottleneck.weights
        match self.bottleneck:
            case "vae":
                return {"kl_loss": weights.kl * info["kl"]}
            case "rvq":
                return {"quantizer_loss": info["quantizer_loss"]}
            case "rvq_vae":
                return {"kl_loss": weights.kl * info["kl"], "quantizer_loss": info["quantizer_loss"]}
            case "dac_rvq" | "dac_rvq_vae" as kind:
                terms = {"kl_loss": weights.kl * info["kl"]} if kind == "dac_rvq_vae" else {}
                if "vq/codebook_loss" in info:  # absent with quantize_on_decode
                    terms["codebook_loss"] = info["vq/codebook_loss"]
                    terms["commitment_loss"] = 0.25 * info["vq/commitment_loss"]
                return terms
            case "wasserstein":
                return {"mmd_loss": weights.mmd * info["mmd"]} if "mmd" in info else {}  # in training only
            case "softnorm":
                return {"softnorm_loss": weights.softnorm * info["softnorm_loss"]} if "softnorm_loss" in info else {}
        return {}


def _terms(args: R.STFTArgs) -> SpectralTerms:
    return SpectralTerms(
        window=args.window, w_sc=args.w_sc, w_log_mag=args.w_log_mag, w_lin_mag=args.w_lin_mag, w_phs=args.w_phs,
        scale=args.scale, n_bins=args.n_bins, perceptual_weighting=args.perceptual_weighting,
        scale_invariance=args.scale_invariance, eps=args.eps, mag_distance=args.mag_distance,
    )  # fmt: skip


def multi_stft(args: R.MultiSTFTArgs, sr_hz: int) -> MultiSTFTLoss:
    """The spectral loss of a `spectral.config`, for audio of sr_hz."""
    sizes = zip(args.fft_sizes, args.hop_sizes, args.win_lengths, strict=True)
    return MultiSTFTLoss([STFT(*size) for size in sizes], _terms(args), sr_hz)


# ------------------------------------------------------------------------------------------------------------- figures


def si_sdr_db(decoded: Tensor, reals: Tensor, *, zero_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, the mean over items and channels (arXiv:1811.02508 eq. 3)."""
    if zero_mean:
        decoded, reals = decoded - decoded.mean(-1, keepdim=True), reals - reals.mean(-1, keepdim=True)
    scale = (decoded * reals).sum(-1, keepdim=True) / (reals.square().sum(-1, keepdim=True) + eps)
    target = scale * reals
    distortion = (decoded - target).square().sum(-1)
    return (10 * torch.log10(target.square().sum(-1) / (distortion + eps) + eps)).mean()


class EvalFigures(nn.Module):
    """The figures an `eval_loss_configs` section asks for, by the names under which they are logged."""

    def __init__(self, config: R.EvalLossConfigs, sr_hz: int) -> None:
        super().__init__()
        self.sisdr = config.sisdr
        losses: dict[str, nn.Module] = {}
        if (stft := config.stft) is not None:
            losses["stft"] = STFTLoss(STFT(stft.fft_size, stft.hop_size, stft.win_length), _terms(stft), sr_hz)
        if (mel := config.mel) is not None:
            terms = _terms(mel.model_copy(update={"scale": "mel", "n_bins": mel.n_mels}))
            losses["mel"] = STFTLoss(STFT(mel.fft_size, mel.hop_size, mel.win_length), terms, sr_hz)
        self.losses = nn.ModuleDict(losses)

    def forward(self, decoded: Tensor, reals: Tensor) -> dict[str, Tensor]:
        """decoded, reals [B, C, T] -> scalars; sisdr in dB, more is better."""
        figures: dict[str, Tensor] = {name: loss(decoded, reals) for name, loss in self.losses.items()}
        if self.sisdr is not None:
            figures["sisdr"] = si_sdr_db(decoded, reals, zero_mean=self.sisdr.zero_mean, eps=self.sisdr.eps)
        return figures
