"""The names, plan and metadata of a store: the numbered-folder layout that stable-audio-tools users know.

    <root>/plan.json               what the store is; written at the first start and never changed
    <root>/sources.jsonl           what becomes item 0, 1, 2 ...
    <root>/index.jsonl             lengths and digests of all items; written when all are there
    <root>/level_<l>/details.json  last of all: a store without it is unfinished
    <root>/level_<l>/<shard>/<id>.npy and .json
    <root>/skipped/<id>.json       a source that could not be encoded, with the reason

A store of a codec without levels is flat: what stands in `level_<l>/` above stands in the root.
Names are computed from item numbers, never read from a file, so no store can point outside its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jukebox.codestore.arrays import ArraySpec, open_regular
from jukebox.codestore.geometry import Geometry
from jukebox.errors import StoreError

HALF = "-fp16"
"""Ends the fingerprint of a model that encoded in half precision."""
FORMAT = "jukebox code store"
VERSION = 1
PLAN, SOURCES, INDEX, DETAILS, SKIPPED = "plan.json", "sources.jsonl", "index.jsonl", "details.json", "skipped"
_ITEMS_PER_BATCH = 10_000
_MAX_SHARDS = 1000
_MAX_TEXT = 1 << 26  # bytes of one JSON file
_MAX_LENGTH = 1 << 45  # samples of one item; more is damage


@dataclass(frozen=True)
class Source:
    """One thing to encode: a whole file, or the window of it that starts at `offset_samples` (at the codec's rate).

    `size_bytes` and `digest` tell whether the file is still the same when the work is taken up again.
    """

    relpath: str
    path: str = ""
    size_bytes: int = 0
    digest: str = ""
    offset_samples: int = 0


@dataclass(frozen=True)
class Plan:
    """All that is fixed when a store is begun.

    `levels` are the levels kept, `arrays` their array types in the same order. `window_samples` is the length of an
    item in samples, 0 when items are whole songs padded to whole top codes. `fingerprint` names the model.
    """

    geometry: Geometry
    fingerprint: str
    shards: int
    items: int
    levels: tuple[int, ...]
    arrays: tuple[ArraySpec, ...]
    window_samples: int = 0
    compat: bool = False
    flat: bool = False
    sources_sha256: str = ""

    def __post_init__(self) -> None:
        if not self.levels or sorted(set(self.levels)) != list(self.levels) or len(self.arrays) != len(self.levels):
            raise StoreError(f"a store keeps each level once, in order, not {self.levels}")
        if self.levels[0] < 0 or self.levels[-1] >= self.geometry.levels:
            raise StoreError(f"levels {self.levels} are not all among the {self.geometry.levels} of the codec")
        if not 1 <= self.shards <= _MAX_SHARDS:
            raise StoreError(f"--shards={self.shards}: a store has 1 to {_MAX_SHARDS} shards")
        if self.flat and len(self.levels) > 1:
            raise StoreError("only a store of one level can be flat")
        if not 0 <= self.items <= 10**12 or not 0 <= self.window_samples <= _MAX_LENGTH:
            raise StoreError(f"no store has {self.items} items of {self.window_samples} samples")

    def item_id(self, item: int) -> str:
        """Thirteen digits: shard (3), batch (6), item (4); a function of the item number alone.

        Items are dealt to shards in turn; within a shard they count up, 10,000 to a batch.
        """
        turn, shard = divmod(item, self.shards)
        batch, place = divmod(turn, _ITEMS_PER_BATCH)
        return f"{shard:03d}{batch:06d}{place:04d}"

    def item_number(self, item_id: str) -> int | None:
        """The reverse of `item_id`; None when no item of this store bears that id."""
        if not (item_id.isascii() and item_id.isdigit() and 13 <= len(item_id) <= 20):
            return None
        item = int(item_id[3:]) * self.shards + int(item_id[:3])
        return item if item < self.items and self.item_id(item) == item_id else None

    def level_folder(self, root: Path, level: int) -> Path:
        """The folder of a level, by itself a data set for other programs."""
        return root if self.flat else root / f"level_{level}"

    def item_path(self, root: Path, level: int, item: int, suffix: str) -> Path:
        """Where the `.npy` or `.json` of an item stands."""
        return self.level_folder(root, level) / str(item % self.shards) / (self.item_id(item) + suffix)

    def skipped_path(self, root: Path, item: int) -> Path:
        """Where the reason stands why an item could not be encoded."""
        return root / SKIPPED / (self.item_id(item) + ".json")

    def array(self, level: int) -> ArraySpec:
        """Array type of a level; raises StoreError when the store does not keep it."""
        if level not in self.levels:
            raise StoreError(f"level {level} is not in this store, only {', '.join(map(str, self.levels))}")
        return self.arrays[self.levels.index(level)]

    def frames_for(self, level: int, length_samples: int) -> int | None:
        """Time steps an item of this true length has; None when only its codec knows (windows)."""
        return None if self.window_samples else self.geometry.codes_for(level, length_samples)

    def level_facts(self, level: int) -> dict[str, Any]:
        """What details.json of a level says of the store besides its digests."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model_fingerprint": self.fingerprint,
            "level": level,
            "hop": self.geometry.hops[level],
            **self.geometry.to_json(),
            "items": self.items,
            "shards": self.shards,
            "window_samples": self.window_samples,
            "array": self.array(level).to_json(),
            "compat": self.compat,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data for plan.json."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model_fingerprint": self.fingerprint,
            **self.geometry.to_json(),
            "levels": list(self.levels),
            "arrays": [array.to_json() for array in self.arrays],
            "items": self.items,
            "shards": self.shards,
            "window_samples": self.window_samples,
            "compat": self.compat,
            "flat": self.flat,
            "sources_sha256": self.sources_sha256,
        }

    @classmethod
    def from_json(cls, data: Any, path: Path) -> Plan:
        """The reverse of `to_json`; raises StoreError naming the file."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise StoreError(f"{path}: is not the plan of a code store")
        if data.get("version") != VERSION:
            raise StoreError(
                f"{path}: has format version {data.get('version')}, this program reads {VERSION}. "
                "Use the version of the program that wrote it, or encode again into another folder."
            )
        try:
            return cls(
                geometry=Geometry.from_json(data),
                fingerprint=_typed(data, "model_fingerprint", str),
                shards=_typed(data, "shards", int),
                items=_typed(data, "items", int),
                levels=tuple(_whole(level) for level in _typed(data, "levels", list)),
                arrays=tuple(ArraySpec.from_json(array) for array in _typed(data, "arrays", list)),
                window_samples=_typed(data, "window_samples", int),
                compat=_typed(data, "compat", bool),
                flat=_typed(data, "flat", bool),
                sources_sha256=_typed(data, "sources_sha256", str),
            )
        except (StoreError, AttributeError) as cause:
            raise StoreError(
                f"{path}: {cause}. The plan of this store is damaged; restore it or encode again."
            ) from cause


def _typed(data: Mapping[str, Any], name: str, kind: type) -> Any:
    value = data.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise StoreError(f"{name} must be of type {kind.__name__}, not {value!r:.80}")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise StoreError(f"{value!r:.80} is not a whole number")
    return value


def same_model(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights, in whatever precision they encoded."""
    return one.removesuffix(HALF) == other.removesuffix(HALF)


def length_in_samples(value: Any) -> int:
    """Check a length that a file states; raises StoreError."""
    if not 0 < _whole(value) <= _MAX_LENGTH:
        raise StoreError(f"{value} samples is no length of an item")
    return int(value)


def read_json(path: Path, *, ours: bool = False) -> Any:
    """Read a JSON file of bounded size; raises StoreError naming it. ours: NaN, which others write, is damage."""
    with open_regular(path) as file:
        data = file.read(_MAX_TEXT + 1)
    return parse_json(data, path, ours=ours)


def parse_json(data: bytes, path: object, *, ours: bool = False) -> Any:
    """Parse JSON of bounded size and depth; raises StoreError naming the file."""
    if len(data) > _MAX_TEXT:
        raise StoreError(f"{path}: is larger than {_MAX_TEXT} bytes, which no metadata is")
    try:
        return json.loads(data, parse_constant=_refuse_constant if ours else None)
    except (ValueError, RecursionError) as cause:
        raise StoreError(f"{path}: is not JSON ({cause})") from cause


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 0, parsed line) of a JSON-lines file; raises StoreError naming file and line."""
    with open_regular(path) as file:
        for number, line in enumerate(file):
            yield number, parse_json(line, f"{path}, line {number + 1}")


def canonical_digest(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of an item's metadata; `load_time`, which differs from run to run, does not count."""
    kept = {key: value for key, value in metadata.items() if key != "load_time"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def sources_text(sources: list[Source]) -> str:
    """The content of sources.jsonl."""
    return "".join(json.dumps(vars(source)) + "\n" for source in sources)


def padding_mask(window_samples: int, valid_samples: int, frames: int) -> list[int]:
    """1 for every time step whose first sample is real: the sample mask resized by nearest neighbour.

    The ratio is a float32, as in the program whose layout this is (`floor(j * window / frames)`).
    """
    scale = np.float32(window_samples) / np.float32(max(1, frames))
    first = np.floor(np.arange(frames, dtype=np.float32) * scale)
    return [int(position < valid_samples) for position in first]


OWN_KEYS = frozenset(
    [
        "path",
        "relpath",
        "timestamps",
        "seconds_start",
        "seconds_total",
        "padding_mask",
        "valid_frames",
        "sample_rate",
        "load_time",
        "audio_channels",
        "duration",
        "start_time",
        "end_time",
        "length_samples",
        "offset_samples",
        "total_samples",
        "npy_sha256",
    ]
)
"""Keys of an item's metadata that this program computes; all others are the caller's."""


@dataclass(frozen=True)
class ItemFacts:
    """What the encoder knows of an item besides its codes.

    `length_samples` real samples (the rest is padding), `total_samples` of the whole file at the codec's rate,
    `extra`: song labels and custom metadata, any JSON.
    """

    length_samples: int
    total_samples: int
    audio_channels: int = 2
    load_time_sec: float = 0.0
    extra: Mapping[str, Any] | None = None


def item_metadata(plan: Plan, source: Source, facts: ItemFacts, level: int, frames: int, sha256: str) -> dict[str, Any]:
    """The `.json` beside an array: the keys other programs know, then the caller's, then what readers rely on."""
    rate, offset, length = plan.geometry.sr_hz, source.offset_samples, facts.length_samples
    span = plan.window_samples or length  # samples the array stands for, without the padding of the last code
    whole = max(facts.total_samples, span)
    mask = padding_mask(span, length, frames) if plan.window_samples else []
    valid = sum(mask) if plan.window_samples else plan.geometry.valid_codes(level, length)
    if plan.compat:
        frame_facts: dict[str, Any] = {"padding_mask": mask or [1] * valid + [0] * (frames - valid)}
    else:
        frame_facts = {"valid_frames": valid}
    return {
        "path": source.path,
        "relpath": source.relpath,
        "timestamps": [offset / whole, min(1.0, (offset + span) / whole)],
        "seconds_start": offset // rate,
        "seconds_total": -(-facts.total_samples // rate),
        **frame_facts,
        "sample_rate": rate,
        "load_time": facts.load_time_sec,
        "audio_channels": facts.audio_channels,
        "duration": length / rate,
        "start_time": offset / rate,
        "end_time": (offset + length) / rate,
        **(facts.extra or {}),
        "length_samples": length,
        "offset_samples": offset,
        "total_samples": facts.total_samples,
        "npy_sha256": sha256,
    }
