"""Which model encodes: named in exactly one way."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox.autoencoder.config import read_config
from jukebox.autoencoder.reach import why_unbounded
from jukebox.autoencoder.schema import read_json
from jukebox.encoding.hps import EncodeHps
from jukebox.errors import CheckpointError, HparamsError, UsageError
from jukebox.files import printable
from jukebox.hparams.resolve import Resolved
from jukebox.models import autoencoder_codec, model_set
from jukebox.models.autoencoder_codec import AutoencoderCodec, Kind
from jukebox.models.codec import Codec, VQVAECodec
from jukebox.vqvae.hps import VQVAEHps
from jukebox.weights.catalogue import hub_repository
from jukebox.weights.download import FetchError, fetch

log = logging.getLogger(__name__)

_CONFIG, _WEIGHTS = "model_config.json", ("model.safetensors", "model.ckpt")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
OURS = "jukebox_vqvae"
"""The model_type of our VQ-VAEs: `model` then holds their hyperparameters."""


@dataclass(frozen=True)
class Choice:
    """A model: its checkpoint (run folder or file), and what shapes it where the file does not say: presets of a VQ-VAE,
    or the JSON config of an autoencoder."""

    checkpoint: str
    hps: str = ""
    run: bool = False  # named by --restore_vqvae: it stands where the VQ-VAE stands

    @property
    def part(self) -> model_set.Part:
        """As model sets name it."""
        return model_set.Part(self.checkpoint, self.hps)


def choose(hps: Resolved) -> Choice:
    """The model that the command line names; needs no torch.

    Raises UsageError unless it is named in exactly one way, or when it is of a type that cannot be encoded with.
    """
    encode, vqvae = hps.section(EncodeHps), hps.section(VQVAEHps)
    by_config = bool(encode.model_config or encode.ckpt_path)
    typed = hps.origins["restore_vqvae"] not in ("default",) and not hps.origins["restore_vqvae"].startswith("preset ")
    by_run = bool(vqvae.restore_vqvae) and (typed or not (by_config or encode.pretrained_name))
    ways = {
        "--restore_vqvae": by_run, "--model-config with --ckpt-path": by_config,
        "--pretrained-name": bool(encode.pretrained_name),
    }  # fmt: skip
    named = [way for way, given in ways.items() if given]
    if len(named) != 1:
        what = f"{' and '.join(named)} are given" if named else "no model is named"
        raise UsageError(f"{what}: name the model in exactly one way, {', or '.join(ways)}.")
    if by_config:
        return _from_config(encode.model_config, encode.ckpt_path)
    return Choice(vqvae.restore_vqvae, run=True) if by_run else _from_folder(encode.pretrained_name)


def _from_config(config: str, weights: str) -> Choice:
    if not (config and weights):
        given, missing = ("--model-config", "--ckpt-path") if config else ("--ckpt-path", "--model-config")
        raise UsageError(f"{given} needs {missing}: the description of the model and its weights come together.")
    if config.endswith(".toml"):
        return Choice(weights, config)
    tree = read_json(config)
    if _check_type(config, tree) == "autoencoder":
        read_config(config)  # wrong ones are named before anything is loaded
        return Choice(weights, config)
    presets = tree.get("hps", "")
    if not isinstance(presets, str):
        raise HparamsError(f"--model-config={config}: hps must be the name of a preset, or be left out")
    return Choice(weights, presets)


def _check_type(config: str, tree: Mapping[str, Any]) -> str:
    """The model_type of a config; raises HparamsError for one that cannot be encoded with."""
    kind = tree.get("model_type")
    if kind not in ("autoencoder", OURS):
        raise HparamsError(
            f"--model-config={config}: model_type {kind!r:.60} cannot be encoded with; what can are 'autoencoder', {OURS!r}, "
            "or a run of ours with --restore_vqvae=RUN."
        )
    return str(kind)


def _from_folder(name: str) -> Choice:
    folder = Path(name).expanduser()
    if not folder.exists():
        if not _HUB_NAME.fullmatch(name):
            raise UsageError(
                f"--pretrained-name={printable(name)}: there is no such folder, and no repository of a hub is called so "
                "(owner/name)."
            )
        folder = _fetched(name)
    config = folder / _CONFIG
    if not config.exists():
        return Choice(name)
    found = [folder / file for file in (*_WEIGHTS, "model.pth.tar") if (folder / file).exists()]
    if not found:
        raise UsageError(
            f"--pretrained-name={name}: model_config.json is there, but no model.safetensors or model.ckpt."
        )
    return _from_config(str(config), str(found[0]))


def _fetched(name: str) -> Path:
    """The folder here of a model on a hub: its config, and if that can be encoded with, its weights. Raises UserError."""
    address, folder = hub_repository(name)
    config = fetch(f"{address}/{_CONFIG}", folder / _CONFIG)
    _check_type(str(config), read_json(config))
    for number, file in enumerate(_WEIGHTS, 1):
        try:
            fetch(f"{address}/{file}", folder / file)
            break
        except FetchError:
            if number == len(_WEIGHTS):
                raise
    return folder


def load(choice: Choice, hps: Resolved, device: str) -> tuple[Codec, dict[str, Any]]:
    """The codec, and what a store says of the model that made it.

    Raises UsageError when --hps describes another model, CheckpointError when this one cannot encode.
    """
    if autoencoder_codec.is_autoencoder(choice.part):
        return _load_autoencoder(choice, hps, device)
    codec, model = model_set.load_vqvae(choice.part, device)
    theirs = model_set.vqvae_values(model)
    asked = {name: hps.values[name] for name in theirs if name in hps.values and hps.given(name)}
    differing = model_set.differing({name: theirs[name] for name in asked}, asked)
    if differing:
        raise UsageError(f"--hps describes another VQ-VAE than {choice.checkpoint}:\n{differing}")
    if not codec.vqvae.use_bottleneck:
        raise CheckpointError(f"{choice.checkpoint}: was trained without a codebook (--use_bottleneck=False).")
    if hps.section(EncodeHps).model_half:
        codec = VQVAECodec(codec.vqvae, codec.geometry.sr_hz, half=True)
    about = {"checkpoint": str(Path(choice.checkpoint).resolve()), "hps": dict(model.values)}
    return codec, about


def _load_autoencoder(choice: Choice, hps: Resolved, device: str) -> tuple[Codec, dict[str, Any]]:
    """Latents, or with --is-discrete tokens: as published, or as the one stream of codes that priors train on, for a run or
    with --stream.

    Songs are encoded whole in exact chunks; in windows where --sample-size is given, or the nets look at all at once.
    """
    encode = hps.section(EncodeHps)
    model, config = autoencoder_codec.load_autoencoder(choice.checkpoint, choice.hps, device)
    unbounded = why_unbounded(model)
    asked = hps.given("sample_size")
    window = (encode.sample_size if asked else config.sample_size) if asked or unbounded else 0
    if encode.stream and not encode.is_discrete:
        raise UsageError("--stream says how tokens are stored: give --is-discrete with it.")
    as_stream = encode.stream or (choice.run and not encode.compat)
    kind: Kind = "latents" if not encode.is_discrete else "stream" if as_stream else "tokens"
    books = model.discrete.num_quantizers if model.discrete is not None else 1
    if kind == "stream" and not encode.stream and model.hop % books:
        log.warning(
            "A frame of %d samples cannot be dealt to %d codebooks in whole samples: tokens are stored as published, "
            "which no prior of ours trains on.", model.hop, books,
        )  # fmt: skip
        kind = "tokens"
    codec = AutoencoderCodec(model, config, kind, window_samples=window, half=encode.model_half)
    about: dict[str, Any] = {
        "checkpoint": str(Path(choice.checkpoint).resolve()), "kind": kind,
        "config": config.model_dump(mode="json", exclude_unset=True),
    }  # fmt: skip
    if unbounded:
        about["window"] = f"{unbounded} looks at a whole window at once: what {window} samples give is the definition"
    if kind == "stream":
        about["order"] = (
            f"the {codec.books} codes of a frame one after the other, codebook 0 first, then the next frame"
        )
        about["hps"] = dict(autoencoder_codec.shared_keys(codec, choice.checkpoint).values)
    return codec, about
