"""Weights of autoencoders as they lie about: our runs, published .ckpt and .safetensors files, training checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from jukebox.autoencoder.config import ModelConfig
from jukebox.autoencoder.schema import check, parse_json
from jukebox.errors import CheckpointError
from jukebox.models import checkpoint, restricted


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file or run folder by their names there; wrapped ones keep their prefixes.

    Raises CheckpointError when the file is damaged, holds more than tensors, numbers and text, or no tensors.
    """
    path = Path(path)
    if path.is_dir():
        return checkpoint.read(path).model
    tree: Any = restricted.load(path)
    if isinstance(tree, dict) and isinstance(tree.get("jukebox"), dict):
        return checkpoint.read(path).model  # of ours, with its digests
    for key in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()) or not tree:
        raise CheckpointError(f"{path}: not a checkpoint: no tensors under the key `state_dict` or `model`")
    return {str(name): tensor for name, tensor in tree.items()}


def carried_config(found: checkpoint.Checkpoint) -> ModelConfig | None:
    """The model config that a checkpoint of an autoencoder run of ours carries; None in other checkpoints."""
    own = found.extra.get("own")
    text = own.get("config") if isinstance(own, dict) else None
    if not isinstance(text, str):
        return None
    return check(ModelConfig, parse_json(text, str(found.path)), f"{found.path}, its model config")
