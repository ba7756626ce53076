"""Weights alone from a training checkpoint of an autoencoder, as other programs read them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from jukebox import files
from jukebox.autoencoder.hps import UnwrapHps
from jukebox.errors import UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.models.autoencoder_codec import load_autoencoder

log = logging.getLogger(__name__)


def main(hps: Resolved) -> int:
    """Unwrap what the settings of `unwrap` name; the exit code."""
    asked = hps.section(UnwrapHps)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not asked.ckpt_path:
        raise UsageError("--ckpt-path is missing: python jukebox/unwrap.py --ckpt-path=logs/model --name=model")
    log.info("%s", unwrap(asked))
    return 0


def unwrap(asked: UnwrapHps) -> Path:
    """Write the averaged weights, where there are such, under the published unwrapped names; the file.

    Raises HparamsError, CheckpointError, OutOfSpace.
    """
    model, _ = load_autoencoder(asked.ckpt_path, asked.model_config)
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    path = Path(f"{asked.name}.{'safetensors' if asked.use_safetensors else 'ckpt'}")
    files.make_folder(path.parent, cure="Choose another --name.")
    files.publish(path, lambda out: _write(out, state, asked.use_safetensors))
    return path


def _write(out: BinaryIO, state: dict[str, Tensor], as_safetensors: bool) -> None:
    if as_safetensors:
        from safetensors.torch import save

        out.write(save(state))
    else:
        torch.save({"state_dict": state}, out)
