"""How far a run is and when it will be done: for the level at work, and for all levels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Self

from jukebox import runlog
from jukebox.sampling.levels import Song
from jukebox.sampling.schedule import Cell, Schedule, Task
from jukebox.sampling.walk import Made


class Outlook:
    """Estimates from what was measured in this start; a level that was not sampled yet costs as its size says.

    sizes: how much one code of each level costs, in any unit; shares: who samples what (`schedule.shares`).
    """

    def __init__(self, schedule: Schedule, sizes: Mapping[int, float], shares: Mapping[Cell, int]) -> None:
        self.schedule, self.sizes, self.shares = schedule, sizes, shares
        self._codes = dict.fromkeys(sizes, 0)
        self._seconds = dict.fromkeys(sizes, 0.0)

    def made(self, event: Made) -> None:
        """Learn from a finished window."""
        self._codes[event.level] += (event.window.length - event.window.given) * len(event.songs)
        self._seconds[event.level] += event.seconds

    def seconds_per_code(self, level: int) -> float | None:
        """What a code of a level takes; None while nothing is known at all."""
        if self._codes[level]:
            return self._seconds[level] / self._codes[level]
        known = [l for l, codes in self._codes.items() if codes]
        units = sum(self.sizes[l] * self._codes[l] for l in known)
        return sum(self._seconds[l] for l in known) / units * self.sizes[level] if units else None

    def level_left(self, songs: Sequence[Song], level: int) -> float | None:
        """Seconds until a level is finished, where it is worked on without a break."""
        return self._left(songs, [level])

    def left(self, songs: Sequence[Song]) -> float | None:
        """Seconds until everything is finished: those of the process that has most to do."""
        return self._left(songs, list(self.schedule.plans))

    def _left(self, songs: Sequence[Song], levels: Sequence[int]) -> float | None:
        each: dict[int, float] = {}
        for level in levels:
            cost = self.seconds_per_code(level)
            if cost is None:
                return None
            for song in songs:
                rank = self.shares[song.request.item, level]
                each[rank] = each.get(rank, 0.0) + self.schedule.missing([song], level) * cost
        return max(each.values(), default=0.0)


class Display:
    """The one line of a run: `all levels: 5200/144690 code, level 2: 5200/6890, 3 min left, 10.5 code/s, 3.2 h left`."""

    def __init__(self, schedule: Schedule, songs: Sequence[Song], outlook: Outlook) -> None:
        self.schedule, self.songs, self.outlook = schedule, songs, outlook
        levels = sorted(schedule.plans, reverse=True)
        self.total = {level: sum(schedule.goals.get((s.request.item, level), 0) for s in songs) for level in levels}
        start = sum(self._have(level) for level in levels)
        label = f"level {levels[0]}" if len(levels) == 1 else f"{len(levels)} levels"
        self.bar = runlog.Progress(sum(self.total.values()), "code", label, start=start)
        self._level, self._live, self._window, self._began = -1, 0, 0, 0.0
        self._begun = False

    def begin(self, task: Task) -> None:
        """A window begins."""
        self._level, self._live, self._began = task.level, 0, time.monotonic()
        self._window = (task.window.length - task.window.given) * len(task.songs)

    def code(self, count: int) -> None:
        """So many codes more."""
        if not self._begun:  # priors were read, and perhaps compiled, until now
            self.bar.restart()
            self._begun = True
        self._live += count
        self.bar.update(count)

    def made(self, event: Made) -> None:
        """A window is finished."""
        self._live = 0
        self.outlook.made(event)
        self._note()

    def refresh(self, elsewhere: int) -> None:
        """Other processes have sampled so many codes."""
        self.bar.update(elsewhere)
        self._note()

    def _have(self, level: int) -> int:
        return self.total[level] - self.schedule.missing(self.songs, level)

    def _note(self) -> None:
        level = self._level if self._level in self.total else max(self.total)
        left, whole = self.outlook.level_left(self.songs, level), self.outlook.left(self.songs)
        text = f"level {level}: {self._have(level)}/{self.total[level]}"
        if left:
            text += f", {runlog.duration_text(left)} left"
        self.bar.note(text if len(self.total) > 1 else "", left_sec=whole)

    def window_left(self) -> float:
        """Seconds that the window under way will still take, as fast as it went so far."""
        took = time.monotonic() - self._began
        return took * (self._window / self._live - 1) if self._live else float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
