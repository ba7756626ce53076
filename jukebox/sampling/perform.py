"""One process's part in a run: its windows, each published whole, and on the way what can be heard already."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from jukebox import files
from jukebox.parallel import launch
from jukebox.parallel.hps import LaunchHps
from jukebox.sampling.choir import parameters
from jukebox.sampling.exports import Seldom
from jukebox.sampling.levels import Song
from jukebox.sampling.parts import Part
from jukebox.sampling.progress import Display, Outlook
from jukebox.sampling.pulse import Pulse
from jukebox.sampling.schedule import Cell, Schedule, Task, goals, shares
from jukebox.sampling.walk import Listener, Made, walk

if TYPE_CHECKING:
    from jukebox.sampling.run import Session

log = logging.getLogger(__name__)

_FINISH_SEC = 10.0  # a window that will be finished by then is, before the program stops
_LOOK_SEC = 0.2  # how often is looked for what other processes have made


class Performance:
    """songs: all items of the run, with the codes that its folder holds; part: which of them are sampled now, and how far.

    The folder is what processes share: each reads from there the codes that its windows stand on.
    """

    def __init__(self, session: Session, part: Part, songs: Sequence[Song]) -> None:
        self.session, self.songs, self.singing = session, songs, part.songs(songs)
        self.comm, self.folder, self.exports, self.top = session.comm, session.folder, session.exports, session.top
        plans = {level: session.levels[level].plan for level in part.levels}
        everything = [(song.request.item, level) for song in songs for level in range(session.geometry.levels)]
        self.shares = {cell: cell[0] % self.comm.size for cell in everything}  # whom it is to decode
        self.shares |= shares(part.items, part.levels, self.comm.size)
        loaded = {level for item in part.items for level in plans if self._is_mine((item, level))}
        loaded |= {self.top} if session.times.due(songs) else set()
        self.choir = session.choir(loaded, songs)
        self.schedule = Schedule(
            plans, goals(self.singing, plans, part.until_samples), lambda request, level: session.settings(request)[level],
            self.choir.together,
        )  # fmt: skip
        part.check(songs, plans, self.schedule.goals, str(self.folder.root))
        self.pulse = Pulse(self.folder.trace, self.comm.rank, session.hps.section(LaunchHps).dist_timeout)
        self.seldom = Seldom()
        self._stamps: dict[Cell, int] = {}  # of the codes of others, as they were last read

    def events(self) -> Iterator[Made]:
        """See `Session.events`."""
        if launch.stop_requested():  # from here on a signal asks; it does not kill
            self._stop()
        self.trace = files.Appender(self.folder.trace(self.comm.rank))
        for song, level in self._mine(self.songs, range(self.session.geometry.levels)):
            if self.exports.is_whole(song, level):  # given, or finished by an earlier start
                self._sound(song, level)
        self._align(self.songs)
        sizes = {level: float(parameters(self.session.levels[level])) for level in self.schedule.plans}
        outlook = Outlook(self.schedule, sizes, self.shares)
        with Display(self.schedule, self.singing, outlook) as self.display:
            listener = Listener(self._begin, self._code, self._refresh)
            for made in walk(self.singing, self.schedule, self.choir.singer, self._is_mine, listener):
                self._publish(made)
                yield made
                if launch.stop_requested():
                    self._stop()
            self.comm.run_first(self._finish)

    def _is_mine(self, cell: Cell) -> bool:
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
        self.pulse.beat()
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
                self._sound(song, made.level)
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

    def _let_hear(self, *, last: bool = False) -> None:
        """Sounds of what there is so far, by their process; pages, and exports of whole levels, by the first.

        last: nothing more is sampled now.
        """
        for song, level in self._mine(self.songs, range(self.session.geometry.levels)):
            self._sound(song, level)
        if self.comm.is_first:
            self._look()
            self.exports.whole_levels(self.songs)
            self.exports.page(self.songs, last=last)

    def _sound(self, song: Song, level: int) -> None:
        self.pulse.beat()
        self.exports.sound(song, level)

    def _look(self) -> int:
        """Read what other processes have made of late; how many codes that are."""
        found = 0
        for song in self.songs:
            for level in self.schedule.plans:
                cell = song.request.item, level
                if self._is_mine(cell) or self._stamps.get(cell) == (stamp := self.folder.stamp(*cell)):
                    continue
                self._stamps[cell], before, codes = stamp, song.have(level), self.folder.load(*cell)
                if codes is not None and len(codes) > before:
                    song.codes[level] = codes
                    found += len(codes) - before
        return found

    def _refresh(self) -> None:
        """While nothing can be sampled here."""
        if launch.stop_requested():
            self._stop()
        self.pulse.beat()
        found = self._look()
        if found:
            self.display.refresh(found)
        else:
            self.pulse.check(rank for cell, rank in self._waited_for())
            time.sleep(_LOOK_SEC)
        if found and self.seldom.is_due():
            self.seldom.run(self._let_hear)

    def _waited_for(self) -> Iterator[tuple[Cell, int]]:
        """What other processes still have to sample or to decode, and who."""
        for song in self.songs:
            for level in range(self.session.geometry.levels):
                cell = song.request.item, level
                unsung = level in self.schedule.plans and self.schedule.window(song, level) is not None
                undecoded = self.exports.is_whole(song, level) and not self.folder.is_decoded(*cell)
                if (unsung or undecoded) and not self._is_mine(cell):
                    yield cell, self.shares[cell]

    def _finish(self) -> None:
        """Wait until everything is sampled and decoded, whoever does it; then the last exports. For the first process."""
        while any(True for _ in self._waited_for()):
            self._refresh()
        self._let_hear(last=True)

    def _stop(self) -> NoReturn:
        if self.comm.is_first:
            log.info(
                "Stopped. Nothing that was finished is lost; this goes on from there:\n  %s", self.session.command()
            )
            self._let_hear()
        raise SystemExit(launch.stop_code())
