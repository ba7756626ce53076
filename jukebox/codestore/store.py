"""Reading a store of codes: random windows of any level in constant memory, every byte checked before it is used.

store = CodeStore.open("codes", expect_fingerprint=codec.fingerprint)
store.codes(level=2, i=0, start=1024, stop=9216)        # int64 [8192]
store.item(0).meta["relpath"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox.codestore import index, layout
from jukebox.codestore.arrays import check_range, read_window
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.index import Index
from jukebox.codestore.layout import Plan
from jukebox.errors import StoreError


@dataclass(frozen=True)
class StoreItem:
    """One encoded song or window.

    `length_samples` real samples from `offset_samples` of a file of `total_samples`; `meta` is its metadata.
    """

    id: str
    number: int
    relpath: str
    length_samples: int
    offset_samples: int
    total_samples: int
    meta: dict[str, Any]


class CodeStore:
    """A finished store, or with `unfinished=True` the finished items of one that is still being filled."""

    def __init__(self, root: Path, plan: Plan, contents: Index, details: dict[int, dict[str, Any]]) -> None:
        self.root, self.plan, self.index, self.details = root, plan, contents, details

    @classmethod
    def open(
        cls,
        root: Path | str,
        expect_fingerprint: str | None = None,
        expect_geometry: Geometry | None = None,
        levels: Sequence[int] = (),
        *,
        unfinished: bool = False,
    ) -> CodeStore:
        """Open and check a store; `levels` are those the caller needs.

        Raises StoreError when it is unfinished, damaged, of another format, or made by another model or at another
        rate or hop than expected.
        """
        root = Path(root)
        plan = read_plan(root)
        for level in levels:
            plan.array(level)
        other_model = expect_fingerprint is not None and not layout.same_model(expect_fingerprint, plan.fingerprint)
        if other_model or expect_geometry not in (None, plan.geometry):
            raise StoreError(ways_out(root, plan, expect_fingerprint, expect_geometry))
        if unfinished:
            return cls(root, plan, _index_of_finished(root, plan), {})
        details = _read_details(root, plan)
        digest = str(details[plan.levels[0]]["digests"].get("index"))
        return cls(root, plan, index.open_index(root, plan, digest), details)

    def is_finished(self) -> bool:
        """Whether details.json stands in every level kept."""
        return all((self.plan.level_folder(self.root, level) / layout.DETAILS).exists() for level in self.levels)

    @property
    def geometry(self) -> Geometry:
        """Rate, hops and bins of the codec."""
        return self.plan.geometry

    @property
    def fingerprint(self) -> str:
        """Names the model that made the codes."""
        return self.plan.fingerprint

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels kept, bottom first."""
        return self.plan.levels

    @property
    def lengths(self) -> NDArray[np.int64]:
        """True length of every item in samples, [items]."""
        return self.index.lengths

    @property
    def relpaths(self) -> list[str]:
        """The file each item was made from, relative to the folder that was encoded."""
        return self.index.relpaths

    def __len__(self) -> int:
        return len(self.index.items)

    def id(self, i: int) -> str:
        """The thirteen digits of item i."""
        return self.plan.item_id(int(self.index.items[i]))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {self.id(i): i for i in range(len(self))}

    def find(self, name: str) -> int:
        """Position of an item from its id, its relpath or its position as text; raises StoreError naming the choices."""
        if name in self._places:
            return self._places[name]
        if name in self.relpaths:
            return self.relpaths.index(name)
        if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(self):
            return int(name)
        first = self.id(0) if len(self) else "none"
        raise StoreError(
            f"{self.root}: has no item {name!r:.80}; give a position from 0 to {len(self) - 1}, an id such as {first}, "
            "or a file as listed by `codes.py info --items`"
        )

    def meta(self, i: int, level: int | None = None) -> dict[str, Any]:
        """Metadata of item i, by default as the top level kept has it."""
        return index.item_json(self.root, self.plan, self._level(level), int(self.index.items[i]))

    def item(self, i: int) -> StoreItem:
        """Item i with its metadata; raises StoreError when that disagrees with the index."""
        meta, length = self.meta(i), int(self.lengths[i])
        offset, total = meta.get("offset_samples", 0), meta.get("total_samples", length)
        if meta.get("length_samples") != length or not (isinstance(offset, int) and isinstance(total, int)):
            path = self.plan.item_path(self.root, self.levels[0], int(self.index.items[i]), ".json")
            raise StoreError(f"{path}: states other lengths than the index. Run `codes.py verify --repair`.")
        return StoreItem(self.id(i), int(self.index.items[i]), self.relpaths[i], length, offset, total, meta)

    def frames(self, level: int, i: int) -> int:
        """Codes of item i at a level."""
        return int(self.index.frames[i, self._place(level)])

    def array(self, level: int, i: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Time steps [start, stop) of item i as stored: [Q, n], [n, Q] or [D, n], see `plan.array(level)`."""
        path = self.plan.item_path(self.root, level, int(self.index.items[i]), ".npy")
        values = read_window(path, self.plan.array(level), start, stop, self.frames(level, i))
        if values.dtype.kind == "i":
            check_range(values, self.geometry.bins, path)
        return values

    def codes(self, level: int, i: int, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Codes [start, stop) of item i at a level, int64 [n]; for levels with one code per time step."""
        spec = self.plan.array(level)
        if spec.rows != 1 or spec.axes == "DN":
            raise StoreError(f"{self.root}: keeps {spec.rows} rows per time step, not one sequence of codes")
        return self.array(level, i, start, stop).reshape(-1).astype(np.int64)

    def _level(self, level: int | None) -> int:
        return self.levels[-1] if level is None else self.levels[self._place(level)]

    def _place(self, level: int) -> int:
        self.plan.array(level)
        return self.levels.index(level)


def find_store(path: Path | str) -> Path:
    """The folder of a store: `path` itself, or the store `codes/` that a sampling run keeps in its folder."""
    path = Path(path)
    inside = path / "codes"
    return inside if not (path / layout.PLAN).exists() and (inside / layout.PLAN).exists() else path


def read_plan(root: Path) -> Plan:
    """The plan of a store; raises StoreError when this folder is none."""
    path = root / layout.PLAN
    if not path.exists():
        if (root / layout.DETAILS).exists():
            raise StoreError(
                f"{root}: is a pre-encoded data set or one level of a store, not a whole store; give the folder above, "
                "or read it as a data set of type pre_encoded"
            )
        raise StoreError(f"{root}: is not a code store (no {layout.PLAN}); make one with pre_encode.py")
    return Plan.from_json(layout.read_json(path), path)


def _read_details(root: Path, plan: Plan) -> dict[int, dict[str, Any]]:
    details: dict[int, dict[str, Any]] = {}
    for level in plan.levels:
        path = plan.level_folder(root, level) / layout.DETAILS
        if not path.exists():
            done = len(index.finished_items(root, plan))
            raise StoreError(
                f"{root}: is unfinished, {done} of {plan.items} items are there. Run the same pre_encode command again "
                "to finish it."
            )
        data = layout.read_json(path, ours=True)
        data = data if isinstance(data, dict) else {}
        facts, digests = plan.level_facts(level), data.get("digests")
        known = isinstance(digests, dict) and digests.get("sources") == plan.sources_sha256
        if not known or any(data.get(name) != fact for name, fact in facts.items()):
            raise StoreError(f"{path}: does not belong to {root / layout.PLAN}. {_RESTORE}")
        details[level] = data
    if len({str(data["digests"].get("index")) for data in details.values()}) > 1:
        raise StoreError(f"{root}: its levels were not finished together. {_RESTORE}")
    return details


_RESTORE = "Restore it, or run `codes.py verify --repair` and the same pre_encode command again."


def _index_of_finished(root: Path, plan: Plan) -> Index:
    rows = []
    for item in sorted(index.finished_items(root, plan)):
        rows.append((item, index.read_row(root, plan, item, "")))
    contents = Index.from_rows(rows, plan)
    for i, item in enumerate(contents.items.tolist()):
        contents.relpaths[i] = str(index.item_json(root, plan, plan.levels[0], item).get("relpath", ""))
    return contents


def ways_out(root: Path, plan: Plan, fingerprint: str | None, geometry: Geometry | None) -> str:
    """What to do when a store and a model do not belong together; shows both sides."""
    if fingerprint not in (None, plan.fingerprint):
        clash = f"was made by model {plan.fingerprint}, this is model {fingerprint}"
    else:
        wanted = geometry.describe() if geometry else ""
        clash = f"was made at {plan.geometry.describe()}, this model has {wanted}"
    return (
        f"{root}: {clash}. Encode again with this model into another --output-path, name the model that made these "
        "codes (--restore_vqvae), or give another store (--codes)."
    )
