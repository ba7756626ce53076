"""Filling a store: whole or not at all, taken up again after any interruption, one writer per shard.

    with StoreWriter.create_or_resume(root, geometry, fingerprint, sources, shards=4) as writer:   # first rank
        for item in writer.pending(rank, size):
            writer.add(item, codes, facts)
        store = writer.finish(details)                                                             # first rank

Other ranks of the same job open it with `StoreWriter.attach(root)` once the first has made it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jukebox import files
from jukebox.codestore import index, layout
from jukebox.codestore.arrays import ArraySpec, check_range, write_array
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.layout import ItemFacts, Plan, Source
from jukebox.codestore.store import CodeStore, read_plan, ways_out
from jukebox.errors import StoreError

log = logging.getLogger(__name__)


class StoreWriter:
    """A store that is being filled; made by `create_or_resume` or `attach`."""

    def __init__(self, root: Path, plan: Plan, sources: list[Source], lock: files.RunLock | None) -> None:
        self.root, self.plan, self.sources, self._lock = root, plan, sources, lock

    @classmethod
    def create_or_resume(
        cls,
        root: Path | str,
        geometry: Geometry,
        fingerprint: str,
        sources: Sequence[Source],
        *,
        shards: int | None = None,
        default_shards: int = 1,
        levels: Sequence[int] | None = None,
        arrays: Sequence[ArraySpec] | None = None,
        window_samples: int = 0,
        compat: bool = False,
        flat: bool = False,
        force_unlock: bool = False,
    ) -> StoreWriter:
        """Begin a store, or take up an unfinished one after checking that it is the same work; for one process.

        `shards` None: what the first start recorded, `default_shards` when this is the first. `levels` None: all.
        `arrays` None: codes, one per time step, int16 when the bins allow, int64 with `compat`.
        Raises StoreError when the folder holds something else, another model's codes or other sources, LockedError
        when another process fills it.
        """
        root = Path(root)
        kept = tuple(range(geometry.levels) if levels is None else levels)
        if arrays is None:
            arrays = [ArraySpec.for_codes(geometry.bins, compat=compat)] * len(kept)
        text = layout.sources_text(list(sources))
        plan = Plan(
            geometry=geometry,
            fingerprint=fingerprint,
            shards=default_shards if shards is None else shards,
            items=len(sources),
            levels=kept,
            arrays=tuple(arrays),
            window_samples=window_samples,
            compat=compat,
            flat=flat,
            sources_sha256=files.digest_bytes(_without_paths(sources).encode()),
        )
        lock = files.RunLock(root, force=force_unlock)
        lock.__enter__()
        try:
            check_place(root, geometry, fingerprint)
            if (root / layout.PLAN).exists():
                plan = _same_work(root, plan, list(sources), fixed_shards=shards is not None)
            else:
                files.publish_text(root / layout.SOURCES, text)
                files.publish_json(root / layout.PLAN, plan.to_json())
            for folder in [root, root / layout.SKIPPED, *index.shard_folders(root, plan)]:
                if folder.name != layout.SKIPPED:
                    files.make_folder(folder, cure="Choose another --output-path.")
                files.remove_stale_temps(folder)
        except BaseException:
            lock.__exit__(None, None, None)
            raise
        return cls(root, plan, read_sources(root, plan), lock)

    @classmethod
    def attach(cls, root: Path | str) -> StoreWriter:
        """Join a store that another process of this job has begun and keeps locked."""
        plan = read_plan(Path(root))
        return cls(Path(root), plan, read_sources(Path(root), plan), None)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back; what is published stays."""
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None

    def shards_of(self, rank: int, size: int) -> range:
        """The shards that this rank alone writes."""
        return range(rank, self.plan.shards, size)

    def pending(self, rank: int = 0, size: int = 1) -> list[int]:
        """Items in this rank's shards that are not finished, in order."""
        done = index.finished_items(self.root, self.plan)
        mine = set(self.shards_of(rank, size))
        return [item for item in range(self.plan.items) if item % self.plan.shards in mine and item not in done]

    def add(self, item: int, codes: Mapping[int, NDArray[Any]], facts: ItemFacts) -> None:
        """Publish an item: `codes` maps every kept level to its array, [N] for plain codes or as its ArraySpec says.

        Arrays first, metadata last: an item with metadata on all levels is finished. Raises StoreError when an array
        does not fit the store, OutOfSpace or WriteFailed when it cannot be written.
        """
        layout.length_in_samples(facts.length_samples)
        if set(codes) != set(self.plan.levels):
            raise StoreError(f"item {item} has codes of levels {sorted(codes)}, the store keeps {self.plan.levels}")
        fitted = {level: self._fit(item, level, codes[level], facts) for level in self.plan.levels}
        metadata: dict[Path, str] = {}
        for level, values in fitted.items():
            spec = self.plan.array(level)

            def write(file: BinaryIO, values: NDArray[Any] = values, spec: ArraySpec = spec) -> None:
                write_array(file, values, spec)

            sha256 = files.publish(self.plan.item_path(self.root, level, item, ".npy"), write, digest=True)
            files.fault_point("store.after_npy")
            meta = layout.item_metadata(
                self.plan, self.sources[item], facts, level, spec.frames(values.shape), str(sha256)
            )
            metadata[self.plan.item_path(self.root, level, item, ".json")] = _json_line(meta, self.sources[item])
        for path, text in metadata.items():
            files.publish_text(path, text)
            files.fault_point("store.after_json")

    def _fit(self, item: int, level: int, values: NDArray[Any], facts: ItemFacts) -> NDArray[Any]:
        spec, bins = self.plan.array(level), self.plan.geometry.bins
        what = f"item {item} ({files.printable(self.sources[item].relpath)}), level {level}"
        if values.ndim == 1 and spec.rows == 1:
            values = values.reshape(spec.shape(len(values)))
        if values.ndim != 2 or values.shape != spec.shape(spec.frames(values.shape)):
            raise StoreError(
                f"{what}: has shape {values.shape}, the store keeps {spec.rows} rows with axes {spec.axes}"
            )
        frames, expected = spec.frames(values.shape), self.plan.frames_for(level, facts.length_samples)
        if expected not in (None, frames):
            raise StoreError(f"{what}: {facts.length_samples} samples are {expected} codes, not {frames}")
        if (np.dtype(spec.dtype).kind == "i") != (values.dtype.kind in "iu"):
            raise StoreError(f"{what}: is {values.dtype}, the store keeps {spec.dtype}")
        if bins and values.dtype.kind in "iu":
            check_range(values, bins, what)
        return values

    def skip(self, item: int, reason: str) -> None:
        """Record that an item cannot be encoded, and why; it counts as finished."""
        path = self.plan.skipped_path(self.root, item)
        files.make_folder(path.parent, cure="Choose another --output-path.")
        record = {"relpath": self.sources[item].relpath, "reason": reason or "no reason given"}
        files.publish_text(path, _json_line(record, self.sources[item]))

    def finish(self, details: Mapping[str, Any] | None = None) -> CodeStore:
        """Check that every item is there, write the index and, last, details.json of every level; open the store.

        `details` come first in details.json: paths of configurations, arguments, versions. A store that is finished
        already is left as it is. Raises StoreError when items are missing.
        """
        if not all(path.exists() for path in self._details_paths().values()):
            missing = self.pending()
            if missing:
                raise StoreError(f"{self.root}: {len(missing)} of {self.plan.items} items are not there yet")
            digest, levels = index.write_index(self.root, self.plan, self._rows())
            for level, path in self._details_paths().items():
                files.fault_point("store.before_details")
                digests = {"index": digest, "items": levels[level], "sources": self.plan.sources_sha256}
                facts = {**self.plan.level_facts(level), "digests": digests}
                files.publish_json(path, {**(details or {}), **facts})
        return CodeStore.open(self.root)

    def _details_paths(self) -> dict[int, Path]:
        return {level: self.plan.level_folder(self.root, level) / layout.DETAILS for level in self.plan.levels}

    def _rows(self) -> Iterator[index.Row]:
        for item, source in enumerate(self.sources):
            yield index.read_row(self.root, self.plan, item, source.relpath)


def read_sources(root: Path, plan: Plan) -> list[Source]:
    """What becomes item 0, 1, 2 ...; raises StoreError when the list does not belong to the plan."""
    path = root / layout.SOURCES
    try:
        sources = [Source(**data) for _, data in layout.read_lines(path)]
        matches = files.digest_bytes(_without_paths(sources).encode()) == plan.sources_sha256
    except TypeError as cause:
        raise StoreError(f"{path}: holds lines that describe no source ({cause})") from cause
    if not matches or len(sources) != plan.items:
        raise StoreError(f"{path}: is not the list this store was begun with. Restore it, or encode again elsewhere.")
    return sources


def _without_paths(sources: Sequence[Source]) -> str:
    return layout.sources_text([Source("", s.relpath, s.size_bytes, s.digest, s.offset_samples) for s in sources])


def _json_line(data: Mapping[str, Any], source: Source) -> str:
    try:
        return json.dumps(data)
    except (TypeError, ValueError) as cause:
        raise StoreError(
            f"{files.printable(source.relpath)}: its metadata cannot be written as JSON ({cause}). "
            "A metadata function must return text, numbers, lists and dictionaries only."
        ) from cause


def check_place(root: Path, geometry: Geometry, fingerprint: str) -> None:
    """Raises StoreError for a folder that no store of this model can be in: long work is better not begun for it."""
    if (root / layout.PLAN).exists():
        plan = read_plan(root)
        if plan.fingerprint != fingerprint or plan.geometry != geometry:
            raise StoreError(ways_out(root, plan, fingerprint, geometry))
    elif root.is_dir():
        _refuse_foreign(root)
    elif root.exists():
        raise StoreError(f"{files.printable(str(root))}: is a file, not a folder; choose another --output-path")


def _refuse_foreign(root: Path) -> None:
    found = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    foreign = [name for name in found if name not in ("LOCK", layout.SOURCES)]
    if foreign:
        raise StoreError(
            f"{root}: is not empty and not a store of ours (it holds {files.printable(foreign[0])}); "
            "choose another --output-path"
        )


def _same_work(root: Path, wanted: Plan, sources: list[Source], *, fixed_shards: bool) -> Plan:
    """The recorded plan, after checking that it is the work asked for; raises StoreError saying what differs."""
    plan = read_plan(root)
    if fixed_shards and plan.shards != wanted.shards:
        raise StoreError(
            f"{root}: was begun with {plan.shards} shards, not {wanted.shards}. Leave --shards out to go on with it."
        )
    for name in ("levels", "arrays", "window_samples", "compat", "flat"):
        if getattr(plan, name) != getattr(wanted, name):
            raise StoreError(
                f"{root}: was begun with {name} {getattr(plan, name)}, now {getattr(wanted, name)} is asked for. "
                "Use the same flags to go on, or another --output-path."
            )
    if plan.sources_sha256 != wanted.sources_sha256:
        raise StoreError(f"{root}: {_first_difference(read_sources(root, plan), sources)}")
    return plan


def _first_difference(before: list[Source], now: list[Source]) -> str:
    cure = (
        "Put the old files back, or leave flags that choose items as they were (--limit_batches, --shuffle, --crop, --shifts), "
        "to go on; or encode into another --output-path."
    )
    for old, new in zip(before, now, strict=False):
        if old.relpath != new.relpath:
            first = min(old.relpath, new.relpath)
            return f"{files.printable(first)} was {'removed' if first == old.relpath else 'added'} since. {cure}"
        if old.size_bytes != new.size_bytes:
            return f"{files.printable(old.relpath)} changed since (size {old.size_bytes} to {new.size_bytes}). {cure}"
        if old.digest != new.digest:
            return f"{files.printable(old.relpath)} changed since (same size, other content). {cure}"
        if old.offset_samples != new.offset_samples:
            return f"{files.printable(old.relpath)} is cut into other windows than before. {cure}"
    more, which = (before, "removed") if len(before) > len(now) else (now, "added")
    return f"{files.printable(more[min(len(before), len(now))].relpath)} was {which} since. {cure}"
