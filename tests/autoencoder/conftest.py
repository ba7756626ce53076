"""A builder of small autoencoders of any mixture."""

from typing import Any

import pytest
import torch

from jukebox.autoencoder.config import ModelConfig
from jukebox.autoencoder.model import Autoencoder
from jukebox.autoencoder.schema import check

LEVELS = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
SEANET = {"n_filters": 4, "lstm": 1}
ENCODERS = {
    "oobleck": lambda c, d: {"in_channels": c, "latent_dim": d, **LEVELS, "use_snake": True, "antialias_activation": True},
    "dac": lambda c, d: {"in_channels": c, "latent_dim": d, "d_model": 4, "strides": [2, 4]},
    "seanet": lambda c, d: {"channels": c, "dimension": d, "ratios": [2, 4], **SEANET},
    "taae": lambda c, d: {"in_channels": c, "latent_dim": d, **LEVELS, "transformer_depths": [1, 1], "sliding_window": [3, 4]},
}  # fmt: skip
DECODERS = {
    "oobleck": lambda c, d: {"out_channels": c, "latent_dim": d, **LEVELS, "use_nearest_upsample": True},
    "dac": lambda c, d: {"out_channels": c, "latent_dim": d, "channels": 16, "rates": [4, 2]},
    "seanet": lambda c, d: {"channels": c, "dimension": d, "ratios": [4, 2], **SEANET},
    "taae": lambda c, d: {
        "out_channels": c, "latent_dim": d, **LEVELS, "transformer_depths": [1, 1], "sliding_window": [3, 4],
        "use_snake": True, "use_dilated_conv": True, "conformer": True, "layer_scale": False,
    },
}  # fmt: skip


class Builder:
    """`build("dac", "taae", channels=2)`: a model of ratio 8; a part may be a name or a whole JSON object."""

    def __call__(
        self, encoder="oobleck", decoder="oobleck", *, channels=1, out=None, dim=8, encoded=None, **model: Any
    ) -> Autoencoder:
        tree = {
            "encoder": encoder if isinstance(encoder, dict) else self.encoder(encoder, channels, encoded or dim),
            "decoder": decoder if isinstance(decoder, dict) else self.decoder(decoder, out or channels, dim),
            "latent_dim": dim, "downsampling_ratio": 8, "io_channels": channels, "in_channels": channels,
            "out_channels": out or channels, **model,
        }  # fmt: skip
        torch.manual_seed(0)
        config = check(ModelConfig, {"model_type": "autoencoder", "sample_rate": 8000, "model": tree}, "m")
        return Autoencoder(config.model)

    def encoder(self, kind, channels, dim, **more) -> dict:
        return {"type": kind, "config": {**ENCODERS[kind](channels, dim), **more}}

    def decoder(self, kind, channels, dim, **more) -> dict:
        return {"type": kind, "config": {**DECODERS[kind](channels, dim), **more}}

    def inner(self, channels=1) -> dict:
        """The config of a model that stands in front of another."""
        return self(channels=channels, dim=4).config.model_dump(mode="json")


@pytest.fixture
def build() -> Builder:
    return Builder()
