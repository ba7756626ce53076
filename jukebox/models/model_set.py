"""Which VQ-VAE, upsamplers and top prior sing together, and how they are read: what `--model=` means."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jukebox import settings
from jukebox.data.hps import AudioHps
from jukebox.errors import CheckpointError, UsageError
from jukebox.hparams import presets
from jukebox.hparams.resolve import Resolved, keys_of
from jukebox.models import build, checkpoint
from jukebox.models.codec import VQVAECodec
from jukebox.prior.model import Prior
from jukebox.vqvae.hps import VQVAEHps

log = logging.getLogger(__name__)

_OPTIONS = ("temp", "top_k", "top_p", "min_p", "chunk_size", "max_batch_size", "alignment_layer", "alignment_head")


@dataclass(frozen=True)
class Part:
    """One net of a set: a checkpoint (file, run folder or published address), the presets that shape it where the file
    does not say, and how it is sampled."""

    checkpoint: str
    hps: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSet:
    """A VQ-VAE and its priors; priors[level], None where that level has none."""

    name: str
    vqvae: Part
    priors: tuple[Part | None, ...]
    licence: str = ""


def find(model: str, restore_vqvae: str = "") -> ModelSet:
    """The set that a `--model` value means: a name, a file, or runs by comma.

    Raises UsageError when there is no such set, file or run.
    """
    if not model:
        raise UsageError(
            f"--model is missing: name a model set ({', '.join(presets.model_sets())}), a model-set file, or runs by "
            "comma, for example --model=logs/top,logs/up1,logs/up0."
        )
    file = presets.find_model_set(model) or (Path(model) if model.endswith(".toml") else None)
    found = _from_file(file) if file else _from_runs([part.strip() for part in model.split(",") if part.strip()])
    if restore_vqvae:
        found = ModelSet(found.name, Part(restore_vqvae), found.priors, found.licence)
    return found


def _from_file(path: Path) -> ModelSet:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--model={path}: not a readable model set: {error}") from None

    def part(entry: dict[str, Any]) -> Part:
        unknown = set(entry) - {"hps", "checkpoint", *_OPTIONS}
        if unknown or "checkpoint" not in entry:
            what = f"unknown key {sorted(unknown)[0]!r}" if unknown else "no checkpoint"
            raise UsageError(f"{path}: {what} in a part; allowed: hps, checkpoint, {', '.join(_OPTIONS)}.")
        where = str(entry["checkpoint"])
        if "://" not in where and not Path(where).is_absolute() and (path.parent / where).exists():
            where = str(path.parent / where)
        return Part(where, entry.get("hps", ""), {k: entry[k] for k in _OPTIONS if k in entry})

    if not isinstance(table.get("vqvae"), dict):
        raise UsageError(f'{path}: a model set needs [vqvae] with checkpoint = "...", and [[priors]], level 0 first.')
    priors = tuple(part(entry) if entry.get("checkpoint", "") != "" else None for entry in table.get("priors", []))
    return ModelSet(path.stem, part(table["vqvae"]), priors, str(table.get("licence", "")))


def _from_runs(paths: list[str]) -> ModelSet:
    vqvae: Part | None = None
    priors: dict[int, Part] = {}
    for path in paths:
        if not Path(path).exists():
            raise UsageError(
                f"--model={path}: neither a model set ({', '.join(presets.model_sets())}) nor a run folder or "
                "checkpoint that exists."
            )
        found = checkpoint.read(path)
        if found.hps is None:
            raise UsageError(f"--model={path}: this checkpoint does not say what it is; write a model-set file for it.")
        if not found.hps.get("prior"):
            vqvae = Part(path)
            continue
        level = int(found.hps["level"])
        if level in priors:
            raise UsageError(f"--model: both {priors[level].checkpoint} and {path} are priors of level {level}.")
        priors[level] = Part(path)
        if vqvae is None and found.hps.get("restore_vqvae"):
            vqvae = Part(str(found.hps["restore_vqvae"]))
    if vqvae is None:
        raise UsageError("--model: none of these runs names its VQ-VAE; add --restore_vqvae=RUN.")
    top = max(priors, default=-1)
    return ModelSet(",".join(paths), vqvae, tuple(priors.get(level) for level in range(top + 1)))


def locate(part: Part) -> Path:
    """The local file of a part. Raises CheckpointError saying what to fetch and where to put it by hand."""
    if "://" not in part.checkpoint:
        path = Path(part.checkpoint).expanduser()
        if not path.exists():
            raise CheckpointError(f"{path}: no such checkpoint or run folder.")
        return path
    relative = part.checkpoint.split("://", 1)[1].split("/", 1)[1]
    path = Path("~/.cache").expanduser() / relative
    if not path.exists():
        raise CheckpointError(
            f"The published weights {part.checkpoint} are not here. Fetch them with `python jukebox/fetch.py`, or put the "
            f"file at {path}. They are for non-commercial use only (NOTICE-weights.md)."
        )
    return path


SHAPING = ("levels", "downs_t", "strides_t", "hvqvae_multipliers", "emb_width", "width", "depth", "l_bins", "sr")
PRIOR_SHAPING = (
    "prior", "level", "n_ctx", "prior_width", "prior_depth", "heads", "attn_order", "blocks", "m_attn", "m_mlp",
    "y_bins", "t_bins", "use_tokens", "n_tokens", "n_vocab", "single_enc_dec", "merged_decoder", "cond_width",
    "cond_depth", "cond_dilation_growth_rate", "cond_dilation_cycle", "prime_width", "prime_depth", "prime_heads",
)  # fmt: skip
"""Keys whose change makes another net; a checkpoint and a command line must agree on them."""


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """A table of the keys of a VQ-VAE in which two sets differ; empty when there are none."""
    return checkpoint.differing_keys(theirs, ours, [name for name in SHAPING if name in theirs and name in ours])


def vqvae_values(hps: Resolved) -> dict[str, Any]:
    """The keys that shape the VQ-VAE and its audio, which every prior on top of it shares."""
    names = [*keys_of(VQVAEHps), "sr"]
    return {name: hps.values[name] for name in names if name != "restore_vqvae"}


def load_vqvae(part: Part, device: str = "cpu") -> tuple[VQVAECodec, Resolved]:
    """The VQ-VAE of a part and its hyperparameters. Raises CheckpointError when they do not fit."""
    path = locate(part)
    found = checkpoint.read(path)
    hps = _hps_of(found, part)
    if hps.values["prior"]:
        raise CheckpointError(f"{found.path} is a prior, not a VQ-VAE. Name its VQ-VAE with --restore_vqvae.")
    net = build.build_vqvae(hps)
    checkpoint.load_into(net, dict(found.model), build.vqvae_names(hps), source=str(found.path))
    for level in range(net.levels if net.use_bottleneck else 0):
        net.codebook(level).ready.fill_(True)
    return VQVAECodec(net.to(device), hps.section(AudioHps).sr), hps


def prior_hps(part: Part, vqvae: Resolved, level: int) -> tuple[checkpoint.Checkpoint, Resolved]:
    """The checkpoint of a prior, mapped, and its hyperparameters on this VQ-VAE; no net is built.

    Raises CheckpointError when the file is not a prior of this level, or stands on another VQ-VAE.
    """
    found = checkpoint.read(locate(part))
    hps = _hps_of(found, part)
    if found.hps is None or part.hps:
        hps = hps.with_values(str(part.checkpoint), **{**vqvae_values(vqvae), "level": level})
    if hps.values["level"] != level:
        raise CheckpointError(f"{found.path} is a prior of level {hps.values['level']}, not {level}.")
    other = differing(vqvae_values(hps), vqvae_values(vqvae))
    if other:
        raise CheckpointError(
            f"{found.path} stands on another VQ-VAE than {vqvae.values['name'] or 'the one given'}:\n{other}"
        )
    options = {k: v for k, v in part.options.items() if k.startswith("alignment_")}
    return found, hps.with_values("model set", **options) if options else hps


def load_prior(part: Part, vqvae: Resolved, level: int, device: str = "cpu") -> tuple[Prior, Resolved]:
    """The prior of a part, frozen, in eval mode, on its device, and its hyperparameters.

    vqvae: hyperparameters of the VQ-VAE it stands on. Raises CheckpointError when the two do not fit.
    """
    found, hps = prior_hps(part, vqvae, level)
    net = build.build_prior(hps)
    checkpoint.load_into(net, dict(found.model), build.prior_names(hps), source=str(found.path))
    return net.eval().requires_grad_(False).to(device), hps


def _hps_of(found: checkpoint.Checkpoint, part: Part) -> Resolved:
    if part.hps:
        return settings.from_presets(part.hps)
    if found.hps is None:
        raise CheckpointError(
            f"{found.path} carries no hyperparameters: name its presets with hps in a model-set file."
        )
    return settings.from_values(found.hps, f"checkpoint {found.path}")


def dtype_of(name: str) -> torch.dtype:
    """fp32, fp16 or bf16 as torch knows it."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
