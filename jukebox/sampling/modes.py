"""The four ways to begin: from nothing, from codes, only downwards, or from a recording. Each returns a Plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jukebox import files
from jukebox.audio import io
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.store import CodeStore
from jukebox.errors import CheckpointError, DataError, UsageError
from jukebox.models import restricted
from jukebox.models.codec import Codec
from jukebox.sampling import lineage
from jukebox.sampling.levels import Codes

Given = dict[int, Codes]  # codes of each level that an item begins with


@dataclass(frozen=True)
class Plan:
    """What is given and which levels are sampled, highest first. given: one entry per item, by level."""

    levels: tuple[int, ...]
    given: tuple[Given, ...]


def ancestral(levels: Sequence[int], n_samples: int) -> Plan:
    """Everything from nothing."""
    return Plan(tuple(sorted(levels, reverse=True)), tuple({} for _ in range(n_samples)))


def continued(levels: Sequence[int], saved: Sequence[Given], geometry: Geometry, prompt_samples: int | None) -> Plan:
    """Go on from saved codes on all levels; with prompt_samples, from their beginning only.

    Raises UsageError when the prompt is longer than what was saved.
    """
    return Plan(tuple(sorted(levels, reverse=True)), tuple(_cut(given, geometry, prompt_samples) for given in saved))


def upsampled(
    levels: Sequence[int], saved: Sequence[Given], geometry: Geometry, prompt_samples: int | None, length_samples: int
) -> Plan:
    """Keep the saved codes of the highest level they have, sample the levels below anew.

    Raises UsageError when the length asked for is longer than those codes.
    """
    given = [_cut(item, geometry, prompt_samples) for item in saved]
    highest = max((level for item in given for level in item if len(item[level])), default=-1)
    below = [level for level in levels if level < highest]
    if not below:
        raise UsageError(
            "--mode=upsample: the saved codes have no level above those of the model; nothing to upsample."
        )
    needed = length_samples // geometry.hops[highest]
    shortest = min(len(item.get(highest, ())) for item in given)
    if shortest < needed:
        have = shortest * geometry.hops[highest] / geometry.sr_hz
        raise UsageError(
            f"--mode=upsample: {length_samples / geometry.sr_hz:.2f} s asked for, but the saved codes of level {highest} "
            f"end after {have:.2f} s. Give --sample_length_in_seconds={have:.2f} at most, or --mode=continue first."
        )
    kept = tuple({highest: item[highest][:needed]} for item in given)
    return Plan(tuple(sorted(below, reverse=True)), kept)


def primed(levels: Sequence[int], files: Sequence[str], codec: Codec, prompt_sec: float, n_samples: int) -> Plan:
    """Go on from recordings: the first prompt_sec of each file, files by turns. Raises as `prompt`."""
    encoded = {name: prompt(name, codec, prompt_sec) for name in dict.fromkeys(files)}
    turns = [files[i % len(files)] for i in range(n_samples)]
    return Plan(tuple(sorted(levels, reverse=True)), tuple(dict(encoded[name]) for name in turns))


def prompt(file: str, codec: Codec, prompt_sec: float) -> Given:
    """Codes of the first prompt_sec of a recording, rounded down to whole top codes.

    Raises UsageError when that is less than one top code, DataError when the recording is shorter.
    """
    geometry = codec.geometry
    length = int(prompt_sec * geometry.sr_hz) // geometry.top_hop * geometry.top_hop
    if not length:
        raise UsageError(f"--prompt_length_in_seconds={prompt_sec:g} is less than one code of the top level.")
    has_sec = io.probe(file).length_sec  # 0 if the header does not tell
    if 0 < has_sec < length / geometry.sr_hz:
        raise DataError(
            f"--audio_file={file} has {has_sec:.2f} s, less than --prompt_length_in_seconds={prompt_sec:g}. Give a longer "
            "recording or a shorter prompt."
        )
    return codec.encode(io.read(file, sr_hz=geometry.sr_hz, channels=2, length_samples=length).mean(axis=1))


def _cut(given: Given, geometry: Geometry, prompt_samples: int | None) -> Given:
    if prompt_samples is None:
        return dict(given)
    length = prompt_samples // geometry.top_hop * geometry.top_hop
    top = max(given)
    if len(given[top]) * geometry.hops[top] < length:
        have = len(given[top]) * geometry.hops[top] / geometry.sr_hz
        raise UsageError(f"--prompt_length_in_seconds: the saved codes end after {have:.2f} s.")
    return {level: codes[: length // geometry.hops[level]] for level, codes in given.items()}


def load_codes(where: str, geometry: Geometry, fingerprint: str) -> list[Given]:
    """Saved codes of `--codes_file`: a data.pth.tar, a store or a run that holds one, or items of it as STORE:3,5.

    Raises UsageError when there is nothing there, CheckpointError or StoreError when it is not what it should be.
    """
    path, items = lineage.split(where)
    if path.is_dir():
        store = CodeStore.open(path, expect_fingerprint=fingerprint, expect_geometry=geometry)
        places = [store.find(item) for item in items] if items else range(len(store))
        return [{level: _whole(store, level, i) for level in store.levels} for i in places]
    if not path.is_file() or items:
        raise UsageError(f"--codes_file={where}: there is no such file, and no store of codes of that name.")
    tree = restricted.load(path)
    zs = tree.get("zs") if isinstance(tree, Mapping) else tree
    if not isinstance(zs, list | tuple) or not all(isinstance(z, torch.Tensor) and z.dim() == 2 for z in zs):
        raise CheckpointError(f"--codes_file={path}: not saved codes: no list `zs` of tensors [songs, codes].")
    if len(zs) != len(geometry.hops):
        raise CheckpointError(f"--codes_file={path} has {len(zs)} levels, the model has {len(geometry.hops)}.")
    return _rows(zs, geometry, str(path))


def save_codes(path: Path, songs: Sequence[Given], levels: int) -> None:
    """Write codes as a list of tensors `[songs, N]`, one per level, as `load_codes` reads them.

    Raises DataError when the songs have not equally many codes.
    """
    zs = []
    for level in range(levels):
        rows = [song.get(level, np.zeros(0, np.int64)) for song in songs]
        if len({len(row) for row in rows}) != 1:
            raise DataError(f"{path}: the songs have not equally many codes of level {level}; save them one by one.")
        zs.append(torch.from_numpy(np.stack(rows)))
    files.publish(path, lambda out: torch.save(zs, out))


def _whole(store: CodeStore, level: int, i: int) -> Codes:
    """Codes of an item that stand for real samples, without the padding of the last one."""
    whole = int(store.lengths[i]) // store.geometry.top_hop * store.geometry.top_hop
    return store.codes(level, i, 0, whole // store.geometry.hops[level])


def _rows(zs: Sequence[torch.Tensor], geometry: Geometry, path: str) -> list[Given]:
    n = max(len(z) for z in zs)
    found: list[Given] = [{} for _ in range(n)]
    for level, z in enumerate(zs):
        if not z.numel():
            continue
        if z.dtype.is_floating_point or int(z.min()) < 0 or int(z.max()) >= geometry.bins:
            raise CheckpointError(f"--codes_file={path}: level {level} holds values outside 0 ... {geometry.bins - 1}.")
        for item, row in enumerate(z.long().cpu().numpy()):
            found[item][level] = row
    return found
