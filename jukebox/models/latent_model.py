"""Priors over latents: the JSON config that describes one, and loading one that was trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jukebox.autoencoder.recipe import DemoConfig, OptimiserConfig
from jukebox.autoencoder.schema import Strict, check, fail, parse_json, read_json
from jukebox.errors import CheckpointError, HparamsError
from jukebox.hparams.resolve import Resolved
from jukebox.models import checkpoint, model_set
from jukebox.models.autoencoder_codec import AutoencoderCodec, load_autoencoder
from jukebox.prior.conditioners import LabelShape
from jukebox.prior.hps import LabelHps
from jukebox.prior.latent_flow import FlowShape, LatentFlow

FLOW = "latent_flow"


class AutoencoderOfFlow(Strict):
    """The autoencoder whose latents are modelled. scale: latents are divided by it; null = measured on the first batch."""

    type: Literal["autoencoder"] = "autoencoder"
    ckpt_path: str
    model_config_path: str = ""
    scale: PositiveFloat | None = None


class FlowModel(Strict):
    """`frames` latents of a window."""

    pretransform: AutoencoderOfFlow
    frames: PositiveInt
    width: PositiveInt = 512
    depth: PositiveInt = 12
    heads: PositiveInt = 8

    @model_validator(mode="after")
    def _fits(self) -> FlowModel:
        if self.width % self.heads:
            raise fail("heads", f"width {self.width} does not divide into {self.heads} heads")
        return self


class FlowTraining(Strict):
    """`pre_encoded` true says that the data set holds latents; it is the only way."""

    pre_encoded: Literal[True]
    learning_rate: PositiveFloat = 1e-4
    optimizer: OptimiserConfig | None = None
    use_ema: bool = True
    label_dropout: float = Field(0.1, ge=0.0, lt=1.0)
    demo: DemoConfig = DemoConfig()


class FlowConfig(Strict):
    """A whole model config of a prior over latents. Its labels are asked for by flags, as those of other priors."""

    model_type: Literal["latent_flow"]
    model: FlowModel
    training: FlowTraining


def is_flow(path: str) -> bool:
    """Whether a model config describes a prior over latents. Raises HparamsError when it is no JSON."""
    return bool(read_json(path).get("model_type") == FLOW)


def read_flow_config(path: str) -> FlowConfig:
    """The config in a file. Raises HparamsError."""
    return check(FlowConfig, read_json(path), path)


def config_text(config: FlowConfig) -> str:
    """As checkpoints carry it."""
    return json.dumps(config.model_dump(mode="json"))


def flow_shape(config: FlowConfig, codec: AutoencoderCodec, hps: Resolved) -> FlowShape:
    """The shape of the net that flags and config ask for. Raises HparamsError."""
    m, label = config.model, hps.section(LabelHps)
    shape = None
    if label.labelled:
        genres, artists = label.y_bins
        if label.max_duration is None:
            raise HparamsError(
                "A labelled prior over latents needs --max_duration (s), the end of its timing embeddings."
            )
        shape = LabelShape(
            width=m.width, genres=genres, artists=artists, genre_slots=label.max_bow_genre_size or 1, n_ctx=m.frames,
            t_bins=label.t_bins, sr_hz=codec.geometry.sr_hz, min_duration=label.min_duration or 0.0,
            max_duration=label.max_duration, timing=True, init_scale=10.0,
        )  # fmt: skip
    return FlowShape(
        latent_dim=codec.model.latent_dim, frames=m.frames, hop=codec.model.hop, width=m.width, depth=m.depth, heads=m.heads,
        labels=shape, n_tokens=label.n_tokens if label.lyrics and shape else 0, n_vocab=label.n_vocab,
    )  # fmt: skip


def autoencoder_of(config: FlowConfig, device: str = "cpu") -> AutoencoderCodec:
    """The autoencoder under a flow. Raises CheckpointError, HparamsError."""
    part = config.model.pretransform
    model, described = load_autoencoder(part.ckpt_path, part.model_config_path, device)
    return AutoencoderCodec(model, described, "latents", window_samples=described.sample_size // model.hop * model.hop)


@dataclass(frozen=True)
class TrainedFlow:
    """A prior over latents, ready to sing."""

    net: LatentFlow
    config: FlowConfig
    codec: AutoencoderCodec
    hps: Resolved


def carried_flow(found: checkpoint.Checkpoint) -> FlowConfig | None:
    """The config that the checkpoint of a prior over latents carries; None in others."""
    own: Any = found.extra.get("own")
    text = own.get("flow_config") if isinstance(own, dict) else None
    return check(FlowConfig, parse_json(text, str(found.path)), f"{found.path}, its model config") if text else None


def load_flow(path: str | Path, device: str = "cpu") -> TrainedFlow:
    """The prior of a run folder or checkpoint. Raises CheckpointError."""
    found = checkpoint.read(model_set.locate(model_set.Part(str(path))))
    config = carried_flow(found)
    if config is None:
        raise CheckpointError(f"{found.path} is not a prior over latents.")
    hps, codec = model_set.hps_of(found), autoencoder_of(config, device)
    net = LatentFlow(flow_shape(config, codec, hps))
    try:
        net.load_state_dict(found.model)
    except RuntimeError as error:
        raise CheckpointError(f"{found.path}: {error}") from None
    return TrainedFlow(net.to(device).eval().requires_grad_(False), config, codec, hps)


def noise_for(net: LatentFlow, seeds: list[int], windows: list[int]) -> torch.Tensor:
    """Noise `[B, D, n]` by seed and window of each item, the same on any machine and in any batch."""
    shape = (net.shape.latent_dim, net.shape.frames)
    drawn = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + window))
        for seed, window in zip(seeds, windows, strict=True)
    ]
    return torch.stack(drawn).to(next(net.parameters()).device)
