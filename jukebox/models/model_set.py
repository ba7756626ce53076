"""Which VQ-VAE, upsamplers and top prior sing together, and how they are read: what `--model=` means."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from jukebox import settings
from jukebox.data.hps import AudioHps
from jukebox.errors import CheckpointError, UsageError
from jukebox.hparams import presets
from jukebox.hparams.resolve import Resolved, keys_of
from jukebox.interop.published import Entry
from jukebox.labels.ids import PORT
from jukebox.models import build, checkpoint, found_head
from jukebox.models.codec import VQVAECodec
from jukebox.models.port import Port, is_port
from jukebox.prior.model import Prior
from jukebox.resources import size_text
from jukebox.vqvae.hps import VQVAEHps
from jukebox.weights import catalogue

log = logging.getLogger(__name__)

_OPTIONS: dict[str, tuple[type, float]] = {  # how a part is sampled: kind of number, the least one
    "temp": (float, 0), "top_k": (int, 0), "top_p": (float, 0), "min_p": (float, 0), "chunk_size": (int, 1),
    "max_batch_size": (int, 1), **dict.fromkeys(found_head.KEYS, (int, 0)), found_head.SCORE: (float, -math.inf),
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One net of a set: a checkpoint (file, run folder or published address), the presets that shape it where the file
    does not say, and how it is sampled."""

    checkpoint: str
    hps: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSet:
    """A VQ-VAE and its priors; priors[level], None where that level has none. ids: addresses of its id tables;
    huggingface: repository that holds the same nets in the port's layout; file: where the set is written, if it is;
    song_sec: how long its songs are where nobody says so, None = as the program has it."""

    name: str
    vqvae: Part
    priors: tuple[Part | None, ...]
    licence: str = ""
    ids: tuple[str, ...] = ()
    huggingface: str = ""
    file: Path | None = None
    song_sec: float | None = None

    @property
    def parts(self) -> dict[int | None, Part]:
        """Every net by its level; None is the VQ-VAE."""
        return {None: self.vqvae} | {level: part for level, part in enumerate(self.priors) if part is not None}


def find(model: str, restore_vqvae: str = "") -> ModelSet:
    """The set that a `--model` value means: a name, a file, a folder of the Hugging Face port, or runs by comma.

    Raises UsageError when there is no such set, file or run, CheckpointError when weights of it are not here.
    """
    if not model:
        raise UsageError(
            f"--model is missing: name a model set ({', '.join(presets.model_sets())}), a model-set file, or runs by "
            "comma, for example --model=logs/top,logs/up1,logs/up0."
        )
    file = presets.find_model_set(model) or (Path(model) if model.endswith(".toml") else None)
    if file:
        found = _ported_if_only_so(_from_file(file))
    elif Path(model).is_dir() and is_port(model):
        found = _recognised(Path(model))
    else:
        found = _from_runs([part.strip() for part in model.split(",") if part.strip()])
    if restore_vqvae:
        found = replace(found, vqvae=Part(restore_vqvae))
    _check_here(found)
    return found


def _from_file(path: Path) -> ModelSet:
    table = presets.read_model_set(path)

    def part(entry: dict[str, Any]) -> Part:
        unknown = set(entry) - {"hps", "checkpoint", *_OPTIONS}
        if unknown or "checkpoint" not in entry:
            what = f"unknown key {sorted(unknown)[0]!r}" if unknown else "no checkpoint"
            raise UsageError(f"{path}: {what} in a part; allowed: hps, checkpoint, {', '.join(_OPTIONS)}.")
        for name in _OPTIONS.keys() & entry.keys():
            kind, least = _OPTIONS[name]
            if type(entry[name]) not in (int, kind) or not entry[name] >= least or (name == "temp" and not entry[name]):
                what = "a whole number" if kind is int else "a number"
                above = "above 0" if name == "temp" else f"from {least} up"
                raise UsageError(f"{path}: {name} = {entry[name]!r:.60} should be {what} {above}.")
        where = str(entry["checkpoint"])
        if "://" not in where and not Path(where).is_absolute() and (path.parent / where).exists():
            where = str(path.parent / where)
        return Part(where, entry.get("hps", ""), {k: entry[k] for k in _OPTIONS if k in entry})

    priors = tuple(part(entry) if entry.get("checkpoint", "") != "" else None for entry in table.get("priors", []))
    return ModelSet(
        path.stem, part(table["vqvae"]), priors, str(table.get("licence", "")), tuple(table.get("ids", ())),
        str(table.get("huggingface", "")), path, table.get("sample_length_in_seconds"),
    )  # fmt: skip


def _ported_if_only_so(models: ModelSet) -> ModelSet:
    """The set with its nets taken from the fetched port where the published files are not all here."""
    if not models.huggingface or all(_is_here(part) for part in models.parts.values()):
        return models
    _, folder = catalogue.hub_folder(models.name)
    return _in_folder(models, folder) if is_port(folder) else models


def _in_folder(models: ModelSet, folder: Path) -> ModelSet:
    def moved(part: Part) -> Part:
        return replace(part, checkpoint=str(folder))

    return replace(models, vqvae=moved(models.vqvae), priors=tuple(part and moved(part) for part in models.priors))


def _recognised(folder: Path) -> ModelSet:
    """The set whose nets a folder of the port holds, by the shapes of its tensors; its configuration is not trusted."""
    port = Port(folder)
    for name in presets.model_sets():
        file = presets.find_model_set(name)
        models = _from_file(file) if file else None
        if models is None or not all(part.hps for part in models.parts.values()):
            continue
        levels = len(models.priors)
        if all(port.matches(_names(models, level), level, levels) for level in models.parts):
            return replace(_in_folder(models, folder), file=None)
    raise CheckpointError(f"{folder}: these weights are of none of the model sets {', '.join(presets.model_sets())}.")


def _names(models: ModelSet, level: int | None) -> list[Entry]:
    """The table of names of a part that presets describe."""
    vqvae = settings.from_presets(models.vqvae.hps)
    if level is None:
        return build.vqvae_names(vqvae)
    part = models.parts[level]
    return build.prior_names(settings.from_presets(part.hps).with_values(part.hps, **_on(vqvae, level)))


def _on(vqvae: Resolved, level: int) -> dict[str, Any]:
    """What a prior's presets leave open: the VQ-VAE it stands on, and its level."""
    return {**vqvae_values(vqvae), "level": level, "prior": True}


def _by_name(run: str) -> str:
    """A run's folder, also where only its name below logs/ is given."""
    named = Path("logs") / run
    return str(named) if not Path(run).exists() and named.is_dir() else run


def _from_runs(paths: list[str]) -> ModelSet:
    vqvae: Part | None = None
    priors: dict[int, Part] = {}
    for path in map(_by_name, paths):
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


def _path(part: Part) -> Path:
    """Where a part is, or would be."""
    where = part.checkpoint
    return catalogue.local_path(where) if "://" in where else Path(where).expanduser()


def _is_here(part: Part) -> bool:
    return _path(part).exists()


def locate(part: Part) -> Path:
    """The local file or folder of a part. Raises CheckpointError saying what to fetch and where to put it by hand."""
    path = _path(part)
    if path.exists():
        return path
    if "://" not in part.checkpoint:
        raise CheckpointError(f"{path}: no such checkpoint or run folder.")
    command = catalogue.how_to_fetch(part.checkpoint)
    raise CheckpointError(
        f"The published weights {part.checkpoint} are not here. "
        + (f"Fetch them with `{command}`, or put" if command else "Put")
        + f" the file at {path}. They are for non-commercial use only (NOTICE-weights.md)."
    )


def checkpoint_digests(models: ModelSet) -> dict[str, str]:
    """The first twelve digits of the SHA-256 of each file of a set; nothing for folders of the port."""
    names = {level: "VQ-VAE checkpoint" if level is None else f"prior {level} checkpoint" for level in models.parts}
    found = {names[level]: checkpoint.sha256_of(locate(part))[:12] for level, part in models.parts.items()}
    return {name: digest for name, digest in found.items() if digest}


def _check_here(models: ModelSet) -> None:
    """Raises CheckpointError listing everything of a set that is missing: address, size, place."""
    absent = {level: part for level, part in models.parts.items() if not _is_here(part)}
    if not absent:
        return
    if any("://" not in part.checkpoint for part in absent.values()):
        for part in absent.values():
            locate(part)
    rows, total = [], 0
    for level, part in absent.items():
        stored = _stored_bytes(_names(models, level), part) if part.hps and models.vqvae.hps else 0
        total += stored
        size = f", about {size_text(stored)}" if stored else ""
        rows.append(f"  {part.checkpoint}{size}\n    to {_path(part)}")
    port = f", or with --source=huggingface from {models.huggingface}" if models.huggingface else ""
    raise CheckpointError(
        f"--model={models.name}: {len(absent)} of its {len(models.parts)} files are not here. Fetch them with\n"
        f"  python jukebox/fetch.py {models.name}\n(about {size_text(total)}{port}), or put them there by hand:\n"
        + "\n".join(rows)
        + (f"\nLicence: {models.licence}" if models.licence else "")
    )


def _stored_bytes(table: list[Entry], part: Part) -> int:
    half = bool(settings.from_presets(part.hps).values["fp16_params"])
    return sum(math.prod(e.shape) * (2 if half and e.half_ok else 4) for e in table if not e.tied_to)


def ids_dir_of(models: ModelSet, hps: Resolved) -> str:
    """The folder of the id tables that a prior was made with; empty = the shipped one.

    Raises CheckpointError when the set names tables to fetch that are not here.
    """
    if models.ids:
        folder = catalogue.ids_folder()
        version = "v3" if hps.values["labels_v3"] else "v2"
        absent = [
            url for url in models.ids if f"/{version}_" in url and not (folder / url.rpartition("/")[2]).is_file()
        ]
        port = Path(models.vqvae.checkpoint)
        if absent and is_port(port) and all((port / PORT[kind]).is_file() for kind in ("artist", "genre")):
            return str(port)
        if absent:
            shown = "\n".join(f"  {url}" for url in absent)
            raise CheckpointError(
                f"--model={models.name}: the id tables it was trained with are not here. Fetch them with\n"
                f"  python jukebox/fetch.py {models.name}\nor put them into {folder} by hand, or name their folder with "
                f"--ids_dir:\n{shown}"
            )
        return str(folder)
    own = str(hps.values.get("ids_dir") or "")
    return own if own and Path(own).is_dir() else ""


SHAPING = (
    "levels", "downs_t", "strides_t", "hvqvae_multipliers", "emb_width", "width", "depth", "m_conv", "l_bins", "sr",
    "dilation_growth_rate", "dilation_cycle", "vqvae_reverse_decoder_dilation", "use_bottleneck",
)  # fmt: skip
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


def read_part(part: Part, hps: Resolved | None, level: int | None, levels: int) -> checkpoint.Checkpoint:
    """The tensors of a part under their published names. hps: what shapes it, where that is known before reading."""
    path = locate(part)
    if not is_port(path):
        return checkpoint.read(path)
    if hps is None:
        raise CheckpointError(
            f"{path}: weights of the Hugging Face port; name their presets with hps in a model-set file."
        )
    return Port(path).read(build.vqvae_names(hps) if level is None else build.prior_names(hps), level, levels)


def _note(found: checkpoint.Checkpoint, hps: Resolved, names: Sequence[str]) -> str:
    """For messages: in which keys a checkpoint differs from what its net was built from."""
    return checkpoint.differing_keys(found.hps or {}, hps.values, names)


def load_vqvae(part: Part, device: str = "cpu") -> tuple[VQVAECodec, Resolved]:
    """The VQ-VAE of a part and its hyperparameters. Raises CheckpointError when they do not fit."""
    hps = settings.from_presets(part.hps) if part.hps else None
    found = read_part(part, hps, None, hps.section(VQVAEHps).levels if hps else 0)
    hps = hps or hps_of(found)
    if hps.values["prior"]:
        raise CheckpointError(f"{found.path} is a prior, not a VQ-VAE. Name its VQ-VAE with --restore_vqvae.")
    net = build.build_vqvae(hps)
    checkpoint.load_into(
        net, found.model, build.vqvae_names(hps), source=str(found.path), note=_note(found, hps, SHAPING), consume=True
    )
    for level in range(net.levels if net.use_bottleneck else 0):
        net.codebook(level).ready.fill_(True)
    return VQVAECodec(net.to(device), hps.section(AudioHps).sr), hps


def prior_hps(part: Part, vqvae: Resolved, level: int) -> Resolved:
    """The hyperparameters of a prior on this VQ-VAE; no net is built, and a published file is not read.

    Raises CheckpointError when the file is not a prior of this level, or stands on another VQ-VAE.
    """
    return _described(part, vqvae, level)[0]


def _described(part: Part, vqvae: Resolved, level: int) -> tuple[Resolved, checkpoint.Checkpoint | None]:
    """The hyperparameters of a prior, and its file where they had to be read from there."""
    options = {name: value for name, value in part.options.items() if name in found_head.KEYS}
    if part.hps:
        hps = settings.from_presets(part.hps).with_values(str(part.checkpoint), **_on(vqvae, level))
        return _aligned(hps, part, level).with_values("model set", **options), None
    found = checkpoint.read(locate(part))
    hps = hps_of(found)
    if not hps.values["prior"]:
        raise CheckpointError(f"{found.path} is a VQ-VAE, not a prior.")
    if hps.values["level"] != level:
        raise CheckpointError(f"{found.path} is a prior of level {hps.values['level']}, not {level}.")
    other = differing(vqvae_values(hps), vqvae_values(vqvae))
    if other:
        raise CheckpointError(
            f"{found.path} stands on another VQ-VAE than {vqvae.values['name'] or 'the one given'}:\n{other}"
        )
    return _aligned(hps, part, level).with_values("model set", **options), found


def _aligned(hps: Resolved, part: Part, level: int) -> Resolved:
    """With the alignment head that was found for a prior, where one is written beside it."""
    path = _path(part)
    return hps.with_values(str(path), **found_head.read(path, level))


def remember_head(models: ModelSet, level: int, values: Mapping[str, Any]) -> Path:
    """Write down the alignment head that was found for a prior, so that this set is sampled with it; where it stands.

    values: `alignment_layer`, `alignment_head` and `alignment_score`. Raises UsageError, WriteFailed.
    """
    if models.file is not None:
        return found_head.write_into(models.file, level, values)
    return found_head.write_beside(locate(models.parts[level]), level, values)


def load_prior(part: Part, vqvae: Resolved, level: int, device: str = "cpu") -> tuple[Prior, Resolved]:
    """The prior of a part, frozen, in eval mode, on its device, and its hyperparameters.

    vqvae: hyperparameters of the VQ-VAE it stands on. The net is built without memory and comes to life tensor by
    tensor, so that file and net are never in memory both; matrices of a net with `fp16_params` stay half until they are
    packed. Raises CheckpointError when the two do not fit.
    """
    hps, found = _described(part, vqvae, level)
    if found is None:
        found = read_part(part, hps, level, hps.section(VQVAEHps).levels)
    with torch.device("meta"):
        net = build.build_prior(hps)
    table, note = build.prior_names(hps), _note(found, hps, PRIOR_SHAPING)
    if hps.values["fp16_params"]:
        build.halve(net, table)
    checkpoint.load_into(net, found.model, table, source=str(found.path), note=note, consume=True)
    return net.eval().requires_grad_(False).to(device), hps


def hps_of(found: checkpoint.Checkpoint) -> Resolved:
    if found.hps is None:
        raise CheckpointError(
            f"{found.path} carries no hyperparameters: name its presets with hps in a model-set file."
        )
    return settings.from_values(found.hps, f"checkpoint {found.path}")
