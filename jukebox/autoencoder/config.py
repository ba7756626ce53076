"""The JSON model config: what a file may say, checked before anything is built.

Its parts are described in parts.py, its training section in recipe.py. `read_config` gives a `ModelConfig`, or an
HparamsError that names the file, the place inside it and what is allowed there. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jukebox.autoencoder.parts import (
    HALVING,
    AtLeastTwo,
    Bottleneck,
    Decoder,
    Encoder,
    bottleneck_width,
    decoder_channels,
    encoder_channels,
    has_own_loss,
    noise_channels,
)
from jukebox.autoencoder.recipe import OobleckDiscriminatorArgs, TrainingConfig
from jukebox.autoencoder.schema import Args, Kind, Strict, check, fail, read_json, refused

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

    @property
    def hop(self) -> int:
        """Samples from one frame to the next: `downsampling_ratio`, into which a patched pretransform does not count its
        oversampling."""
        return self.downsampling_ratio // self._oversampling

    @property
    def _oversampling(self) -> int:
        match self.pretransform.config if self.pretransform is not None else None:
            case PatchedArgs(oversampling=times):
                return times
            case AutoencoderConfig() as inner:
                return inner.downsampling_ratio // inner.hop
        return 1

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
        if self.bottleneck is not None and self.bottleneck.type in HALVING:
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
        if self.downsampling_ratio % self._oversampling:
            raise fail("pretransform", f"at {self._oversampling} times the rate a downsampling_ratio of "
                        f"{self.downsampling_ratio} puts frames between samples: oversampling must divide it"
                        )  # fmt: skip


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
        if kind == "lm":
            raise fail("model_type", "a language model over stored tokens is a prior here: leave --model-config out and give "
                       "--prior --level=0, a preset (--hps=small_prior) and --dataset-config of type pre_encoded"
                       )  # fmt: skip
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
        self._check_discriminator(self.training)
        self._check_teacher(self.training)
        whole = self.sample_size // self.model.hop * self.model.hop
        for where, least in self.training.least_samples():
            if whole < least:
                raise fail("sample_size", f"sample_size {self.sample_size} makes {whole} samples in whole frames of "
                           f"{self.model.hop}: too few for training.{where}, which needs {least}")  # fmt: skip
        return self

    def _check_discriminator(self, training: TrainingConfig) -> None:
        part, given = training.losses.discriminator, self.model.channels_out
        if part and isinstance(part.config, OobleckDiscriminatorArgs) and part.config.in_channels not in (None, given):
            raise fail("training.loss_configs.discriminator.config.in_channels", f"the discriminator listens to "
                       f"{part.config.in_channels} channels, but the model gives {given}; leave it out")  # fmt: skip

    def _check_teacher(self, training: TrainingConfig) -> None:
        """A teacher decodes the model's latents, and the model its."""
        if training.teacher_model is None:
            return
        teacher, ours = training.teacher_model.model, self.model
        if training.teacher_model.sample_rate != self.sample_rate:
            raise fail("training.teacher_model.sample_rate", f"the teacher hears {training.teacher_model.sample_rate} Hz, the "
                       f"model {self.sample_rate}")  # fmt: skip
        for name in "latent_dim", "hop", "channels_in", "channels_out":
            if getattr(teacher, name) != getattr(ours, name):
                raise fail("training.teacher_model.model", f"{name} of the teacher is {getattr(teacher, name)}, of the model "
                           f"{getattr(ours, name)}: each decodes the other's latents, so they must be equal"
                           )  # fmt: skip

    def why_nothing_to_learn(self) -> str | None:
        """What keeps the training section from training anything, as "path: cure"; None where nothing does."""
        assert self.training is not None
        losses = self.training.losses
        if losses.compares or has_own_loss(self.model.bottleneck):
            return None
        if losses.discriminator is None:
            return (
                "training.loss_configs: nothing to train on: give spectral, time or mrmel with a weight above 0, or a "
                "discriminator"
            )
        steps = self.training.warmup_steps
        if not steps:
            return None
        return (
            f"training.warmup_steps: for {steps} steps there is nothing to train on: the discriminator counts only after "
            "them; add spectral, time or mrmel to loss_configs"
        )


TrainingConfig.model_rebuild(_types_namespace={"ModelConfig": ModelConfig})
ModelConfig.model_rebuild()


def read_config(path: str | Path) -> ModelConfig:
    """The model config in a JSON file. Raises HparamsError."""
    return check(ModelConfig, read_json(path), str(path))
