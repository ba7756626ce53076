"""Tiny stores with known content, for the tests here; as a program, one process of an encoder that can be killed.

python tiny_writer.py STORE COUNT SHARDS RANK SIZE [LOG]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from jukebox.codestore.geometry import Geometry  # noqa: E402
from jukebox.codestore.layout import ItemFacts, Source  # noqa: E402
from jukebox.codestore.store import CodeStore  # noqa: E402
from jukebox.codestore.writer import StoreWriter  # noqa: E402

GEOMETRY = Geometry(8000, (8, 32, 128), 64)


def length(item: int) -> int:
    return 1000 + 333 * item


def codes(item: int) -> dict[int, np.ndarray]:
    """The codes of song `item`: a function of its number alone."""
    draw = np.random.default_rng(item)
    return {level: draw.integers(0, 64, GEOMETRY.codes_for(level, length(item))) for level in range(GEOMETRY.levels)}


def sources(count: int) -> list[Source]:
    return [Source(f"a/song {i}.wav", f"/music/a/song {i}.wav", 100 + i, f"d{i}") for i in range(count)]


def fill(writer: StoreWriter, rank: int = 0, size: int = 1, log: str = "") -> None:
    for item in writer.pending(rank, size):
        extra = {"song": {"artist": f"artist {item % 2}", "genre": "folk", "lyrics": "la la"}}
        writer.add(item, codes(item), ItemFacts(length(item), length(item), load_time_sec=0.5, extra=extra))
        if log:
            with open(log, "a") as file:
                file.write(f"{item}\n")


def make(root: Path | str, count: int = 5, shards: int = 2, fingerprint: str = "abc", **more: object) -> CodeStore:
    with StoreWriter.create_or_resume(root, GEOMETRY, fingerprint, sources(count), shards=shards, **more) as writer:
        fill(writer)
        return writer.finish({"model_config": "m.json", "args": {"x": 1}})


if __name__ == "__main__":
    root, count, shards, rank, size = sys.argv[1], *map(int, sys.argv[2:6])
    log = sys.argv[6] if len(sys.argv) > 6 else ""
    if rank:
        fill(StoreWriter.attach(root), rank, size, log)
    else:
        with StoreWriter.create_or_resume(root, GEOMETRY, "abc", sources(count), shards=shards) as writer:
            fill(writer, rank, size, log)
            if size == 1:
                writer.finish({"model_config": "m.json", "args": {"x": 1}})
