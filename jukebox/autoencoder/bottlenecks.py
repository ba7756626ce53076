"""What stands between encoder and decoder: regularisers and quantisers of latents.

`encode(x, draws, stages)` gives latents and an info dictionary with the published keys; `decode(latents, draws)` gives
what the decoder takes. Discrete ones also have tokens: `info[tokens_id]`, and `decode_tokens` back from them.
Legend: B batch, D latent channels, N latent frames, Q codebooks, R = B N rows.
"""

import logging
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jukebox.autoencoder import parts as P
from jukebox.autoencoder.quantisers import (
    FSQ,
    CodebookStatistics,
    DACQuantised,
    DACResidualVQ,
    DitheredFSQ,
    Draws,
    ResidualVQ,
    full_precision,
)

log = logging.getLogger(__name__)

Info = dict[str, Tensor]


class Bottleneck(nn.Module):
    """The plain case: latents pass unchanged."""

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        """x [B, D, N] -> latents, info. `stages` limits the codebooks of residual quantisers, others ignore it."""
        return x, {}

    def decode(self, latents: Tensor, draws: Draws) -> Tensor:
        return latents


class DiscreteBottleneck(Bottleneck):
    """A bottleneck with tokens. `time_first`: they are [B, N, Q], otherwise [B, Q, N], as published for each type."""

    tokens_id: ClassVar[str] = "quantizer_indices"
    time_first: ClassVar[bool] = False
    num_quantizers: int
    codebook_size: int

    def decode_tokens(self, tokens: Tensor, draws: Draws) -> Tensor:
        """Tokens -> what the decoder takes."""
        raise NotImplementedError


class RVQMixin:
    """Marks bottlenecks whose codebooks are moved by `quantizer.update`, not by gradient."""

    quantizer: ResidualVQ
    statistics_of: ClassVar[tuple[str, str, str]] = ("codebook/sums", "codebook/counts", "codebook/rows")

    def statistics(self, info: Info) -> CodebookStatistics:
        """What a training-mode `encode` noted for `quantizer.update`."""
        sums, counts, rows = (info[key] for key in self.statistics_of)
        return CodebookStatistics(sums, counts, rows)


# --------------------------------------------------------------------------------------------------------- continuous


class Tanh(Bottleneck):
    def __init__(self, args: P.TanhArgs) -> None:
        super().__init__()
        self.scale = args.scale

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        return torch.tanh(x / self.scale) * self.scale, {}


def sample_gaussian(x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """x [B, 2 D, N], means and scales -> a sample [B, D, N] and the divergence from the standard normal.

    Sampled in eval mode too. The divergence has no factor 1/2: it is twice the KL of arXiv:1312.6114 eq. 10, summed
    over channels, averaged over items and frames.
    """
    mean, scale = x.chunk(2, dim=1)
    deviation = F.softplus(scale) + 1e-4
    variance = deviation.square()
    kl = (mean.square() + variance - variance.log() - 1).sum(1).mean()
    return draws.normal(mean) * deviation + mean, kl


class VAE(Bottleneck):
    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        latents, kl = sample_gaussian(x, draws)
        return latents, {"kl": kl}


class L2Norm(Bottleneck):
    """Each frame scaled to length 1, before and after."""

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        return F.normalize(x, dim=1), {}

    def decode(self, latents: Tensor, draws: Draws) -> Tensor:
        return F.normalize(latents, dim=1)


class Wasserstein(Bottleneck):
    """A Wasserstein autoencoder's penalty (arXiv:1711.01558 sec. 4): the latents' distance from a Gaussian, in training."""

    def __init__(self, args: P.WassersteinArgs) -> None:
        super().__init__()
        self.args = args

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        info: Info = {}
        if self.training:
            rows = x.mT.flatten(0, 1)  # (B, D, N) -> (B N, D)
            info["mmd"] = x.new_zeros(()) if self.args.bypass_mmd else mmd(rows, draws.normal(rows))
        if self.args.use_tanh:
            x = torch.tanh(x / self.args.tanh_scale) * self.args.tanh_scale
        return x, info

    def decode(self, latents: Tensor, draws: Draws) -> Tensor:
        return append_noise(latents, self.args.noise_augment_dim, draws)


def append_noise(latents: Tensor, channels: int, draws: Draws) -> Tensor:
    """[B, D, N] -> [B, D + channels, N]."""
    if not channels:
        return latents
    noise = draws.normal(latents.new_empty(latents.shape[0], channels, latents.shape[2]))
    return torch.cat([latents, noise], dim=1)


MANY_ROWS = 32768


def mmd(latents: Tensor, noise: Tensor, block: int = 1024) -> Tensor:
    """Maximum mean discrepancy of two sets of rows [R, D] under the kernel exp(-|a - b|^2 / D^2), diagonals included.

    Computed in blocks of rows that are made again in the backward pass: memory grows with R, time with R^2.
    """
    if len(latents) > MANY_ROWS:
        log.warning(
            "the wasserstein bottleneck compares %d latent frames with each other, %.1f G kernel values a step; a smaller "
            "batch or sample_size, or bypass_mmd, makes it faster", len(latents), 3e-9 * len(latents) ** 2,
        )  # fmt: skip
    latents, noise = latents.float(), noise.float()
    return (
        _mean_kernel(latents, latents, block)
        + _mean_kernel(noise, noise, block)
        - 2 * _mean_kernel(latents, noise, block)
    )


def _mean_kernel(a: Tensor, b: Tensor, block: int) -> Tensor:
    total = a.new_zeros(())
    for rows in a.split(block):
        if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
            part: Tensor = checkpoint(_kernel_sum, rows, b, use_reentrant=False)
        else:
            part = _kernel_sum(rows, b)
        total = total + part
    return total / (len(a) * len(b))


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    with full_precision(a):
        square = a.square().sum(1, keepdim=True) - 2 * a @ b.t() + b.square().sum(1)
    return torch.exp(-square.clamp_min(0) / a.shape[1] ** 2).sum()


class SoftNorm(Bottleneck):
    """A learnt affine map and a penalty that holds latents near zero mean and unit variance, over time and channels."""

    def __init__(self, args: P.SoftNormArgs) -> None:
        super().__init__()
        self.args = args
        self.scaling_factor = nn.Parameter(torch.ones(1, args.dim, 1))
        self.bias = nn.Parameter(torch.zeros(1, args.dim, 1))
        self.noise_scaling_factor = nn.Parameter(torch.ones(1, args.noise_augment_dim, 1))

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        latents = x * self.scaling_factor + self.bias
        return latents, {"softnorm_loss": self._penalty(latents)} if self.training else {}

    @staticmethod
    def _penalty(latents: Tensor) -> Tensor:
        def off_normal(dim: int) -> Tensor:
            mean, variance = latents.mean(dim), latents.var(dim).clamp_min(1e-4)
            return (mean.square() + variance - variance.log() - 1).mean()

        return off_normal(2) + 0.4 * off_normal(1)

    def decode(self, latents: Tensor, draws: Draws) -> Tensor:
        if self.training and self.args.noise_regularize:
            latents = latents + draws.normal(latents) * latents.std(2, keepdim=True) * 1e-2
        if not self.args.noise_augment_dim:
            return latents
        noise = draws.normal(latents.new_empty(latents.shape[0], self.args.noise_augment_dim, latents.shape[2]))
        return torch.cat([latents, noise * self.noise_scaling_factor], dim=1)


# ----------------------------------------------------------------------------------------------------------- discrete


class RVQ(DiscreteBottleneck, RVQMixin):
    time_first = True

    def __init__(self, args: P.RVQArgs) -> None:
        super().__init__()
        self.args = args
        self.quantizer = ResidualVQ(args)
        self.num_quantizers, self.codebook_size = args.num_quantizers, args.codebook_size

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        if self.training:
            stages = self._dropped(draws, x)
        quantised, tokens, loss, statistics = self.quantizer(x.mT, stages)
        info = {"quantizer_indices": tokens, "quantizer_loss": loss}
        if self.training:
            info |= zip(self.statistics_of, (statistics.sums, statistics.counts, statistics.rows), strict=True)
        return quantised.mT, info

    def _dropped(self, draws: Draws, x: Tensor) -> int:
        """How many stages this training batch uses."""
        total, multiple = self.args.num_quantizers, self.args.quantize_dropout_multiple_of
        if not self.args.quantize_dropout:
            return total
        used = int(draws.integers(self.args.quantize_dropout_cutoff_index, total, 1, x)) + 1
        return min(total, -(-used // multiple) * multiple)

    def decode_tokens(self, tokens: Tensor, draws: Draws) -> Tensor:
        return self.quantizer.lookup(tokens).mT


class RVQVAE(RVQ):
    """VAE sampling, then residual quantisation of the sample."""

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        sample, kl = sample_gaussian(x, draws)
        latents, info = super().encode(sample, draws, stages)
        return latents, {"kl": kl, **info}


class DACRVQ(DiscreteBottleneck):
    """With `quantize_on_decode` the latents stay continuous until they are decoded."""

    tokens_id = "codes"

    def __init__(self, args: P.DACQuantiserArgs) -> None:
        super().__init__()
        self.args = args
        self.noise_augment_dim = args.noise_augment_dim if isinstance(args, P.DACRVQArgs) else 0
        self.quantizer = DACResidualVQ(args)
        self.num_quantizers, self.codebook_size = args.n_codebooks, args.codebook_size

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        info = {"pre_quantizer": x}
        if self.args.quantize_on_decode:
            return x, info
        found: DACQuantised = self.quantizer(x, draws, stages)
        return found.quantised, info | {
            "z": found.quantised,
            "codes": found.codes,
            "latents": found.projected,
            "vq/commitment_loss": found.commitment / self.num_quantizers,
            "vq/codebook_loss": found.codebook / self.num_quantizers,
        }

    def decode(self, latents: Tensor, draws: Draws) -> Tensor:
        if self.args.quantize_on_decode:
            latents = self.quantizer(latents, draws).quantised
        return append_noise(latents, self.noise_augment_dim, draws)

    def decode_tokens(self, tokens: Tensor, draws: Draws) -> Tensor:
        return append_noise(self.quantizer.lookup(tokens), self.noise_augment_dim, draws)

    def tokenize(self, latents: Tensor, draws: Draws) -> Tensor:
        """Tokens [B, Q, N] of latents, also where `encode` leaves them continuous."""
        found: DACQuantised = self.quantizer(latents, draws)
        return found.codes


class DACRVQVAE(DACRVQ):
    """VAE sampling, then DAC quantisation of the sample."""

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        sample, kl = sample_gaussian(x, draws)
        latents, info = super().encode(sample, draws, stages)
        return latents, {"kl": kl, **info}


class _Projections(nn.Module):
    """Linear maps between latents and grid where their widths differ, under the published names."""

    def __init__(self, dim: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.project_in = nn.Linear(dim, inner, bias) if dim != inner else nn.Identity()
        self.project_out = nn.Linear(inner, dim, bias) if dim != inner else nn.Identity()


class FSQBottleneck(DiscreteBottleneck):
    def __init__(self, args: P.FSQArgs) -> None:
        super().__init__()
        self.args = args
        inner = len(args.levels) * args.num_codebooks
        dim = args.dim or inner
        self.quantizer = _Projections(dim, inner, args.projection_has_bias)
        self.grid = FSQ(args.levels)
        self.num_quantizers = args.num_codebooks
        self.codebook_size = int(self.grid.levels.prod())

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        frames: Tensor = self.quantizer.project_in(x.mT).float()
        values = self.grid(frames.unflatten(-1, (self.num_quantizers, -1)))  # [B, N, Q, L]
        tokens = self.grid.indices(values).mT  # (B, N, Q) -> (B, Q, N)
        return self._latents(values, x.dtype), {"quantizer_indices": tokens}

    def _latents(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        latents: Tensor = self.quantizer.project_out(values.flatten(2).to(dtype))
        return latents.mT

    def decode(self, latents: Tensor, draws: Draws) -> Tensor:
        return append_noise(latents, self.args.noise_augment_dim, draws)

    def decode_tokens(self, tokens: Tensor, draws: Draws) -> Tensor:
        projection = next(self.quantizer.parameters(), torch.empty(0))
        return self.decode(self._latents(self.grid.lookup(tokens.mT), projection.dtype), draws)


class DitheredFSQBottleneck(DiscreteBottleneck):
    time_first = True

    def __init__(self, args: P.DitheredFSQArgs) -> None:
        super().__init__()
        levels = args.levels if isinstance(args.levels, tuple) else (args.levels,) * args.dim
        self.grid = DitheredFSQ(levels, args.noise_dropout)
        self.num_quantizers = args.num_codebooks
        self.codebook_size = int(self.grid.levels.prod())

    def encode(self, x: Tensor, draws: Draws, stages: int | None = None) -> tuple[Tensor, Info]:
        frames = x.mT.float().unflatten(-1, (self.num_quantizers, -1))  # (B, D, N) -> (B, N, Q, L)
        values = self.grid(frames, draws)
        return values.flatten(2).mT.to(x.dtype), {"quantizer_indices": self.grid.indices(values)}

    def decode_tokens(self, tokens: Tensor, draws: Draws) -> Tensor:
        return self.grid.lookup(tokens).flatten(2).mT


def build_bottleneck(part: P.Bottleneck) -> Bottleneck:
    """The bottleneck that a part of a config describes, untrained."""
    match part.type, part.config:
        case "tanh", P.TanhArgs() as args:
            return Tanh(args)
        case "vae", _:
            return VAE()
        case "l2_norm", _:
            return L2Norm()
        case "wasserstein", P.WassersteinArgs() as args:
            return Wasserstein(args)
        case "softnorm", P.SoftNormArgs() as args:
            return SoftNorm(args)
        case "rvq", P.RVQArgs() as args:
            return RVQ(args)
        case "rvq_vae", P.RVQArgs() as args:
            return RVQVAE(args)
        case "dac_rvq", P.DACRVQArgs() as args:
            return DACRVQ(args)
        case "dac_rvq_vae", P.DACQuantiserArgs() as args:
            return DACRVQVAE(args)
        case "fsq", P.FSQArgs() as args:
            return FSQBottleneck(args)
        case "dithered_fsq", P.DitheredFSQArgs() as args:
            return DitheredFSQBottleneck(args)
    raise AssertionError(part.type)
