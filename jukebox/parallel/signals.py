"""Being asked to stop: the first signal raises a flag, a second one leaves at once."""

import os
import signal
import threading
import time
from typing import cast

from jukebox.parallel.way_out import leave, say
from jukebox.parallel.world import job, world

_STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_SAME_SIGNAL_SEC = 0.5  # a terminal and a launcher may both pass on one Ctrl-C


def stop_requested() -> bool:
    """Whether SIGTERM, SIGINT or SIGUSR1 asked this process to stop at its next safe point.

    From the first call on these signals raise this flag only, and a second one leaves at once; before, they act as
    usual, so a program that never asks can be interrupted anywhere. Outside `guard` nothing changes: a notebook keeps
    its Ctrl-C. Ranks must agree: `comm.any(stop_requested())`.
    """
    if job.guarded and not job.signals_watched and threading.current_thread() is threading.main_thread():
        _watch()
    return job.stop_signal != 0


def stop_code() -> int:
    """The exit code of a run that was asked to stop: 130 after Ctrl-C here, else 143."""
    return 130 if job.stop_signal == signal.SIGINT else 143


def _watch() -> None:
    # A handler in Python waits until the main thread comes out of a collective; a thread on the wakeup pipe does not.
    job.signals_watched = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_read, args=(reader,), name="signals", daemon=True).start()


def _read(reader: int) -> None:
    first_sec = 0.0
    while received := os.read(reader, 1):
        if received[0] not in _STOP_SIGNALS:
            continue
        if not job.stop_signal:
            job.stop_signal, first_sec = received[0], time.monotonic()
            if world().rank == 0:
                say(f"{signal.Signals(received[0]).name}: stopping at the next safe point; once more leaves at once.")
        elif time.monotonic() - first_sec > _SAME_SIGNAL_SEC:
            leave(stop_code(), wait_sec=0)


# A forked loader worker must not answer for the run: not to signals, not by ending it. It shares the wakeup pipe, so
# signals wait until it has let go of it.

_masks: list[set[signal.Signals]] = []  # of forks under way; a list, because threads may fork too


def _before_fork() -> None:
    _masks.append(cast(set[signal.Signals], signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)))


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _after_fork_in_child() -> None:
    if job.signals_watched:
        signal.set_wakeup_fd(-1)
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, but its parent decides
    if job.guarded:
        threading.excepthook = threading.__excepthook__
    job.renew()
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
