"""Walks a schedule: one event after every window of every level, whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jukebox.sampling.levels import LevelSinger, Song
from jukebox.sampling.memory import Room
from jukebox.sampling.plan import Window
from jukebox.sampling.requests import LevelSettings
from jukebox.sampling.schedule import Cell, Schedule, Task

_LOOK_EVERY_SEC = 0.2


@dataclass(frozen=True)
class Made:
    """A window that was just sampled: its songs have its codes now. began: seconds since 1970."""

    level: int
    window: Window
    songs: tuple[Song, ...]
    began: float
    seconds: float


@dataclass
class Listener:
    """Who is told what happens between events; by default nobody. begin: before a window; code: after each of its codes,
    with how many songs; refresh: while nothing is ready, to fetch what other processes have made."""

    begin: Callable[[Task], None] = lambda _: None
    code: Callable[[int], None] = lambda _: None
    refresh: Callable[[], None] = lambda: time.sleep(_LOOK_EVERY_SEC)


def walk(
    songs: Sequence[Song], schedule: Schedule, singer: Callable[[int, LevelSettings], LevelSinger],
    mine: Callable[[Cell], bool] = lambda _: True, listener: Listener | None = None,
) -> Iterator[Made]:  # fmt: skip
    """Sample all windows of `mine`, in the order of the schedule. The songs grow in place.

    singer: of a level, for songs that are drawn with these settings. Leave the generator at any event, and walk again
    with the same songs: it goes on from there.
    """
    listener = listener or Listener()
    rooms = {level: Room(level) for level in schedule.plans}
    while True:
        task = schedule.next(songs, mine)
        if task is None:
            if schedule.is_done(songs, mine):
                return
            listener.refresh()
            continue
        listener.begin(task)
        began, clock = time.time(), time.monotonic()
        voice, window = singer(task.level, task.settings), task.window
        rooms[task.level].share_out(task.songs, lambda part: voice.extend(part, window, listener.code))  # noqa: B023
        yield Made(task.level, task.window, task.songs, began, time.monotonic() - clock)
