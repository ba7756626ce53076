"""Weights from one layout to another: as published in 2020, safetensors, the Hugging Face port, and runs of ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jukebox import files, settings
from jukebox.errors import CheckpointError, UsageError
from jukebox.hparams import presets
from jukebox.hparams.resolve import Resolved
from jukebox.interop import huggingface
from jukebox.interop.published import Entry
from jukebox.models import build, checkpoint, model_set
from jukebox.models.checkpoint import Checkpoint
from jukebox.models.hps import ExportHps
from jukebox.models.model_set import Part
from jukebox.models.port import is_port

log = logging.getLogger(__name__)

SMALL = 4096
"""Tensors of at most so many numbers stay in 16 bits where the large ones go to 8."""
PLACES = {
    *("name", "local_logdir", "audio_files_dir", "metadata", "codes", "ids_dir", "restore_vqvae", "restore_prior"),
}
"""Settings that say where things are on a machine."""


@dataclass(frozen=True)
class Net:
    """One net as read: level None is the VQ-VAE; tensors by published name, in published order, none missing."""

    level: int | None
    hps: Resolved
    table: Sequence[Entry]
    tensors: dict[str, Tensor]
    found: Checkpoint

    @property
    def name(self) -> str:
        """What the published files are called."""
        return "vqvae" if self.level is None else f"prior_level_{self.level}"


def main(hps: Resolved) -> int:
    """Convert what the settings of `export` name; the exit code."""
    asked = hps.section(ExportHps)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not asked.source or not asked.out:
        raise UsageError(
            "Name what is exported and where to: python jukebox/export.py logs/small_prior --to=safetensors"
            " --out=small_prior.safetensors"
        )
    for path in export(asked):
        print(path)
    return 0


def export(asked: ExportHps) -> list[Path]:
    """Write every net of the source in the layout asked for; the files or folders. Raises UserError."""
    nets = read(asked.source, asked.presets)
    out = Path(asked.out)
    if asked.to == "huggingface":
        return [_write_port(nets, out)]
    writers = {"published": _write_published, "safetensors": _write_safetensors, "run": _write_run}
    endings = {"published": ".pth.tar", "safetensors": ".safetensors", "run": ""}
    alone = len(nets) == 1
    targets = [out if alone else out / f"{net.name}{endings[asked.to]}" for net in nets]
    for net, target in zip(nets, targets, strict=True):
        files.make_folder(target.parent, cure="Choose another --out.")
        net = _halved(net) if asked.half else net
        writers[asked.to](_in_8_bits(net) if asked.float8 else net, target, asked)
    return targets


def read(source: str, preset_names: str = "") -> list[Net]:
    """The nets of a checkpoint, a run, a model set or a folder of the port. Raises UserError."""
    path = Path(source)
    is_set = presets.find_model_set(source) is not None or source.endswith(".toml") or "," in source
    if is_set or (path.is_dir() and is_port(path)):
        models = model_set.find(source)
        vqvae = _net(models.vqvae, None, None)
        return [vqvae, *(_net(part, level, vqvae.hps) for level, part in models.parts.items() if level is not None)]
    return [_single(Part(source, preset_names))]


def _single(part: Part) -> Net:
    found = checkpoint.read(model_set.locate(part))
    hps = settings.from_presets(part.hps) if part.hps else model_set.hps_of(found)
    is_prior = any(name.startswith("prior.") for name in found.model)
    level = int(str(hps.values["level"])) if is_prior else None
    return _checked(level, hps, found)


def _net(part: Part, level: int | None, vqvae: Resolved | None) -> Net:
    if vqvae is None or level is None:
        hps = settings.from_presets(part.hps) if part.hps else model_set.hps_of(checkpoint.read(model_set.locate(part)))
    else:
        hps = model_set.prior_hps(part, vqvae, level)
    return _checked(level, hps, model_set.read_part(part, hps, level, int(str(hps.values["levels"]))))


def _checked(level: int | None, hps: Resolved, found: Checkpoint) -> Net:
    """The tensors in order, each of its shape. Raises CheckpointError."""
    table = build.vqvae_names(hps) if level is None else build.prior_names(hps)
    by_ours = {entry.ours: entry.published for entry in table}
    tensors: dict[str, Tensor] = {}
    for entry in table:
        names = [name for name in (entry.published, *entry.aliases) if name in found.model]
        if not names and not entry.tied_to:
            raise CheckpointError(f"{found.path}: lacks {entry.published}; are these its hyperparameters?")
        tensor = found.model[names[0]] if names else tensors[by_ours[entry.tied_to]]
        if tuple(tensor.shape) != entry.shape:
            raise CheckpointError(
                f"{found.path}: {entry.published} has the shape {tuple(tensor.shape)}, not {entry.shape}; are these its "
                "hyperparameters?"
            )
        tensors[entry.published] = tensors[by_ours[entry.tied_to]] if entry.tied_to else tensor
    known = {name for entry in table for name in (entry.published, *entry.aliases)}
    if unknown := [name for name in found.model if name not in known]:
        raise CheckpointError(f"{found.path}: has {files.printable(unknown[0])}, which this net has not")
    return Net(level, hps, table, tensors, found)


def _halved(net: Net) -> Net:
    half = {entry.published for entry in net.table if entry.half_ok}
    tensors = {name: tensor.half() if name in half else tensor for name, tensor in net.tensors.items()}
    return Net(net.level, net.hps.with_values("--half", fp16_params=True), net.table, tensors, net.found)


def _in_8_bits(net: Net) -> Net:
    """Matrices, filters and tables as 8 bit floats (4 of exponent, 3 of mantissa): 2.7 % of rounding on each weight."""
    tensors = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.ndim > 1 and tensor.numel() > SMALL else tensor.half()
        for name, tensor in net.tensors.items()
    }
    return Net(net.level, net.hps, net.table, tensors, net.found)


def _write_published(net: Net, path: Path, asked: ExportHps) -> None:
    prefix = "module." if asked.module else ""
    model = {prefix + name: tensor for name, tensor in net.tensors.items()}
    tree = {"hps": dict(net.hps.values), "model": model, "opt": net.found.opt, "step": net.found.step}
    files.publish(path, lambda out: torch.save(tree, out))


def _write_safetensors(net: Net, path: Path, asked: ExportHps) -> None:
    """Tied tensors once; hyperparameters and step as text beside the tensors.

    What is handed on does not say where things are on the machine that trained it.
    """
    tied = {entry.published for entry in net.table if entry.tied_to}
    hps = {name: value for name, value in net.hps.values.items() if not (asked.float8 and name in PLACES)}
    text = json.dumps({"hps": hps, "step": net.found.step})
    _save(path, {name: tensor for name, tensor in net.tensors.items() if name not in tied}, {"jukebox": text})


def _write_run(net: Net, folder: Path, asked: ExportHps) -> None:
    hps, found = dict(net.hps.values), net.found
    checkpoint.write(folder, found.step, hps=hps, model=net.tensors, opt=found.opt, extra=found.extra)


def _write_port(nets: Sequence[Net], folder: Path) -> Path:
    """All nets in one file, under the port's names; its config.json is not written: the port's own are not trusted."""
    vqvae = nets[0]
    levels = int(str(vqvae.hps.values["levels"]))
    missing = sorted({None, *range(levels)} - {net.level for net in nets}, key=str)
    if missing:
        what = "the VQ-VAE" if missing[-1] is None else f"a prior of level {missing[0]}"
        raise UsageError(
            f"--to=huggingface holds a whole model set; {what} is missing. Name a set, or all runs by comma."
        )
    named: dict[str, Tensor] = {}
    for net in nets:
        prefix = huggingface.prefix_of(net.level, levels)
        tied = {entry.published for entry in net.table if entry.tied_to}
        for theirs, published in huggingface.to_published(net.table, prefix).items():
            if published not in tied:
                named[theirs] = net.tensors[published]
    files.make_folder(folder, cure="Choose another --out.")
    _save(folder / "model.safetensors", named, {"format": "pt"})
    return folder / "model.safetensors"


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with files.publish_path(path) as temp:
        temp.touch()
        mode = temp.stat().st_mode  # as the user has it; safetensors would leave a file that only its owner can read
        save_file(whole, temp, metadata)
        temp.chmod(mode)
