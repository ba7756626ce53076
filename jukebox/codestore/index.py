"""What is in a store, item by item: made from the items on disk, kept in one file, opened fast.

The first opening hashes index.jsonl and checks that every array is there in its recorded size. Then the numbers are
kept in a small binary cache, good for as long as the digest, the size and time of index.jsonl and the time of every
shard folder stay the same; nothing depends on it, and a store on a read-only disk is opened the long way every time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox import files
from jukebox.codestore import layout
from jukebox.codestore.arrays import check_header, open_regular, read_header
from jukebox.codestore.layout import Plan
from jukebox.errors import StoreError, WriteFailed

log = logging.getLogger(__name__)
CACHE = ".index-cache"


@dataclass(frozen=True)
class Row:
    """One line of index.jsonl; the lists have one entry per level kept. `skipped` is the reason when not encoded."""

    relpath: str
    length_samples: int = 0
    frames: tuple[int, ...] = ()
    npy_bytes: tuple[int, ...] = ()
    npy_sha256: tuple[str, ...] = ()
    json_sha256: tuple[str, ...] = ()
    skipped: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a line."""
        if self.skipped:
            return {"relpath": self.relpath, "skipped": self.skipped}
        return {
            "relpath": self.relpath,
            "length_samples": self.length_samples,
            "frames": self.frames,
            "npy_bytes": self.npy_bytes,
            "npy_sha256": self.npy_sha256,
            "json_sha256": self.json_sha256,
        }

    @classmethod
    def from_json(cls, data: Any, plan: Plan) -> Row:
        """The reverse of `to_json`; raises StoreError on anything else."""
        if not isinstance(data, dict) or not isinstance(data.get("relpath"), str):
            raise StoreError("is not a line of an index")
        if "skipped" in data:
            return cls(relpath=data["relpath"], skipped=str(data["skipped"]) or "skipped")
        lists: dict[str, tuple[Any, ...]] = {}
        for name, kind in (("frames", int), ("npy_bytes", int), ("npy_sha256", str), ("json_sha256", str)):
            values = data.get(name)
            if not isinstance(values, list) or len(values) != len(plan.levels):
                raise StoreError(f"{name} must have {len(plan.levels)} entries, one per level")
            if any(not isinstance(value, kind) or isinstance(value, bool) for value in values):
                raise StoreError(f"{name} must hold values of type {kind.__name__}")
            if kind is int and not all(0 <= value < 2**62 for value in values):
                raise StoreError(f"{name} holds impossible numbers")
            lists[name] = tuple(values)
        length = layout.length_in_samples(data.get("length_samples"))
        return cls(
            data["relpath"], length, lists["frames"], lists["npy_bytes"], lists["npy_sha256"], lists["json_sha256"]
        )


def shard_folders(root: Path, plan: Plan) -> list[Path]:
    """All folders that hold items."""
    return [plan.level_folder(root, level) / str(shard) for level in plan.levels for shard in range(plan.shards)]


def finished_items(root: Path, plan: Plan) -> set[int]:
    """Items whose array and metadata are published on every level, and those skipped with a reason."""
    per_level = [
        set().union(*(_complete(plan, plan.level_folder(root, level) / str(shard)) for shard in range(plan.shards)))
        for level in plan.levels
    ]
    return set.intersection(*per_level) | _numbered(plan, _stems(root / layout.SKIPPED, ".json"))


def _complete(plan: Plan, folder: Path) -> set[int]:
    return _numbered(plan, _stems(folder, ".json") & _stems(folder, ".npy"))


def _numbered(plan: Plan, stems: set[str]) -> set[int]:
    return {number for number in map(plan.item_number, stems) if number is not None}


def _stems(folder: Path, suffix: str) -> set[str]:
    try:
        return {name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix)}
    except FileNotFoundError:
        return set()


def read_row(root: Path, plan: Plan, item: int, relpath: str) -> Row:
    """Make the index line of an item from its files; raises StoreError when one is missing, foreign or damaged."""
    skipped = plan.skipped_path(root, item)
    if skipped.exists():
        return Row(relpath, skipped=str(_metadata(skipped).get("reason", "")) or "no reason given")
    frames, sizes, arrays, metadata = [], [], [], []
    length = 0
    for level in plan.levels:
        meta = item_json(root, plan, level, item)
        npy = plan.item_path(root, level, item, ".npy")
        length = _length(meta, plan.item_path(root, level, item, ".json"))
        with open_regular(npy) as file:
            header = read_header(file, npy)
            frames.append(check_header(header, plan.array(level), npy, plan.frames_for(level, length)))
            sizes.append(os.fstat(file.fileno()).st_size)
        arrays.append(str(meta.get("npy_sha256", "")))
        metadata.append(layout.canonical_digest(meta))
    return Row(relpath, length, tuple(frames), tuple(sizes), tuple(arrays), tuple(metadata))


def item_json(root: Path, plan: Plan, level: int, item: int) -> dict[str, Any]:
    """The metadata of an item at a level."""
    return _metadata(plan.item_path(root, level, item, ".json"))


def _metadata(path: Path) -> dict[str, Any]:
    meta = layout.read_json(path)
    if not isinstance(meta, dict):
        raise StoreError(f"{path}: is not an object of metadata")
    return meta


def _length(meta: Mapping[str, Any], path: Path) -> int:
    try:
        return layout.length_in_samples(meta.get("length_samples"))
    except StoreError as cause:
        raise StoreError(f"{path}: length_samples: {cause}") from cause


def write_index(root: Path, plan: Plan, rows: Iterable[Row]) -> tuple[str, dict[int, str]]:
    """Publish index.jsonl; returns its SHA-256 and, per level, one digest of all its items."""
    per_level = {level: hashlib.sha256() for level in plan.levels}

    def write(file: Any) -> None:
        for item, row in enumerate(rows):
            file.write((json.dumps(row.to_json()) + "\n").encode())
            for place, level in enumerate(plan.levels if not row.skipped else ()):
                line = f"{plan.item_id(item)} {row.npy_sha256[place]} {row.json_sha256[place]}\n"
                per_level[level].update(line.encode())

    digest = files.publish(root / layout.INDEX, write, digest=True)
    assert digest is not None
    return digest, {level: state.hexdigest() for level, state in per_level.items()}


def read_rows(root: Path, plan: Plan) -> Iterator[tuple[int, Row]]:
    """(item number, line) of index.jsonl; raises StoreError with the line number."""
    path = root / layout.INDEX
    for item, data in layout.read_lines(path):
        try:
            yield item, Row.from_json(data, plan)
        except StoreError as cause:
            raise StoreError(f"{path}, line {item + 1}: {cause}. {_MEND}") from cause


_MEND = "Restore this file, or run `codes.py verify --repair` and the same pre_encode command again."


@dataclass(frozen=True)
class Index:
    """The numbers of all encoded items, in order.

    `items` their numbers, `lengths` in samples, `frames` and `npy_bytes` [items, levels kept].
    """

    items: NDArray[np.int64]
    lengths: NDArray[np.int64]
    frames: NDArray[np.int64]
    npy_bytes: NDArray[np.int64]
    relpaths: list[str]

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[int, Row]], plan: Plan) -> Index:
        """Collect the lines of items that were encoded."""
        kept = [(item, row) for item, row in rows if not row.skipped]
        table = (len(kept), len(plan.levels))
        return cls(
            items=np.array([item for item, _ in kept], dtype=np.int64),
            lengths=np.array([row.length_samples for _, row in kept], dtype=np.int64),
            frames=np.array([row.frames for _, row in kept], dtype=np.int64).reshape(table),
            npy_bytes=np.array([row.npy_bytes for _, row in kept], dtype=np.int64).reshape(table),
            relpaths=[row.relpath for _, row in kept],
        )


def open_index(root: Path, plan: Plan, sha256: str) -> Index:
    """The index of a finished store whose index.jsonl has this digest.

    Raises StoreError when the file was changed, or an array is missing or has another size.
    """
    key = _cache_key(root, plan, sha256)
    index = _read_cache(root / CACHE, key, len(plan.levels))
    if index is not None:
        return index
    path = root / layout.INDEX
    with open_regular(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise StoreError(f"{path}: has the digest {found[:12]}…, expected {sha256[:12]}…. {_MEND}")
    index = Index.from_rows(read_rows(root, plan), plan)
    _check_files(root, plan, index)
    _write_cache(root / CACHE, key, index)
    return index


def _check_files(root: Path, plan: Plan, index: Index) -> None:
    """Every array is there in its recorded size, and its metadata beside it."""
    sizes: dict[str, int] = {}
    names: set[str] = set()
    for place, level in enumerate(plan.levels):
        sizes.clear()
        names.clear()
        for shard in range(plan.shards):
            folder = plan.level_folder(root, level) / str(shard)
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    names.add(entry.name)
                    if entry.name.endswith(".npy"):
                        sizes[entry.name] = entry.stat().st_size if entry.is_file() else -1
        ids = [plan.item_id(item) for item in index.items.tolist()]
        expected = index.npy_bytes[:, place].tolist()
        bad = [i for i, (id_, size) in enumerate(zip(ids, expected, strict=True)) if sizes.get(id_ + ".npy") != size]
        bad = bad or [i for i, id_ in enumerate(ids) if id_ + ".json" not in names]
        if bad:
            path = plan.item_path(root, level, int(index.items[bad[0]]), ".npy")
            raise StoreError(
                f"{path}: is missing, without its .json, or not {expected[bad[0]]} bytes long ({len(bad)} items like "
                "this). Run `codes.py verify --repair` and the same pre_encode command again."
            )


def _cache_key(root: Path, plan: Plan, sha256: str) -> list[Any]:
    try:
        told = (root / layout.INDEX).stat()
        folders = [folder.stat().st_mtime_ns if folder.is_dir() else 0 for folder in shard_folders(root, plan)]
    except OSError as cause:
        raise StoreError(f"{root / layout.INDEX}: {cause.strerror}. {_MEND}") from cause
    return [1, sha256, told.st_size, told.st_mtime_ns, folders]


def _write_cache(path: Path, key: list[Any], index: Index) -> None:
    numbers = (index.items, index.lengths, index.frames, index.npy_bytes)
    body = b"".join(array.tobytes() for array in numbers) + json.dumps(index.relpaths).encode()
    head = {"key": key, "items": len(index.items), "sha256": hashlib.sha256(body).hexdigest()}
    try:
        files.publish_bytes(path, json.dumps(head).encode() + b"\n" + body)
    except (OSError, WriteFailed) as cause:
        log.debug("no cache of the index is kept: %s", cause)


def _read_cache(path: Path, key: list[Any], n_levels: int) -> Index | None:
    try:
        first, _, body = path.read_bytes().partition(b"\n")
        head = json.loads(first)
        if head["key"] != key or head["sha256"] != hashlib.sha256(body).hexdigest():
            return None
        count = int(head["items"])
        ends = np.cumsum([0, count, count, count * n_levels, count * n_levels]) * 8
        items, lengths, frames, sizes = (
            np.frombuffer(body[a:b], dtype=np.int64) for a, b in zip(ends[:-1], ends[1:], strict=True)
        )
        relpaths = json.loads(body[ends[-1] :])
        table = (count, n_levels)
        return Index(items, lengths, frames.reshape(table), sizes.reshape(table), relpaths)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
