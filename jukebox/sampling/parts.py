"""Parts of a run: some levels, some items, up to a moment. A part never changes what the run will be as a whole."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from jukebox.codestore.geometry import Geometry
from jukebox.errors import UsageError
from jukebox.sampling.hps import SampleHps
from jukebox.sampling.levels import Song
from jukebox.sampling.plan import LevelPlan
from jukebox.sampling.schedule import Cell

KEYS = ("levels", "items", "from", "to")
"""Flags that say which part is done now; they do not make another run."""


@dataclass(frozen=True)
class Part:
    """What is sampled now. levels: highest first; until_samples: None = to the end of each song; from_samples: above 0 for
    an excerpt."""

    levels: tuple[int, ...]
    items: frozenset[int]
    until_samples: int | None = None
    from_samples: int = 0

    def songs(self, songs: Sequence[Song]) -> list[Song]:
        """Those of the part."""
        return [song for song in songs if song.request.item in self.items]

    def check(
        self, songs: Sequence[Song], plans: Mapping[int, LevelPlan], goals: Mapping[Cell, int], name: str
    ) -> None:  # fmt: skip
        """Raises UsageError where nothing at all can be sampled for want of the level above."""
        short = [
            level
            for level in self.levels
            if all(goals[s.request.item, level] == s.have(level) < plans[level].n_ctx for s in self.songs(songs))
        ]
        for level in sorted(short, reverse=True):
            if plans[level].ratio is not None and level + 1 not in self.levels:
                raise UsageError(
                    f"level {level} stands on level {level + 1}, of which {name} has not enough codes for one window: sample "
                    f"that first, without --levels or with --levels={level + 1},{level}."
                )


def levels_asked(sample: SampleHps, geometry: Geometry) -> tuple[int, ...]:
    """The levels that --levels names, all where it names none or only their number. Raises UsageError."""
    every = tuple(reversed(range(geometry.levels)))
    if sample.levels in ((), (geometry.levels,)):
        return every
    for level in sample.levels:
        if level >= geometry.levels:
            raise UsageError(
                f"--levels={','.join(map(str, sample.levels))}: this model has {geometry.levels} levels, 0 to "
                f"{geometry.levels - 1}; say some of those, or leave --levels out."
            )
    return tuple(level for level in every if level in sample.levels)


def items_asked(text: str, n_items: int) -> frozenset[int]:
    """`0,3-5` as numbers of songs; empty = all. Raises UsageError for what is no number of a song."""
    found: set[int] = set()
    for word in filter(None, (word.strip() for word in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        last = int(match[2] or match[1]) if match else -1
        if not match or not int(match[1]) <= last < n_items:
            raise UsageError(f"--items={text}: {word!r} is no song of this run; they are 0 to {n_items - 1}.")
        found.update(range(int(match[1]), last + 1))
    return frozenset(found or range(n_items))


def part_of(sample: SampleHps, order: Collection[int], n_items: int, geometry: Geometry) -> Part:
    """The part that the flags ask for. order: levels that the run samples. Raises UsageError."""
    levels = [level for level in levels_asked(sample, geometry) if level in order]
    if not levels:
        raise UsageError(
            f"--levels={','.join(map(str, sample.levels))}: this run samples the levels "
            f"{', '.join(map(str, sorted(order, reverse=True)))}; the others are given, or have no prior."
        )
    until = None if sample.to is None else int(sample.to * geometry.sr_hz)
    return Part(tuple(levels), items_asked(sample.items, n_items), until, int(sample.from_ * geometry.sr_hz))
