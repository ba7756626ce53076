"""What to sample next: pure functions of what songs have, the same for every mode and any number of processes.

A window can be sampled as soon as the codes above it exist, so levels need not wait for each other: where all priors are
in memory the finest window that is ready goes first, and the beginning of a song is heard early.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from jukebox.sampling.levels import Song
from jukebox.sampling.plan import LevelPlan, Window, next_window, window_starts
from jukebox.sampling.requests import LevelSettings, Request

Cell = tuple[int, int]
"""One level of one item: (item, level). It is sampled window by window, from left to right, by one process."""


@dataclass(frozen=True)
class Task:
    """One window of one level, for songs that are drawn alike."""

    level: int
    window: Window
    songs: tuple[Song, ...]
    settings: LevelSettings


@dataclass(frozen=True)
class Schedule:
    """The order of all windows of a run. goals: codes that each level of each item shall have in the end.

    finest_first: go down as soon as possible, which needs all priors in memory; else each level is finished first.
    """

    plans: Mapping[int, LevelPlan]
    goals: Mapping[Cell, int]
    drawn: Callable[[Request, int], LevelSettings]
    finest_first: bool = False

    def next(self, songs: Sequence[Song], mine: Callable[[Cell], bool] = lambda _: True) -> Task | None:
        """The next window of `mine`; None when there is none that could be sampled now.

        A batch that songs could still join, because they will come to the same window, waits while another is complete.
        """
        incomplete = None
        for level in sorted(self.plans, reverse=not self.finest_first):
            for alike, settings in self._alike([song for song in songs if mine((song.request.item, level))], level):
                task, complete = self._first(alike, level, settings)
                if task and complete:
                    return task
                incomplete = incomplete or task
        return incomplete

    def window(self, song: Song, level: int) -> Window | None:
        """The next window of a level of a song, whether it can be sampled yet or not; None at its goal."""
        plan, have = self.plans[level], song.have(level)
        if have >= self.goals.get((song.request.item, level), 0):
            return None
        return next_window(plan.total(song.length_samples), plan.n_ctx, plan.hop, have)

    def missing(self, songs: Iterable[Song], level: int) -> int:
        """Codes of a level that are still to be sampled."""
        return sum(max(0, self.goals.get((song.request.item, level), 0) - song.have(level)) for song in songs)

    def is_done(self, songs: Iterable[Song], mine: Callable[[Cell], bool] = lambda _: True) -> bool:
        """Whether every level of every song, of `mine`, is at its goal."""
        return not any(
            mine((song.request.item, level)) and self.window(song, level) for song in songs for level in self.plans
        )

    def _alike(self, songs: Sequence[Song], level: int) -> list[tuple[list[Song], LevelSettings]]:
        """Unfinished songs, those together that are drawn alike."""
        groups: dict[LevelSettings, list[Song]] = {}
        for song in songs:
            if self.window(song, level):
                groups.setdefault(self.drawn(song.request, level), []).append(song)
        return [(group, settings) for settings, group in groups.items()]

    def _first(self, songs: Sequence[Song], level: int, settings: LevelSettings) -> tuple[Task | None, bool]:
        """The leftmost window of these songs that is ready, and whether no other song could join it."""
        windows = [(song, window) for song in songs if (window := self.window(song, level))]
        ready = [(song, window) for song, window in windows if self._is_ready(song, level, window)]
        if not ready:
            return None, False
        first = min((window for _, window in ready), key=_place)
        batch = tuple(song for song, window in ready if window == first)[: settings.max_batch_size]
        others = [window for song, window in windows if not any(song is chosen for chosen in batch)]
        late = any(window == first or _place(window) < _place(first) for window in others)
        return Task(level, first, batch, settings), len(batch) == settings.max_batch_size or not late

    def _is_ready(self, song: Song, level: int, window: Window) -> bool:
        ratio = self.plans[level].ratio
        return ratio is None or song.have(level + 1) * ratio >= window.start + self.plans[level].n_ctx


def _place(window: Window) -> tuple[int, int]:
    return window.start, window.given


def goals(
    songs: Iterable[Song], plans: Mapping[int, LevelPlan], until_samples: int | None = None
) -> dict[Cell, int]:  # fmt: skip
    """How far each level of each song goes: to its end, or as far as the codes above it will exist.

    plans: of the levels that are sampled; levels above them stay as they are. until_samples: windows that begin there or
    later are left out, unless those of a level below need them.
    """
    return {
        (song.request.item, level): goal
        for song in songs
        for level, goal in _goals(song, plans, until_samples).items()
    }  # fmt: skip


def _goals(song: Song, plans: Mapping[int, LevelPlan], until_samples: int | None) -> dict[int, int]:
    wanted: dict[int, int] = {}
    for level, plan in sorted(plans.items()):  # upwards: what is asked for, and what the level below needs
        until = plan.total(song.length_samples)
        if until_samples is not None:
            until = min(until, -(-until_samples // plan.samples_per_code))
        below = plans.get(level - 1)
        if below is not None and below.ratio is not None and wanted[level - 1]:
            until = max(until, -(-wanted[level - 1] // below.ratio))
        wanted[level] = next((end for end in _ends(song, plan) if end >= until), 0)
    found: dict[int, int] = {}
    for level, plan in sorted(plans.items(), reverse=True):  # downwards: what there will be to stand on
        ends = [end for end in _ends(song, plan) if end <= wanted[level]]
        if plan.ratio is not None:
            above = max(found.get(level + 1, 0), song.have(level + 1))
            ends = [end for end in ends if end <= above * plan.ratio]
        found[level] = max([song.have(level), *ends])
    return found


def _ends(song: Song, plan: LevelPlan) -> list[int]:
    """Where each window of a level ends, in codes."""
    total = plan.total(song.length_samples)
    return [min(start + plan.n_ctx, total) for start in window_starts(total, plan.n_ctx, plan.hop)]


def shares(items: Collection[int], levels: Collection[int], ranks: int) -> dict[Cell, int]:
    """Which process samples which level of which item.

    Items are spread first. Where there are fewer items than processes, those of an item share its levels out: the finest,
    which takes longest, goes to one of its own. A process more than items times levels has nothing to do.
    """
    items, finest_first = sorted(items), sorted(levels)
    groups = min(ranks, len(items))
    found = {}
    for place, item in enumerate(items):
        team = range(place % groups, ranks, groups)
        for nth, level in enumerate(finest_first):
            found[item, level] = team[min(nth, len(team) - 1)]
    return found
