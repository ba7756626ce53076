"""Checkpoints: THE reader and writer, and the way between published names on disk and clean names in memory.

A file is a torch dictionary {hps, model, opt, step, jukebox}. `model` and `opt` carry the published names and order;
what is ours alone (raw weights, averages, codebook sums, schedule, data position, digests) stands under `jukebox`.
A run folder holds `checkpoint_step_N.pth.tar` with a `.sha256` beside each, and `checkpoint_latest.pth.tar`, a second
name of the newest.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from jukebox import files, resources
from jukebox.errors import CheckpointError
from jukebox.interop.published import Entry
from jukebox.models import restricted

log = logging.getLogger(__name__)

FORMAT = 1
LATEST = "checkpoint_latest.pth.tar"


@dataclass(frozen=True)
class Checkpoint:
    """One file as read. Tensors are mapped from the file where its format allows: they take memory when copied."""

    path: Path
    model: dict[str, Tensor]  # by published name, in file order, without a leading `module.`
    hps: dict[str, Any] | None = None
    opt: dict[str, Any] | None = None  # torch's form: state by index in the published order of parameters, param_groups
    step: int = 0
    extra: dict[str, Any] = field(default_factory=dict)  # what `write` was given


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path | str, *, hps_hint: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint file, or the newest good one of a run folder.

    `hps_hint` stands in for the hyperparameters of a file that carries none (a preset's, for published files).
    Raises CheckpointError when the file is damaged, is no checkpoint, or holds more than tensors, numbers and text.
    """
    path = Path(path)
    path, tree = _newest(path) if path.is_dir() else (path, _verified(path))
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: not a checkpoint: holds a {type(tree).__name__} instead of a dictionary")
    model = tree.get("model") if "model" in tree else tree  # weights alone are a checkpoint too
    if not isinstance(model, dict) or not model or not all(isinstance(t, Tensor) for t in model.values()):
        if isinstance(tree.get("state_dict"), dict):
            raise CheckpointError(
                f"{path}: weights of an autoencoder from another program (`state_dict`), which need their config: name it "
                "with --model-config=FILE.json"
            )
        raise CheckpointError(f"{path}: not a checkpoint: no tensors under the key `model`")
    step, hps, opt = tree.get("step"), tree.get("hps"), tree.get("opt")
    ours = tree.get("jukebox")
    return Checkpoint(
        path=path,
        model={str(name).removeprefix("module."): tensor for name, tensor in model.items()},
        hps=hps if isinstance(hps, dict) else dict(hps_hint) if hps_hint is not None else None,
        opt=opt if isinstance(opt, dict) else None,
        step=int(step) if isinstance(step, int | float | Tensor) else 0,
        extra=ours.get("extra", {}) if isinstance(ours, dict) else {},
    )


def latest_valid(folder: Path | str) -> Path | None:
    """The file of the highest step that can be read, or None where there is no checkpoint at all.

    A damaged one is reported and the one before it taken. Raises CheckpointError when there are checkpoints but all
    are damaged: starting anew would in the end delete them.
    """
    return _newest(Path(folder))[0] if _candidates(Path(folder)) else None


def locate(path: Path | str) -> Path:
    """The checkpoint file meant by a file or a run folder; raises CheckpointError where a folder has none."""
    path = Path(path)
    return _newest(path)[0] if path.is_dir() else path


def sha256_of(path: Path | str) -> str:
    """SHA-256 of the file meant by a file or a run folder, as its manifest has it, else computed; "" where none is."""
    path = Path(path)
    file = next(iter(_candidates(path)), path) if path.is_dir() else path
    if not file.is_file():
        return ""
    manifest = _manifest(file)
    said = manifest.read_text(encoding="ascii", errors="replace").split(" ")[0].strip() if manifest.is_file() else ""
    return said or files.digest_file(file)


def _newest(folder: Path) -> tuple[Path, Any]:
    """The best file of a run folder and its contents. Raises CheckpointError."""
    candidates = _candidates(folder)
    for file in candidates:
        try:
            return file, _verified(file)
        except CheckpointError as error:
            log.warning("damaged checkpoint, falling back to the one before it: %s", error)
    if candidates:
        raise CheckpointError(
            f"{folder}: none of the {len(candidates)} checkpoints can be read; move them away or restore one"
        )
    raise CheckpointError(f"{folder}: this folder has no checkpoint_*.pth.tar; name a checkpoint file or a run folder")


def _candidates(folder: Path) -> list[Path]:
    """What may be read, best first. Published programs left only `latest`."""
    latest = folder / LATEST
    return [file for _, file in reversed(_step_files(folder))] + ([latest] if latest.exists() else [])


def _step_files(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of a run folder, by step; the clock of the file system has no say."""
    named = (
        (re.fullmatch(r"checkpoint_step_(\d+)\.pth\.tar", file.name), file) for file in folder.glob("checkpoint_step_*")
    )
    return sorted((int(match[1]), file) for match, file in named if match)


def _manifest(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


def _verified(path: Path) -> Any:
    """The contents of a file whose digests, inside it and beside it, match; files of others have none.

    Raises CheckpointError.
    """
    tree = restricted.load(path)
    ours = tree.get("jukebox") if isinstance(tree, dict) else None
    if isinstance(ours, dict) and isinstance(ours.get("crc32"), dict):
        if ours.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: written in format {ours.get('format')}, this version reads {FORMAT}; update it"
            )
        expected = ours["crc32"]
        found = restricted.digests(tree | {"jukebox": ours.get("extra")})
        for name in expected.keys() | found.keys():
            if expected.get(name) != found.get(name):
                old, new = (f"{d[name]:08x}" if name in d else "nothing" for d in (expected, found))
                raise CheckpointError(f"{path}: damaged at {files.printable(name)}: expected CRC-32 {old}, found {new}")
    manifest = _manifest(path)
    if manifest.is_file():
        expected_sha = manifest.read_text(encoding="ascii", errors="replace").split(" ")[0].strip()
        found_sha = files.digest_file(path)
        if expected_sha != found_sha:
            raise CheckpointError(
                f"{path}: damaged: expected SHA-256 {expected_sha[:12]}..., found {found_sha[:12]}..."
            )
    return tree


# ------------------------------------------------------------------------------------------------------------- writing


def write(
    folder: Path | str,
    step: int,
    *,
    hps: Mapping[str, Any],
    model: Mapping[str, Tensor],
    opt: Mapping[str, Any] | None,
    extra: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `checkpoint_step_<step>.pth.tar`, let `checkpoint_latest.pth.tar` name it, keep the newest `keep`.

    `model` in published names and order, `opt` from `opt_to_published`, `extra` a nested dictionary of tensors, numbers
    and text. Whole or not at all: an older file goes only after the new one was read back and its digests matched.
    Raises OutOfSpace, WriteFailed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"checkpoint_step_{step}.pth.tar"
    tree = _to_host({"hps": dict(hps), "model": dict(model), "opt": opt, "step": step, "jukebox": dict(extra)}, file)
    ours = {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "crc32": restricted.digests(tree),
        "extra": tree["jukebox"],
    }
    tree["jukebox"] = ours

    files.fault_point("checkpoint.before_write")
    cure = "Free space, or pass --keep=1 or another --local_logdir."
    files.check_space(folder, restricted.storage_bytes(tree) + 2**20, name=file.name, cure=cure)
    _manifest(file).unlink(missing_ok=True)  # the digest of an earlier file of this step must not accuse the new one

    def save(out: BinaryIO) -> None:
        torch.save(tree, out)

    sha = files.publish(file, save, digest=True)
    files.publish_text(_manifest(file), f"{sha}  {file.name}\n")
    _verified(file)
    files.fault_point("checkpoint.between_step_and_latest")
    files.link_or_copy(file, folder / LATEST)
    _prune(folder, step, keep)
    return file


def _prune(folder: Path, step: int, keep: int) -> None:
    """Delete the step files below the newest `keep`, and damaged ones above: a run fell back behind them."""
    present = _step_files(folder)
    older = [file for n, file in present if n < step]
    for file in older[: max(len(older) - (keep - 1), 0)] + [
        file for n, file in present if n > step and not _good(file)
    ]:
        files.fault_point("checkpoint.while_pruning")
        file.unlink(missing_ok=True)
        _manifest(file).unlink(missing_ok=True)


def _good(file: Path) -> bool:
    try:
        _verified(file)
    except CheckpointError:
        return False
    return True


def _to_host(tree: Any, file: Path) -> Any:
    """The tree with plain containers and tensors on the CPU, each owning its storage; tied ones stay tied."""
    moved: dict[tuple[Any, ...], Tensor] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: visit(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(visit(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        key = (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if key not in moved or not value.numel():
            host = value.detach().to("cpu").contiguous()
            whole = host.untyped_storage().nbytes() == host.numel() * host.element_size()
            moved[key] = host if whole else host.clone()
        return moved[key]

    return restricted.plain(visit(tree), str(file))


# --------------------------------------------------------------------------------------------------- names and modules


def load_into(
    module: nn.Module,
    published: dict[str, Tensor],
    table: Sequence[Entry],
    *,
    source: str = "",
    note: str = "",
    consume: bool = False,
) -> None:
    """Copy published tensors into a module; every one must be there, known, and of the module's shape.

    The module's types and devices stay; parameters on the meta device come to life on the CPU. `consume` empties
    `published` as it goes, so that a file read into memory is freed tensor by tensor. `source` names the file in
    messages, `note` ends them (say, a table of the hyperparameters that differ). Nothing is copied before all checks.
    """
    found = _by_table(published, table)
    owners = _owners(module)
    state = {name: owners[name][0] for name in owners}
    prefix = f"{source}: " if source else ""
    ending = f"\n{note}" if note else ""
    missing = [e.published for e in table if e.published not in found and not e.tied_to]
    known = set(found.values())
    unknown = [name for name in published if name not in known]
    if missing or unknown:
        parts = [f"lacks {len(missing)} tensors, first {missing[0]}"] if missing else []
        parts += [f"has {len(unknown)} that this net does not, first {files.printable(unknown[0])}"] if unknown else []
        raise CheckpointError(f"{prefix}belongs to another net: {' and '.join(parts)}{ending}")
    for entry in table:
        if entry.published in found:
            tensor = published[found[entry.published]]
            expected = tuple(state[entry.ours if entry.ours in state else entry.tied_to].shape)
            if tuple(tensor.shape) != expected:
                shape = tuple(tensor.shape)
                raise CheckpointError(
                    f"{prefix}{entry.published} has the shape {shape}, this net needs {expected}{ending}"
                )
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"{prefix}{entry.published} is {tensor.dtype}; weights are floating-point numbers"
                )
    _check_ties(published, found, table, state, prefix)
    consumed = 0
    with torch.no_grad():
        for entry in table:
            if entry.published in found and entry.ours in state:
                name = found[entry.published]
                _place(owners[entry.ours], published.pop(name) if consume else published[name])
                consumed += owners[entry.ours][0].nbytes if consume else 0
                if consumed > resources.RELEASE_BYTES:
                    consumed = 0
                    resources.release_freed()


def first_misfit(published: Mapping[str, Tensor], table: Sequence[Entry]) -> str:
    """The first tensor of a net that a file lacks or has in another shape, in a few words; empty when all fit."""
    found = _by_table(published, table)
    for entry in table:
        tensor = published.get(found.get(entry.published, ""))
        if tensor is None and not entry.tied_to:
            return f"{entry.published} is not there, this net needs {entry.shape}"
        if tensor is not None and tuple(tensor.shape) != entry.shape:
            return f"{entry.published} has the shape {tuple(tensor.shape)}, this net needs {entry.shape}"
    return ""


def published_state(module: nn.Module, table: Sequence[Entry]) -> dict[str, Tensor]:
    """The module's tensors by published name, in published order; tied ones twice, as the published files have them."""
    state = {name: tensor for name, (tensor, _) in _owners(module).items()}
    return {e.published: state[e.ours if e.ours in state else e.tied_to].detach() for e in table}


def own_state(module: nn.Module, table: Sequence[Entry]) -> dict[str, Tensor]:
    """The tensors of a module's state that have no published name (codebook sums and counts), by our names."""
    known = {e.ours for e in table}
    return {name: tensor.detach() for name, tensor in module.state_dict().items() if name not in known}


def load_own_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `own_state` gave; raises CheckpointError for a name or shape the module does not have."""
    target = module.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if name not in target or target[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{files.printable(name)} of shape {tuple(tensor.shape)} has no place in this net"
                )
            target[name].copy_(tensor)


def _by_table(published: Mapping[str, Tensor], table: Sequence[Entry]) -> dict[str, str]:
    """Published name of the table -> name in this file: some tensors were published under two names."""
    return {e.published: name for e in table for name in (e.published, *e.aliases) if name in published}


def _check_ties(
    published: Mapping[str, Tensor],
    found: Mapping[str, str],
    table: Sequence[Entry],
    state: Mapping[str, Tensor],
    prefix: str,
) -> None:
    """Where the net has one tensor under two published names, the file must hold it twice, equal."""
    by_ours = {e.ours: e for e in table}
    for entry in table:
        if not entry.tied_to or entry.published not in found:
            continue
        twin = by_ours[entry.tied_to]
        if not torch.equal(published[found[entry.published]], published[found[twin.published]]):
            raise CheckpointError(
                f"{prefix}{entry.published} differs from {twin.published}, which this net ties together "
                "(merged_decoder=True has them apart)"
            )


Owners = tuple[Tensor, list[tuple[nn.Module, str]]]


def _owners(module: nn.Module) -> dict[str, Owners]:
    """Each name of the state -> the tensor and every (module, attribute) that holds it, shared ones under all names."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    named: dict[str, Tensor] = {}
    for prefix, part in module.named_modules():
        skipped = part._non_persistent_buffers_set
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and name not in skipped:
                holders.setdefault(id(tensor), []).append((part, name))
                named[f"{prefix}.{name}" if prefix else name] = tensor
    return {name: (tensor, holders[id(tensor)]) for name, tensor in named.items()}


def _place(owner: Owners, value: Tensor) -> None:
    """Copy a value into a tensor of a module, or, on the meta device, put a real one in its place."""
    target, holders = owner
    if not target.is_meta:
        target.copy_(value)
        return
    real: Tensor = torch.empty(target.shape, dtype=target.dtype).copy_(value)
    if isinstance(target, nn.Parameter):
        real = nn.Parameter(real, requires_grad=target.requires_grad)
    for part, name in holders:
        setattr(part, name, real)


# ----------------------------------------------------------------------------------------------------- optimiser state


def opt_to_published(opt: Mapping[str, Any], names: Sequence[str], table: Sequence[Entry]) -> dict[str, Any]:
    """An optimiser's state_dict with parameters counted in the published order.

    `names`: our parameter names in the optimiser's own order (`[n for n, _ in module.named_parameters()]`).
    """
    position = {e.ours: i for i, e in enumerate(e for e in table if e.parameter)}
    return _renumbered(opt, [position[name] for name in names])


def opt_from_published(opt: Mapping[str, Any], names: Sequence[str], table: Sequence[Entry]) -> dict[str, Any]:
    """The reverse of `opt_to_published`; raises CheckpointError when the file counts other parameters."""
    published = [e.ours for e in table if e.parameter]
    listed = [i for group in opt.get("param_groups", []) for i in group.get("params", [])]
    if sorted(listed) != list(range(len(published))) or set(opt.get("state", {})) - set(listed):
        raise CheckpointError(
            f"the optimiser state counts {len(listed)} parameters, this net has {len(published)}; "
            "restore the weights alone (a file without `opt`) or train with the hyperparameters of that file"
        )
    position = {name: i for i, name in enumerate(names)}
    return _renumbered(opt, [position[name] for name in published])


def _renumbered(opt: Mapping[str, Any], new_index: Sequence[int]) -> dict[str, Any]:
    state = {new_index[i]: entry for i, entry in opt["state"].items()}
    groups = [{**group, "params": sorted(new_index[i] for i in group["params"])} for group in opt["param_groups"]]
    return {"state": dict(sorted(state.items())), "param_groups": groups}


# ------------------------------------------------------------------------------------------------------ other settings


def differing_keys(checkpoint: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> str:
    """A table of the keys whose values differ between a checkpoint and the command line; empty when none does."""

    def same(a: Any, b: Any) -> bool:
        return (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b)

    rows = [(key, checkpoint[key], now[key]) for key in keys if key in checkpoint and key in now]
    lines = [f"  {key}: {old!r} in the checkpoint / {new!r} asked for" for key, old, new in rows if not same(old, new)]
    return "\n".join(lines)
