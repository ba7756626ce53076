"""One process's part in a run: its windows, each published whole, and on the way what can be heard already."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from jukebox.parallel import launch
from jukebox.sampling.choir import parameters
from jukebox.sampling.exports import Seldom
from jukebox.sampling.levels import Song
from jukebox.sampling.progress import Display, Outlook
from jukebox.sampling.schedule import Schedule, Task, goals, shares
from jukebox.sampling.walk import Listener, Made, walk

if TYPE_CHECKING:
    from jukebox.sampling.run import Session

log = logging.getLogger(__name__)

_FINISH_SEC = 10.0  # a window that will be finished by then is, before the program stops
_LOOK_SEC = 0.2  # how often is looked for what other processes have made


class Performance:
    """order: levels to sample; songs: all items of the run, with the codes that its folder holds.

    The folder is what processes share: each reads from there the codes that its windows stand on.
    """

    def __init__(self, session: Session, order: Sequence[int], songs: Sequence[Song]) -> None:
        self.session, self.songs, self.order = session, songs, order
        self.comm, self.folder, self.exports, self.top = session.comm, session.folder, session.exports, session.top
        plans = {level: session.levels[level].plan for level in order}
        everything = range(session.geometry.levels)
        self.shares = shares([song.request.item for song in songs], everything, self.comm.size)
        mine = {level for (_, level), rank in self.shares.items() if rank == self.comm.rank}
        self.choir = session.choir(mine & set(session.levels), len(songs))
        self.schedule = Schedule(
            plans, goals(songs, plans), lambda request, level: session.settings(request)[level], self.choir.together
        )  # fmt: skip
        self.seldom = Seldom()

    def events(self) -> Iterator[Made]:
        """See `Session.events`."""
        for song, level in self._mine(self.songs, range(self.session.geometry.levels)):
            if self.exports.is_whole(song, level):  # given, or finished by an earlier start
                self.exports.sound(song, level)
        self._align(self.songs)
        self.trace = self.folder.trace(self.comm.rank)
        sizes = {level: float(parameters(self.session.levels[level])) for level in self.schedule.plans}
        outlook = Outlook(self.schedule, sizes, self.shares)
        with Display(self.schedule, self.songs, outlook) as self.display:
            listener = Listener(self._begin, self._code, self._refresh)
            for made in walk(self.songs, self.schedule, self.choir.singer, self._is_mine, listener):
                self._publish(made)
                yield made
                if launch.stop_requested():
                    self._stop()
            self.comm.run_first(self._finish)

    def _is_mine(self, cell: tuple[int, int]) -> bool:
        return self.shares[cell] == self.comm.rank

    def _mine(self, songs: Sequence[Song], levels: Sequence[int]) -> Iterator[tuple[Song, int]]:
        return ((song, level) for level in levels for song in songs if self._is_mine((song.request.item, level)))

    # -------------------------------------------------------------------------------------------------- windows

    def _begin(self, task: Task) -> None:
        launch.set_phase(f"level {task.level}, window {task.window.start}")
        self.display.begin(task)
        self._record("begin", task, time=time.time())

    def _code(self, count: int) -> None:
        self.display.code(count)
        if launch.stop_requested() and self.display.window_left() > _FINISH_SEC:
            self._stop()

    def _publish(self, made: Made) -> None:
        """Codes first: they are the run. All else can be made again from them."""
        began = time.perf_counter()
        self.folder.save(made.songs, made.level)
        self._record(
            "end", made, time=made.began + made.seconds, seconds=made.seconds, publish_ms=1e3 * (time.perf_counter() - began)
        )  # fmt: skip
        self.display.made(made)
        if made.level == self.top:
            self._align(made.songs)
        for song in made.songs:
            if self.exports.is_whole(song, made.level):
                self.exports.sound(song, made.level)
        if self.seldom.is_due():
            self.seldom.run(self._let_hear)

    def _record(self, what: str, of: Task | Made, **values: float) -> None:
        items = [song.request.item for song in of.songs]
        window = {"start": of.window.start, "length": of.window.length, "given": of.window.given}
        values = {name: round(value, 4) for name, value in values.items()}
        line = {"what": what, "level": of.level, "items": items, **window, "rank": self.comm.rank, **values}
        self.trace.append(json.dumps(line).encode() + b"\n")

    def _align(self, songs: Sequence[Song]) -> None:
        due = [song for song, _ in self._mine(self.session.times.due(songs), [self.top])]
        if due:
            self.session.times.align(*self.choir.prior(self.top), due)

    # ---------------------------------------------------------------------------------------- what can be heard

    def _let_hear(self) -> None:
        """Sounds of what there is so far, by their process; pages, and exports of whole levels, by the first."""
        for song, level in self._mine(self.songs, range(self.session.geometry.levels)):
            self.exports.sound(song, level)
        if self.comm.is_first:
            self._look()
            self.exports.whole_levels(self.songs)
            self.exports.page(self.songs)

    def _look(self) -> int:
        """Read what other processes have made of late; how many codes that are."""
        found = 0
        for song in self.songs:
            for level in self.schedule.plans:
                if not self._is_mine((song.request.item, level)):
                    before = song.have(level)
                    codes = self.folder.load(song.request.item, level)
                    if codes is not None and len(codes) > before:
                        song.codes[level] = codes
                        found += len(codes) - before
        return found

    def _refresh(self) -> None:
        """While nothing can be sampled here."""
        if launch.stop_requested():
            self._stop()
        found = self._look()
        if found:
            self.display.refresh(found)
        else:
            time.sleep(_LOOK_SEC)
        if found and self.seldom.is_due():
            self.seldom.run(self._let_hear)

    def _finish(self) -> None:
        """Wait until everything is sampled and decoded, whoever does it; then the last exports. For the first process."""
        while not self.schedule.is_done(self.songs) or not self._all_decoded():
            self._refresh()
        self._let_hear()

    def _all_decoded(self) -> bool:
        return all(
            self.folder.is_decoded(song.request.item, level)
            for song in self.songs
            for level in self.schedule.plans
            if self.exports.is_whole(song, level)
        )  # fmt: skip

    def _stop(self) -> NoReturn:
        if self.comm.is_first:
            log.info(
                "Stopped. Nothing that was finished is lost; this goes on from there:\n  %s", self.session.command()
            )
            self._let_hear()
        raise SystemExit(launch.stop_code())
