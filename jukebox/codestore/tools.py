"""What one does with a store: check it, mend it, count its codes, cut it, join stores, play a range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jukebox import files
from jukebox.codestore import index, layout
from jukebox.codestore.arrays import check_range, read_window
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.index import Row
from jukebox.codestore.layout import ItemFacts, Plan, Source
from jukebox.codestore.store import CodeStore, StoreItem, read_plan, ways_out
from jukebox.codestore.writer import StoreWriter, read_sources
from jukebox.errors import StoreError, UserError

_BLOCK = 1 << 20  # codes read together


# --- checking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """Something wrong with a store; `item` is its number, None when it concerns the store as a whole."""

    item: int | None
    text: str


def verify(root: Path | str, progress: Callable[[], object] = lambda: None) -> list[Fault]:
    """Read every byte of a store, finished or not, and compare it with its digests; returns all that is wrong.

    `progress` is called once per item. Raises StoreError only when the plan itself cannot be read.
    """
    root = Path(root)
    plan = read_plan(root)
    faults = _faults_of(None, lambda: read_sources(root, plan))
    finished = all((plan.level_folder(root, level) / layout.DETAILS).exists() for level in plan.levels)
    recorded: dict[int, Row] = {}
    if finished:
        faults += _faults_of(None, lambda: recorded.update(index.read_rows(root, plan)))
    for item in range(plan.items) if finished else sorted(index.finished_items(root, plan)):
        for level in plan.levels if not plan.skipped_path(root, item).exists() else ():
            faults += _faults_of(item, partial(_check_item, root, plan, item, level, recorded.get(item)))
        progress()
    if finished and not faults:
        faults = _faults_of(None, lambda: CodeStore.open(root))
    return faults


def _faults_of(item: int | None, check: Callable[[], object]) -> list[Fault]:
    try:
        check()
    except UserError as error:
        return [Fault(item, str(error))]
    return []


def _check_item(root: Path, plan: Plan, item: int, level: int, row: Row | None) -> None:
    npy, meta = plan.item_path(root, level, item, ".npy"), index.item_json(root, plan, level, item)
    length = layout.length_in_samples(meta.get("length_samples"))
    values = read_window(npy, plan.array(level), frames=plan.frames_for(level, length))
    _compare(npy, files.digest_file(npy), str(meta.get("npy_sha256")))
    if plan.geometry.bins and values.dtype.kind == "i":
        check_range(values, plan.geometry.bins, npy)
    if row is not None and not row.skipped:
        place = plan.levels.index(level)
        _compare(npy, str(meta.get("npy_sha256")), row.npy_sha256[place])
        _compare(npy.with_suffix(".json"), layout.canonical_digest(meta), row.json_sha256[place])


def _compare(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise StoreError(f"{path}: has the digest {found:.16}…, expected {expected:.16}…")


def repair(root: Path | str, faults: Sequence[Fault]) -> int:
    """Remove what is damaged, so that the pre_encode command that made the store makes it again; returns the items.

    Raises StoreError when the plan or the list of sources is damaged: then nothing is left to go by.
    """
    root = Path(root)
    plan = read_plan(root)
    read_sources(root, plan)
    damaged = sorted({fault.item for fault in faults if fault.item is not None})
    with files.RunLock(root):
        for level in plan.levels:  # first: from here on the store is unfinished and says so
            (plan.level_folder(root, level) / layout.DETAILS).unlink(missing_ok=True)
        (root / layout.INDEX).unlink(missing_ok=True)
        for item in damaged:
            for level in plan.levels:
                for suffix in (".json", ".npy"):
                    plan.item_path(root, level, item, suffix).unlink(missing_ok=True)
    return len(damaged)


# --- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """How the codes of one row of a level are spread over the codebook: `counts` [K]."""

    level: int
    row: int
    counts: NDArray[np.int64]

    @property
    def used(self) -> int:
        """Bins that occur at all."""
        return int(np.count_nonzero(self.counts))

    @property
    def entropy_bits(self) -> float:
        """Bits per code if codes are drawn one by one with these frequencies: the unigram entropy."""
        shares = self.counts[self.counts > 0] / max(1, self.counts.sum())
        return float(-(shares * np.log2(shares)).sum()) + 0.0

    @property
    def perplexity(self) -> float:
        """The number of equally frequent bins that would spread as far: 2 ** entropy."""
        return float(2.0**self.entropy_bits)


def usage(store: CodeStore, level: int) -> list[Usage]:
    """Codebook usage of a level, true codes only (no padding), in bounded memory; one entry per row of its arrays."""
    spec = store.plan.array(level)
    counts = np.zeros((spec.rows, store.geometry.bins), dtype=np.int64)
    for i in range(len(store)):
        length = int(store.lengths[i])
        valid = min(store.frames(level, i), store.geometry.valid_codes(level, length))
        for start in range(0, valid, _BLOCK):
            block = store.array(level, i, start, min(start + _BLOCK, valid))
            for row, codes in enumerate(block.T if spec.axes == "NQ" else block):
                counts[row] += np.bincount(codes, minlength=store.geometry.bins)
    return [Usage(level, row, counts[row]) for row in range(spec.rows)]


# --- ranges ----------------------------------------------------------------------------------------------------------


def sample_range(
    store: CodeStore, i: int, start_sec: float | None = None, end_sec: float | None = None
) -> tuple[int, int]:
    """The samples of item i in [start_sec, end_sec); default its beginning and its true end, where every range ends.

    Raises StoreError when that is empty or outside the item.
    """
    rate, length = store.geometry.sr_hz, int(store.lengths[i])
    start_sec, end_sec = start_sec or 0.0, length / rate if end_sec is None else end_sec
    if isfinite(start_sec) and isfinite(end_sec):
        start_samples, end_samples = round(start_sec * rate), min(length, round(end_sec * rate))
        if 0 <= start_samples < end_samples:
            return start_samples, end_samples
    raise StoreError(
        f"item {store.id(i)} is {length / rate:.3f} s long; {start_sec:g} s to {end_sec:g} s is no part of it"
    )


def code_range(
    store: CodeStore, i: int, level: int, start_sec: float | None = None, end_sec: float | None = None
) -> tuple[int, int]:
    """The codes of item i that cover [start_sec, end_sec) of it; raises StoreError as `sample_range` does."""
    start_samples, end_samples = sample_range(store, i, start_sec, end_sec)
    return start_samples // store.geometry.hops[level], store.geometry.valid_codes(level, end_samples)


def cut(
    root: Path | str,
    store: CodeStore,
    items: Sequence[int],
    start_sec: float | None = None,
    end_sec: float | None = None,
) -> CodeStore:
    """A new store of some items, or of the same range in seconds of each; ranges begin and end at top codes.

    What was cut off still counts: the new items know their place in the whole song, so labels and lyrics stay right.
    """
    if store.plan.window_samples and (start_sec is not None or end_sec is not None):
        raise StoreError(f"{store.root}: items are windows of fixed size; they can be chosen, not cut")
    top, hop = store.geometry.levels - 1, store.geometry.top_hop
    pieces = []
    for i in items:
        item = store.item(i)
        first, last = (0, 0)
        length = item.length_samples
        if not store.plan.window_samples:
            first, last = code_range(store, i, top, start_sec, end_sec)
            length = min(item.length_samples, last * hop) - first * hop
        pieces.append(_Piece(store, i, item, first * hop, length))
    return _write(root, store, pieces)


def join(root: Path | str, stores: Sequence[CodeStore]) -> CodeStore:
    """A new store of the items of several, in order. Raises StoreError when they do not belong together."""
    return keep(root, [(store, i) for store in stores for i in range(len(store))])


def keep(root: Path | str, picks: Sequence[tuple[CodeStore, int]]) -> CodeStore:
    """A new store of chosen items of one store or several, in the order given.

    Raises StoreError when nothing is chosen, an item is chosen twice, or the stores do not belong together.
    """
    if not picks:
        raise StoreError(f"{root}: no items are chosen for it")
    first = picks[0][0]
    for store in {id(store): store for store, _ in picks}.values():
        if store.fingerprint != first.fingerprint or store.geometry != first.geometry:
            raise StoreError(ways_out(store.root, store.plan, first.fingerprint, first.geometry))
        for name in ("levels", "arrays", "window_samples", "compat", "flat"):
            if getattr(store.plan, name) != getattr(first.plan, name):
                raise StoreError(
                    f"{store.root}: has other {name} ({getattr(store.plan, name)}) than {first.root} "
                    f"({getattr(first.plan, name)}); encode one of them again like the other"
                )
    seen: dict[tuple[str, str, int], Path] = {}
    pieces = []
    for store, i in picks:
        item = store.item(i)
        same = (item.relpath, str(item.meta.get("npy_sha256")), item.offset_samples)
        if same in seen:
            raise StoreError(f"{store.root}: item {store.id(i)} ({item.relpath}) is in {seen[same]} too")
        seen[same] = store.root
        pieces.append(_Piece(store, i, item, 0, item.length_samples))
    return _write(root, first, pieces)


@dataclass(frozen=True)
class _Piece:
    """`length_samples` of an item, from `start_samples` of it."""

    store: CodeStore
    i: int
    item: StoreItem
    start_samples: int
    length_samples: int

    def source(self) -> Source:
        meta = self.item.meta
        digest = files.digest_bytes(f"{meta.get('npy_sha256')} {self.length_samples}".encode())
        offset = self.item.offset_samples + self.start_samples
        return Source(self.item.relpath, str(meta.get("path", "")), 0, digest, offset)

    def codes(self) -> Mapping[int, NDArray[Any]]:
        store, geometry = self.store, self.store.geometry
        if store.plan.window_samples:
            return {level: store.array(level, self.i) for level in store.levels}
        found = {}
        for level in store.levels:
            start = self.start_samples // geometry.hops[level]
            stop = start + geometry.codes_for(level, self.length_samples)
            found[level] = store.array(level, self.i, start, stop)
        return found

    def facts(self) -> ItemFacts:
        meta = self.item.meta
        channels = meta.get("audio_channels", 2)
        return ItemFacts(
            self.length_samples,
            self.item.total_samples,
            audio_channels=channels if isinstance(channels, int) else 2,
            extra={key: value for key, value in meta.items() if key not in layout.OWN_KEYS},
        )


def _write(root: Path | str, like: CodeStore, pieces: Sequence[_Piece]) -> CodeStore:
    plan, details = like.plan, like.details.get(like.levels[0], {})
    computed = {*plan.level_facts(like.levels[0]), "digests"}
    told = {name: value for name, value in details.items() if name not in computed}  # the model, how it was encoded
    try:
        begun = StoreWriter.create_or_resume(
            root,
            plan.geometry,
            plan.fingerprint,
            [piece.source() for piece in pieces],
            shards=plan.shards,
            levels=plan.levels,
            arrays=plan.arrays,
            window_samples=plan.window_samples,
            compat=plan.compat,
            flat=plan.flat,
        )
    except StoreError:
        if not (Path(root) / layout.PLAN).exists():
            raise
        raise StoreError(f"{root}: holds another store already; name another folder, or delete this one") from None
    with begun as writer:
        for number in writer.pending():
            writer.add(number, pieces[number].codes(), pieces[number].facts())
        return writer.finish(told)


# --- listening -------------------------------------------------------------------------------------------------------


class RangeDecoder(Protocol):
    """What `decode` needs of a codec."""

    @property
    def geometry(self) -> Geometry:
        """Rate, hops and bins."""

    @property
    def fingerprint(self) -> str:
        """Names the model."""

    def decode(
        self, codes: NDArray[np.int64], level: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.float32]:
        """Codes [N] of a level -> audio of codes start ... stop - 1; the others are their context."""


def decode(
    store: CodeStore,
    i: int,
    level: int,
    codec: RangeDecoder,
    start_sec: float | None = None,
    end_sec: float | None = None,
) -> NDArray[np.float32]:
    """Audio [T] of a range of item i, from the codes of one level, exact to the sample and cut at the song's true end.

    Raises StoreError when another model made the codes or the range is no part of the item.
    """
    if not layout.same_model(codec.fingerprint, store.fingerprint) or codec.geometry != store.geometry:
        raise StoreError(ways_out(store.root, store.plan, codec.fingerprint, codec.geometry))
    start_samples, end_samples = sample_range(store, i, start_sec, end_sec)
    first, last = code_range(store, i, level, start_sec, end_sec)
    audio = codec.decode(store.codes(level, i), level, first, last)
    begin = first * store.geometry.hops[level]
    return audio[start_samples - begin : end_samples - begin]
