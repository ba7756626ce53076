"""Keys of the VQ-VAE: its nets, its codebooks and its losses."""

import math
from typing import Literal

from pydantic import PositiveInt, model_validator

from jukebox.hparams.resolve import key, section


@section("vqvae", "VQ-VAE")
class VQVAEHps:
    restore_vqvae: str = key(
        "", "trained VQ-VAE: a run folder, a checkpoint file, or the address of a published one (fetched by fetch.py)"
    )
    levels: int = key(2, "levels of codes; level 0 is the finest", ge=1)
    downs_t: tuple[PositiveInt, ...] = key((1, 1), "strided convolutions of each level, level 0 first", example="5,3")
    strides_t: tuple[PositiveInt, ...] = key((2, 2), "stride of those convolutions, per level", example="2,2")
    hvqvae_multipliers: tuple[PositiveInt, ...] | None = key(
        None, "factor on width and depth, per level; None = 1 everywhere", example="2,1,1"
    )
    emb_width: int = key(64, "length of a codebook vector", unit="channels", gt=0)
    l_bins: int = key(512, "codebook vectors of a level", unit="codes", gt=0)
    width: int = key(128, "width of the convolution stacks", unit="channels", gt=0)
    depth: int = key(3, "residual blocks in each stack", gt=0)
    m_conv: float = key(1.0, "width inside a residual block, as a factor on width", gt=0)
    dilation_growth_rate: int = key(1, "block d of a stack has dilation rate ** d", ge=1)
    dilation_cycle: int | None = key(None, "d starts again at 0 after so many blocks; None = never", ge=1)
    vqvae_reverse_decoder_dilation: bool = key(True, "decoder stacks run from large to small dilation")
    use_bottleneck: bool = key(True, "quantise; False makes a plain autoencoder, to measure what quantising costs")
    l_mu: float = key(0.99, "moving-average factor of the codebooks", ge=0, lt=1)
    revival_threshold: float = key(
        1.0, "a code used less often is drawn anew", unit="uses per step (moving average)", ge=0
    )
    reset_revived_sums: bool = key(
        False, "a code drawn anew also gets fresh sums; False keeps the old ones, as the first implementation did"
    )
    commit: float = key(1.0, "weight of the commitment loss", ge=0)
    loss_fn: Literal["l1", "l2", "linf", "lmix"] = key("l2", "loss in the time domain")
    linf_k: int = key(2048, "how many of the largest squared errors linf averages", unit="samples", gt=0)
    lmix_l1: float = key(0.0, "weight of l1 in lmix", ge=0)
    lmix_l2: float = key(0.0, "weight of l2 in lmix", ge=0)
    lmix_linf: float = key(0.0, "weight of linf in lmix", ge=0)

    @model_validator(mode="after")
    def _one_entry_per_level(self) -> "VQVAEHps":
        for name, given in (
            ("downs_t", self.downs_t),
            ("strides_t", self.strides_t),
            ("hvqvae_multipliers", self.hvqvae_multipliers),
        ):
            if given is not None and len(given) != self.levels:
                shown = ",".join(map(str, given))
                raise ValueError(
                    f"--levels={self.levels} needs {self.levels} entries in --{name}, but {name} is {shown}. "
                    "Give --levels, --downs_t and --strides_t together."
                )
        return self

    @property
    def hops(self) -> tuple[int, ...]:
        """Audio samples per code, level 0 first: 8, 32, 128 for the published model."""
        downs = [stride**down for stride, down in zip(self.strides_t, self.downs_t, strict=True)]
        return tuple(math.prod(downs[: level + 1]) for level in range(self.levels))

    @property
    def top_hop(self) -> int:
        """Audio samples per code of the top level."""
        return self.hops[-1]


@section("spectral", "Spectral losses")
class SpectralHps:
    spectral: float = key(0.0, "weight of the spectral loss at a single resolution", ge=0)
    multispectral: float = key(1.0, "weight of the spectral loss at several resolutions", ge=0)
    use_nonrelative_specloss: bool = key(
        True, "spectral losses relative to the spectra of the data set; False = to those of each item"
    )
    multispec_loss_n_fft: tuple[PositiveInt, ...] = key((2048, 1024, 512), "FFT size per resolution", unit="samples")
    multispec_loss_hop_length: tuple[PositiveInt, ...] = key((240, 120, 50), "hop per resolution", unit="samples")
    multispec_loss_window_size: tuple[PositiveInt, ...] = key(
        (1200, 600, 240), "window per resolution, at most the FFT size", unit="samples"
    )

    @model_validator(mode="after")
    def _resolutions_agree(self) -> "SpectralHps":
        sizes, hops, windows = (
            self.multispec_loss_n_fft,
            self.multispec_loss_hop_length,
            self.multispec_loss_window_size,
        )
        if not len(sizes) == len(hops) == len(windows):
            raise ValueError(
                "--multispec_loss_n_fft, --multispec_loss_hop_length and --multispec_loss_window_size need equally many"
                f" entries, not {len(sizes)}, {len(hops)} and {len(windows)}."
            )
        if any(window > size for window, size in zip(windows, sizes, strict=True)):
            raise ValueError("--multispec_loss_window_size: a window is longer than its FFT (--multispec_loss_n_fft).")
        return self
