"""The parts of an autoencoder as a config file describes them: encoders, decoders, bottlenecks.

Every setting has its published name and default. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Generic, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from jukebox.autoencoder.schema import Args, Array, Kind, Pair, Part, PositiveInts, Strict, fail, refused

AtLeastTwo = Annotated[int, Field(ge=2)]


# ------------------------------------------------------------------------------------------ encoders and decoders


class _Levels(Strict):
    """Settings shared by the nets whose widths are multiples of `channels`, one per level."""

    channels: PositiveInt = 128
    latent_dim: PositiveInt = 32
    c_mults: PositiveInts = (1, 2, 4, 8)
    strides: PositiveInts = (2, 4, 8, 8)
    use_snake: bool = False

    @model_validator(mode="after")
    def _one_multiple_per_level(self) -> _Levels:
        if len(self.c_mults) != len(self.strides):
            raise fail(
                "strides", f"{len(self.strides)} strides need {len(self.strides)} c_mults, got {len(self.c_mults)}"
            )
        return self

    @property
    def ratio(self) -> int:
        return math.prod(self.strides)


class OobleckEncoderArgs(_Levels):
    in_channels: PositiveInt = 2
    antialias_activation: bool = False


class OobleckDecoderArgs(_Levels):
    out_channels: PositiveInt = 2
    antialias_activation: bool = False
    use_nearest_upsample: bool = False
    final_tanh: bool = True


class DACEncoderArgs(Strict):
    in_channels: PositiveInt = 1
    d_model: PositiveInt
    strides: PositiveInts
    latent_dim: PositiveInt | None = None

    @property
    def ratio(self) -> int:
        return math.prod(self.strides)


class DACDecoderArgs(Strict):
    out_channels: PositiveInt = 1
    latent_dim: PositiveInt
    channels: PositiveInt
    rates: PositiveInts

    @model_validator(mode="after")
    def _halves(self) -> DACDecoderArgs:
        if self.channels % 2 ** len(self.rates):
            raise fail("channels", f"channels are halved at each of the {len(self.rates)} rates, so they must be a "
                        f"multiple of {2 ** len(self.rates)}, not {self.channels}")  # fmt: skip
        return self

    @property
    def ratio(self) -> int:
        return math.prod(self.rates)


ACTIVATIONS = {
    "ELU": {"alpha", "inplace"}, "ReLU": {"inplace"}, "LeakyReLU": {"negative_slope", "inplace"}, "GELU": set[str](),
    "SiLU": {"inplace"}, "Tanh": set[str](), "Sigmoid": set[str](), "Identity": set[str](),
}  # fmt: skip
"""The parameters of each activation."""


def _check_params(key: str, params: Mapping[str, Any] | None, allowed: set[str], of: str) -> None:
    if unknown := sorted(set(params or ()) - allowed):
        known = f"allowed: {', '.join(sorted(allowed))}" if allowed else "it has none"
        raise fail(key, f"{of} has no parameter {unknown[0]}; {known}")


class _SEANet(Strict):
    channels: PositiveInt = 1
    dimension: PositiveInt = 128
    n_filters: PositiveInt = 32
    n_residual_layers: NonNegativeInt = 1
    ratios: PositiveInts = (8, 5, 4, 2)
    activation: Literal["ELU", "ReLU", "LeakyReLU", "GELU", "SiLU", "Tanh", "Sigmoid", "Identity"] = "ELU"
    activation_params: dict[str, float | bool] | None = None
    norm: Literal["none", "weight_norm", "spectral_norm", "time_group_norm", "time_layer_norm"] = "weight_norm"
    norm_params: dict[str, float | bool] = {}
    kernel_size: PositiveInt = 7
    last_kernel_size: PositiveInt = 7
    residual_kernel_size: PositiveInt = 3
    dilation_base: PositiveInt = 2
    causal: bool = False
    pad_mode: Literal["reflect", "constant", "replicate", "circular"] = "reflect"
    true_skip: bool = False
    compress: PositiveInt = 2
    lstm: NonNegativeInt = 2

    @model_validator(mode="before")
    @classmethod
    def _layer_norm(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("norm") == "layer_norm":
            raise fail("norm", "layer_norm never worked in the published SEANet; use weight_norm, spectral_norm, "
                        "time_group_norm or none")  # fmt: skip
        return data

    @model_validator(mode="after")
    def _fits(self) -> _SEANet:
        if self.causal and self.norm == "time_group_norm":
            raise fail("norm", "time_group_norm looks at the whole signal, so it cannot be causal")
        if self.n_filters < self.compress:
            raise fail("compress", f"n_filters {self.n_filters} divided by compress {self.compress} leaves no channel")
        _check_params("activation_params", self.activation_params, ACTIVATIONS[self.activation], self.activation)
        of_norm = {"eps", "affine"} if self.norm == "time_group_norm" else set[str]()
        _check_params("norm_params", self.norm_params, of_norm, f"norm {self.norm}")
        return self

    @property
    def ratio(self) -> int:
        return math.prod(self.ratios)


class SEANetEncoderArgs(_SEANet):
    """The encoder downsamples in the listed order of `ratios`."""

    ratios: PositiveInts = (2, 2, 2, 2, 2)


class SEANetDecoderArgs(_SEANet):
    """The decoder upsamples in the listed order too: to mirror an encoder, write its list backwards."""

    final_activation: Literal["ELU", "ReLU", "LeakyReLU", "GELU", "SiLU", "Tanh", "Sigmoid", "Identity"] | None = None
    final_activation_params: dict[str, float | bool] | None = None
    trim_right_ratio: float = Field(1.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _trim(self) -> SEANetDecoderArgs:
        if not self.causal and self.trim_right_ratio != 1.0:
            raise fail("trim_right_ratio", "trim_right_ratio other than 1 needs causal true")
        if (final := self.final_activation) is not None:
            _check_params("final_activation_params", self.final_activation_params, ACTIVATIONS[final], final)
        return self


class _TAAE(_Levels):
    transformer_depths: Array[NonNegativeInt] = (3, 3, 3, 3)
    sliding_window: Pair[NonNegativeInt] | None = (63, 64)
    checkpointing: bool = False
    conformer: bool = False
    layer_scale: bool = True
    use_dilated_conv: bool = False

    @model_validator(mode="after")
    def _fits(self) -> _TAAE:
        if len(self.transformer_depths) != len(self.strides):
            raise fail("transformer_depths", f"{len(self.strides)} strides need as many transformer_depths, "
                        f"got {len(self.transformer_depths)}")  # fmt: skip
        widths = [self.c_mults[0] * self.channels] + [m * self.channels for m in self.c_mults]
        for n_in, n_out, stride in zip(widths, widths[1:], self.strides, strict=False):
            if stride == 1 and n_in != n_out:
                raise fail("strides", f"a level of stride 1 cannot change its width ({n_in} to {n_out})")
        for width in widths:
            if width > 128 and width % 128:
                raise fail("channels", f"a transformer of width {width} does not divide into heads of 128; "
                            "make channels x c_mults at most 128 or a multiple of it")  # fmt: skip
            if min(128, width) % 4:
                raise fail("channels", f"heads of width {min(128, width)} cannot be rotated: use a multiple of 4")
        return self


class TAAEEncoderArgs(_TAAE):
    """`sliding_window` null means full attention."""

    in_channels: PositiveInt = 2


class TAAEDecoderArgs(_TAAE):
    """`sliding_window` null means full attention."""

    out_channels: PositiveInt = 2


_NO_NET = {
    "local_attn": "the published code cannot build it, so there is nothing to be compatible with; use taae",
}

Encoder = Annotated[
    Annotated[
        Part[Literal["oobleck"], OobleckEncoderArgs]
        | Part[Literal["dac"], DACEncoderArgs]
        | Part[Literal["seanet"], SEANetEncoderArgs]
        | Part[Literal["taae"], TAAEEncoderArgs],
        Field(discriminator="type"),
    ],
    refused("encoder", _NO_NET),
]


class DecoderPart(Part[Kind, Args], Generic[Kind, Args]):
    soft_clip: bool = False


Decoder = Annotated[
    Annotated[
        DecoderPart[Literal["oobleck"], OobleckDecoderArgs]
        | DecoderPart[Literal["dac"], DACDecoderArgs]
        | DecoderPart[Literal["seanet"], SEANetDecoderArgs]
        | DecoderPart[Literal["taae"], TAAEDecoderArgs],
        Field(discriminator="type"),
    ],
    refused("decoder", _NO_NET),
]


def encoder_channels(part: Encoder) -> tuple[int, int]:
    """Channels that go into an encoder and that come out."""
    args = part.config
    if isinstance(args, SEANetEncoderArgs):
        return args.channels, args.dimension
    if isinstance(args, DACEncoderArgs) and args.latent_dim is None:
        return args.in_channels, args.d_model * 2 ** len(args.strides)
    assert args.latent_dim is not None
    return args.in_channels, args.latent_dim


def decoder_channels(part: Decoder) -> tuple[int, int]:
    """Channels that go into a decoder and that come out."""
    args = part.config
    if isinstance(args, SEANetDecoderArgs):
        return args.dimension, args.channels
    return args.latent_dim, args.out_channels


# ------------------------------------------------------------------------------------------------------ bottlenecks


class NoArgs(Strict):
    """A type without settings."""


class TanhArgs(Strict):
    scale: PositiveFloat = 1.0


class WassersteinArgs(Strict):
    noise_augment_dim: NonNegativeInt = 0
    bypass_mmd: bool = False
    use_tanh: bool = False
    tanh_scale: PositiveFloat = 5.0


class SoftNormArgs(Strict):
    """`softnorm` has no type name in the published code; here it has."""

    dim: PositiveInt = 32
    noise_augment_dim: NonNegativeInt = 0
    noise_regularize: bool = False


class RVQArgs(Strict):
    """Residual quantisation with codebooks learnt by moving averages."""

    dim: PositiveInt = 128
    codebook_size: PositiveInt = 1024
    num_quantizers: PositiveInt = 8
    codebook_dim: PositiveInt | None = None
    decay: float = Field(0.99, gt=0.0, lt=1.0)
    commitment_weight: NonNegativeFloat = 1.0
    kmeans_init: bool = True
    kmeans_iters: PositiveInt = 50
    threshold_ema_dead_code: NonNegativeFloat = 2.0
    eps: PositiveFloat = 1e-5
    shared_codebook: bool = False
    quantize_dropout: bool = False
    quantize_dropout_cutoff_index: NonNegativeInt = 0
    quantize_dropout_multiple_of: PositiveInt = 1
    use_cosine_sim: bool = False

    @model_validator(mode="after")
    def _offered(self) -> RVQArgs:
        if self.use_cosine_sim:
            raise fail("use_cosine_sim", "codebooks compared by direction and learnt by averages are not offered; leave it "
                       "out, or use dac_rvq, whose codebooks are compared by direction")  # fmt: skip
        if self.quantize_dropout_cutoff_index >= self.num_quantizers:
            raise fail("quantize_dropout_cutoff_index", f"must be below num_quantizers {self.num_quantizers}, not "
                       f"{self.quantize_dropout_cutoff_index}")  # fmt: skip
        return self


class DACQuantiserArgs(Strict):
    """Residual quantisation in small projected spaces, codebooks learnt by gradient (arXiv:2306.06546 sec. 3.2)."""

    input_dim: PositiveInt = 512
    n_codebooks: PositiveInt
    codebook_size: PositiveInt
    codebook_dim: PositiveInt | PositiveInts = 8
    quantizer_dropout: float = Field(0.0, ge=0.0, le=1.0)
    quantize_on_decode: bool = False

    @model_validator(mode="after")
    def _one_width_per_stage(self) -> DACQuantiserArgs:
        if isinstance(self.codebook_dim, tuple) and len(self.codebook_dim) != self.n_codebooks:
            raise fail(
                "codebook_dim", f"{self.n_codebooks} codebooks need one codebook_dim or {self.n_codebooks} of them"
            )
        return self


class DACRVQArgs(DACQuantiserArgs):
    noise_augment_dim: NonNegativeInt = 0


MOST_CODES = 2**31 - 1


def _check_codes(levels: Iterable[int]) -> None:
    if (codes := math.prod(levels)) > MOST_CODES:
        raise fail("levels", f"the levels of one codebook multiply to {codes} codes, more than the {MOST_CODES} that a "
                   "token can name; use fewer, or more codebooks (num_codebooks)")  # fmt: skip


class FSQArgs(Strict):
    """Finite scalar quantisation (arXiv:2309.15505). `keep_num_codebooks_dim` is accepted; tokens always keep it."""

    levels: Array[AtLeastTwo] = Field(min_length=1)
    dim: PositiveInt | None = None
    num_codebooks: PositiveInt = 1
    keep_num_codebooks_dim: bool | None = None
    projection_has_bias: bool = True
    noise_augment_dim: NonNegativeInt = 0

    @model_validator(mode="after")
    def _codes(self) -> FSQArgs:
        _check_codes(self.levels)
        return self


class DitheredFSQArgs(Strict):
    dim: PositiveInt
    levels: AtLeastTwo | Array[AtLeastTwo]
    num_codebooks: PositiveInt = 1
    dither_inference: bool = True
    noise_dropout: float = Field(0.05, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _one_level_per_dimension(self) -> DitheredFSQArgs:
        if isinstance(self.levels, tuple) and len(self.levels) != self.dim:
            raise fail(
                "levels", f"dim {self.dim} needs one number of levels or {self.dim} of them, got {len(self.levels)}"
            )
        _check_codes(self.levels if isinstance(self.levels, tuple) else (self.levels,) * self.dim)
        return self


Bottleneck = Annotated[
    Annotated[
        Part[Literal["tanh"], TanhArgs]
        | Part[Literal["vae"], NoArgs]
        | Part[Literal["wasserstein"], WassersteinArgs]
        | Part[Literal["l2_norm"], NoArgs]
        | Part[Literal["softnorm"], SoftNormArgs]
        | Part[Literal["rvq"], RVQArgs]
        | Part[Literal["rvq_vae"], RVQArgs]
        | Part[Literal["dac_rvq"], DACRVQArgs]
        | Part[Literal["dac_rvq_vae"], DACQuantiserArgs]
        | Part[Literal["fsq"], FSQArgs]
        | Part[Literal["dithered_fsq"], DitheredFSQArgs],
        Field(discriminator="type"),
    ],
    refused("bottleneck", {"skip": "leave the bottleneck key out to have none"}),
]

HALVING = {"vae", "rvq_vae", "dac_rvq_vae"}


def bottleneck_width(part: Bottleneck) -> int | None:
    """Latent channels that a bottleneck insists on; None where any number will do."""
    match part.config:
        case SoftNormArgs(dim=width) | RVQArgs(dim=width) | DACQuantiserArgs(input_dim=width):
            return width
        case FSQArgs() as args:
            return args.dim or len(args.levels) * args.num_codebooks
        case DitheredFSQArgs() as args:
            return args.dim * args.num_codebooks
    return None


def noise_channels(part: Bottleneck | None) -> int:
    """Channels of noise that a bottleneck's decode appends."""
    return int(getattr(part.config, "noise_augment_dim", 0)) if part is not None else 0


def has_own_loss(part: Bottleneck | None) -> bool:
    """Whether a bottleneck's encode gives something to train on."""
    match part.config if part is not None else None:
        case DACQuantiserArgs() as args:
            return not args.quantize_on_decode or (part is not None and part.type in HALVING)
        case WassersteinArgs() as args:
            return not args.bypass_mmd
    return part is not None and part.type in {"vae", "rvq", "rvq_vae", "softnorm"}
