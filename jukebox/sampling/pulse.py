"""Whether the other processes of a run still live: each touches its trace while it works."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from jukebox.errors import LaunchError

_EVERY_SEC = 1.0


class Pulse:
    """trace: the file of a rank; timeout_sec: how long a process may be silent while others wait for it.

    Clocks of several machines need not agree: what counts is when a file was last seen to change.
    """

    def __init__(self, trace: Callable[[int], Path], rank: int, timeout_sec: float) -> None:
        self._trace, self._own, self._timeout_sec = trace, trace(rank), timeout_sec
        self._beaten = 0.0
        self._seen: dict[int, tuple[int, float]] = {}  # of a rank: time stamp of its file, and when that was new

    def beat(self) -> None:
        """Show that this process lives; cheap enough for every code."""
        now = time.monotonic()
        if now - self._beaten > _EVERY_SEC:
            self._beaten = now
            os.utime(self._own)

    def check(self, ranks: Iterable[int]) -> None:
        """Raises LaunchError naming the processes, of those that are waited for, that do nothing any more."""
        now, silent = time.monotonic(), []
        for rank in sorted(set(ranks)):
            try:
                stamp = self._trace(rank).stat().st_mtime_ns
            except FileNotFoundError:  # it is still on its way
                stamp = 0
            if rank not in self._seen or self._seen[rank][0] != stamp:
                self._seen[rank] = stamp, now
            elif now - self._seen[rank][1] > self._timeout_sec:
                silent.append(str(rank))
        if silent:
            raise LaunchError(
                f"no sign of life from rank {', '.join(silent)} for {self._timeout_sec:g} s (--dist_timeout): frozen, or "
                "busy for longer. Nothing that was finished is lost; the same command goes on."
            )
