"""The JSON model config: what a file may say, checked before anything is built.

Every key a file may hold is a field here (the training section: recipe.py), with its published name and default.
`read_config` gives a `ModelConfig`, or an HparamsError that names the file, the place inside it and what is allowed.
No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from jukebox.autoencoder.recipe import TrainingConfig
from jukebox.autoencoder.schema import (
    Args,
    Array,
    Kind,
    Pair,
    Part,
    PositiveInts,
    Strict,
    check,
    fail,
    read_json,
    refused,
)

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
    use_cosine_sim: Literal[False] = False


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


class FSQArgs(Strict):
    """Finite scalar quantisation (arXiv:2309.15505). `keep_num_codebooks_dim` is accepted; tokens always keep it."""

    levels: Array[AtLeastTwo] = Field(min_length=1)
    dim: PositiveInt | None = None
    num_codebooks: PositiveInt = 1
    keep_num_codebooks_dim: bool | None = None
    projection_has_bias: bool = True
    noise_augment_dim: NonNegativeInt = 0


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

_HALVING = {"vae", "rvq_vae", "dac_rvq_vae"}


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


# ---------------------------------------------------------------------------------------------------- pretransforms


class WaveletArgs(Strict):
    channels: PositiveInt
    levels: PositiveInt
    wavelet: Literal["bior2.2", "bior2.4", "bior2.6", "bior2.8", "bior4.4", "bior6.8"] = "bior4.4"


class PatchedArgs(Strict):
    channels: PositiveInt
    patch_size: PositiveInt
    oversampling: PositiveInt = 1


class PQMFArgs(Strict):
    attenuation: PositiveInt = 100
    num_bands: AtLeastTwo = 16
    channels: PositiveInt = 1


class _Pretransform(Strict):
    enable_grad: bool = False


class SignalPretransform(_Pretransform, Generic[Kind, Args]):
    type: Kind
    config: Args


class AutoencoderPretransform(_Pretransform):
    """A trained autoencoder in front of this one, frozen."""

    type: Literal["autoencoder"]
    config: AutoencoderConfig
    scale: PositiveFloat = 1.0
    model_half: bool = False
    iterate_batch: bool = False
    chunked: bool = False


Pretransform = Annotated[
    Annotated[
        SignalPretransform[Literal["wavelet"], WaveletArgs]
        | SignalPretransform[Literal["patched"], PatchedArgs]
        | SignalPretransform[Literal["pqmf"], PQMFArgs]
        | AutoencoderPretransform,
        Field(discriminator="type"),
    ],
    refused("pretransform", {
        "dac_pretrained": "it downloads the Descript codec's weights; put an autoencoder config with a checkpoint instead",
        "audiocraft_pretrained": "it downloads Audiocraft's weights; put an autoencoder config with a checkpoint instead",
    }),
]  # fmt: skip


def pretransform_facts(part: Pretransform) -> tuple[int, int, int]:
    """(audio channels it takes, channels it gives, samples per frame)."""
    match part.config:
        case WaveletArgs(channels=channels, levels=levels):
            return channels, channels * 2**levels, 2**levels
        case PatchedArgs(channels=channels, patch_size=size):
            return channels, channels * size, size
        case PQMFArgs(channels=channels, num_bands=bands):
            return channels, channels * bands, bands
    inner = part.config
    assert isinstance(inner, AutoencoderConfig)
    return inner.channels_in, inner.latent_dim, inner.downsampling_ratio


# -------------------------------------------------------------------------------------------------------- the model


class AutoencoderConfig(Strict):
    """The `model` object. The declared `latent_dim` and `downsampling_ratio` are checked against the parts."""

    encoder: Encoder
    decoder: Decoder
    latent_dim: PositiveInt
    downsampling_ratio: PositiveInt
    io_channels: PositiveInt
    in_channels: PositiveInt | None = None
    out_channels: PositiveInt | None = None
    bottleneck: Bottleneck | None = None
    pretransform: Pretransform | None = None

    @property
    def channels_in(self) -> int:
        return self.in_channels or self.io_channels

    @property
    def channels_out(self) -> int:
        return self.out_channels or self.io_channels

    @model_validator(mode="after")
    def _parts_fit(self) -> AutoencoderConfig:
        self._check_audio()
        self._check_latents()
        self._check_ratio()
        return self

    def _check_audio(self) -> None:
        taken, given = encoder_channels(self.encoder)[0], decoder_channels(self.decoder)[1]
        if self.pretransform is None:
            if taken != self.channels_in:
                raise fail("encoder", f"the encoder takes {taken} channels, but the model gets {self.channels_in} "
                            "(in_channels, else io_channels)")  # fmt: skip
            if given != self.channels_out:
                raise fail("decoder", f"the decoder gives {given} channels, but the model promises {self.channels_out} "
                            "(out_channels, else io_channels)")  # fmt: skip
            return
        audio, inner, _ = pretransform_facts(self.pretransform)
        if {audio} != {self.channels_in, self.channels_out}:
            raise fail("pretransform", f"the pretransform is for {audio} channels, the model for {self.channels_in} in and "
                        f"{self.channels_out} out")  # fmt: skip
        for name, channels in ("encoder", taken), ("decoder", given):
            if channels != inner:
                raise fail(name, f"the {self.pretransform.type} pretransform turns {audio} channels into {inner}, but the "
                            f"{name} has {channels}")  # fmt: skip

    def _check_latents(self) -> None:
        from_encoder = encoder_channels(self.encoder)[1]
        latents, why = from_encoder, f"the encoder gives {from_encoder} channels"
        if self.bottleneck is not None and self.bottleneck.type in _HALVING:
            kind = self.bottleneck.type
            if from_encoder % 2:
                raise fail("encoder", f"the {kind} bottleneck splits the encoder's channels into mean and scale, so their "
                            f"number must be even, not {from_encoder}")  # fmt: skip
            latents = from_encoder // 2
            why += f" and the {kind} bottleneck halves them into mean and scale"
        if self.bottleneck is not None and (width := bottleneck_width(self.bottleneck)) not in (None, latents):
            raise fail("bottleneck", f"the {self.bottleneck.type} bottleneck is set up for {width} channels, but {why}: "
                        f"that makes {latents}")  # fmt: skip
        if self.latent_dim != latents:
            raise fail("latent_dim", f"latent_dim is {self.latent_dim}, but {why}: write {latents}, or let the encoder "
                        f"give {from_encoder * self.latent_dim // latents}")  # fmt: skip
        taken, noise = decoder_channels(self.decoder)[0], noise_channels(self.bottleneck)
        if taken != latents + noise:
            extra = f" plus {noise} of noise (noise_augment_dim)" if noise else ""
            raise fail("decoder", f"the decoder takes {taken} channels, but it gets latent_dim {latents}{extra}")

    def _check_ratio(self) -> None:
        before = pretransform_facts(self.pretransform)[2] if self.pretransform is not None else 1
        for name, ratio in ("encoder", self.encoder.config.ratio), ("decoder", self.decoder.config.ratio):
            if ratio * before != self.downsampling_ratio:
                product = f"{ratio}" if before == 1 else f"{ratio}, times {before} of the pretransform {ratio * before}"
                raise fail("downsampling_ratio", f"downsampling_ratio is {self.downsampling_ratio}, but the {name}'s strides "
                            f"multiply to {product}")  # fmt: skip


AutoencoderPretransform.model_rebuild()


class ModelConfig(Strict):
    """A whole model config file."""

    model_type: Literal["autoencoder"]
    sample_rate: PositiveInt
    sample_size: PositiveInt = 65536
    audio_channels: PositiveInt = 2
    model: AutoencoderConfig
    training: TrainingConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _other_model_types(cls, data: Any) -> Any:
        kind = data.get("model_type") if isinstance(data, Mapping) else None
        if kind == "diffusion_autoencoder":
            raise fail("model_type", "diffusion_autoencoder is not offered: its published decode calls itself without end, "
                       "so nothing exists to be compatible with; use autoencoder")  # fmt: skip
        return data

    @model_validator(mode="after")
    def _audio_fits(self) -> ModelConfig:
        if self.training is None:
            return self
        mixed = self.training.force_input_mono
        if self.model.channels_in != (1 if mixed else self.audio_channels):
            raise fail("model.in_channels", f"the encoder gets {'mono (training.force_input_mono)' if mixed else ''}"
                       f"{'' if mixed else f'{self.audio_channels} audio_channels'}, but the model takes {self.model.channels_in}"
                       )  # fmt: skip
        if self.model.channels_out != self.audio_channels:
            raise fail("model.out_channels", f"the model gives {self.model.channels_out} channels, to be compared with "
                       f"{self.audio_channels} audio_channels")  # fmt: skip
        return self


TrainingConfig.model_rebuild(_types_namespace={"ModelConfig": ModelConfig})
ModelConfig.model_rebuild()


def read_config(path: str | Path) -> ModelConfig:
    """The model config in a JSON file. Raises HparamsError."""
    return check(ModelConfig, read_json(path), str(path))
