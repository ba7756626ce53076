"""The one way out of a program, for one process or many; used through `launch`.

Measured (MPICH 5, Open MPI 5): an exception or `sys.exit` on one rank hangs all others for ever, because MPI is
finalised at interpreter exit and that is collective. So every way out ends in `leave`: the ranks meet and finalise
together, or MPI_Abort ends them all. SIGKILL needs no help of ours.
"""

import faulthandler
import functools
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jukebox.errors import LaunchError, UserError
from jukebox.files import PathLike, printable, publish_json
from jukebox.parallel.comm import DistComm, PeerLost
from jukebox.parallel.mpi import load_mpi
from jukebox.parallel.world import job, world

T = TypeVar("T")

_MEETING_SEC = 2.0  # a failing rank waits for the others to fail in the same way
_SILENCE_SEC = 1.0  # a rank that lost its peers waits for the culprit to speak first
_ROLL_CALL_SEC = 2.0
_LAST_RESORT_SEC = 4.0  # then SIGKILL does what MPI_Abort did not
_MESSAGE_BYTES = 2048  # of each rank, at a meeting


def guard(main: Callable[[], int | None]) -> NoReturn:
    """Run a program and end its process, and those of all other ranks, whatever happens.

    Exit codes: what `main` returns or gives to `sys.exit`; 1 or 2 for a UserError (one message, no traceback); 1 for
    any other exception (cause, then traceback); 130 for an interrupt.
    """
    job.guarded = True
    faulthandler.enable()
    threading.excepthook = lambda hook: _fail(hook.exc_value or hook.exc_type())
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # mpiexec gives us a pipe; odd file names must not stop a message
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = main() or 0
    except SystemExit as asked:
        if isinstance(asked.code, str):
            say(asked.code)
        # Perhaps this rank's doing alone: no long wait for the others.
        leave(asked.code if isinstance(asked.code, int) else int(asked.code is not None), _MEETING_SEC)
    except KeyboardInterrupt:
        if world().rank == 0:
            say("Interrupted.")
        leave(130, _MEETING_SEC)
    except BaseException as error:
        _fail(error)
    leave(code, None if code == 0 else _MEETING_SEC)


def guarded(main: Callable[[], int | None]) -> Callable[[], NoReturn]:
    """Make a function a program: whoever calls it, a script or a console script, its process ends as in `guard`."""

    @functools.wraps(main)
    def program() -> NoReturn:
        guard(main)

    return program


def set_phase(text: str) -> None:
    """Say what this process is doing now (a step, a file, a window), for reports of failures."""
    job.phase = text


def set_run_folder(folder: PathLike) -> None:
    """Put reports of failures into `folder`/errors; clears this rank's earlier one."""
    job.run_folder = Path(folder)
    with suppress(OSError):
        _report_path(world().rank).unlink(missing_ok=True)


# --- failures: who was first, and what is said ------------------------------------------------------------------------


def _fail(error: BaseException) -> NoReturn:
    if isinstance(error, UserError):
        _write_report(error)
        leave(error.exit_code, _MEETING_SEC, str(error))
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        leave(141, 0)  # `| head` has seen enough
    comm = job.comm if isinstance(job.comm, DistComm) else None
    if comm is not None and isinstance(error, PeerLost):
        if error.timed_out:
            _name_the_absent(comm, error)
        _wait_for_culprit(comm)
    _write_report(error)
    cause = _cause(error)
    verdict = None if comm is None else _bounded(lambda: comm.first_failure(cause), 2.0)
    if verdict is None or verdict[0]:
        say(f"{_prefix()}{cause}\n{''.join(traceback.format_exception(error))}")
    else:
        rank, _, first_cause = verdict[1].partition(" ")
        time.sleep(_SILENCE_SEC)  # it shall speak first, and its exit code count
        report = f"; see {_report_path(int(rank))}" if job.run_folder else ""
        say(f"{_prefix()}stopped because rank {rank} failed: {first_cause}{report}")
    leave(1, wait_sec=0)


def _wait_for_culprit(comm: DistComm) -> None:
    """A lost connection is the second failure of a run; give the first one time to be reported."""
    end = time.monotonic() + _SILENCE_SEC
    while time.monotonic() < end and not _bounded(comm.known_failure, _SILENCE_SEC):
        time.sleep(0.05)


def _name_the_absent(comm: DistComm, error: PeerLost) -> None:
    """Say which ranks a timeout waited for: all others stand at the same error and answer."""
    absent = _bounded(lambda: comm.roll_call(_ROLL_CALL_SEC), 2 * _ROLL_CALL_SEC)
    if absent is None:
        absent = [0]  # it keeps the board
    if absent:
        ranks = ", ".join(map(str, absent))
        error.args = (f"no answer from rank {ranks}: frozen, or busy for longer than --dist_timeout. {error}",)


def _bounded(ask: Callable[[], T], wait_sec: float) -> T | None:
    """An answer from a board that may be gone with its keeper; None then."""
    answers: list[T] = []

    def run() -> None:
        with suppress(RuntimeError):
            answers.append(ask())

    asker = threading.Thread(target=run, daemon=True)
    asker.start()
    asker.join(wait_sec)
    return answers[0] if answers else None


def _prefix() -> str:
    here = world()
    return f"[rank {here.rank}] " if here.size > 1 else ""


def _cause(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    cause = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return cause + (f" (during {job.phase})" if job.phase else "")


def say(text: str) -> None:
    """Write to the terminal at one stroke, so that ranks do not mix within a line."""
    with suppress(OSError, ValueError):
        sys.stderr.write("\n".join(printable(line) for line in text.rstrip("\n").split("\n")) + "\n")
        sys.stderr.flush()


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that no one reads any more; if so it leads nowhere from now on."""
    with suppress(OSError, ValueError, AttributeError):  # no stdout, or no poll on this system
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
    return False


def _report_path(rank: int) -> Path:
    assert job.run_folder is not None
    return job.run_folder / "errors" / f"rank{rank}.json"


def _write_report(error: BaseException) -> None:
    if job.run_folder is None:
        return
    here = world()
    report = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "rank": here.rank,
        "size": here.size,
        "phase": job.phase,
        "cause": _cause(error),
        "traceback": traceback.format_exception(error),
        "argv": sys.argv,
    }
    path = _report_path(here.rank)
    with suppress(UserError, OSError):  # a full disk is no reason to hang
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_json(path, report, indent=1)


# --- leaving ----------------------------------------------------------------------------------------------------------


def leave(code: int, wait_sec: float | None, message: str = "") -> NoReturn:
    """End this process with `code`, and all others with it.

    The ranks meet within `wait_sec` (None: however long it takes) and end in order, or are stopped.
    `message` is a UserError's. It is often the same on all ranks: rank 0 says it, the others only what differs.
    """
    if not job.leaving.acquire(blocking=False):
        time.sleep(3600)  # another thread is on its way out and takes us with it
    here = world()
    if message and here.rank == 0:
        say(message)
    if here.size == 1:
        _exit(code)
    if wait_sec is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # we are leaving; an impatient Ctrl-C would only get in the way
    if here.launcher == "torchrun":
        _leave_torchrun(code, wait_sec, message)
    else:
        _leave_mpi(code, wait_sec, message)


def _leave_torchrun(code: int, wait_sec: float | None, message: str) -> NoReturn:
    """Torchrun's agent stops the other processes soon after one has failed."""
    if message and world().rank > 0:
        time.sleep(_SILENCE_SEC)  # rank 0 may be saying the same
        say(f"{_prefix()}{message}")
    comm = job.comm
    if code == 0 and isinstance(comm, DistComm):
        if not comm.meet(wait_sec):
            _exit(1, at_once=True)  # alone: a stray sys.exit(0)
        if comm.is_first:
            time.sleep(0.2)  # it may keep the board that the others still read
        comm.close()
    _exit(code, at_once=code != 0)


def _leave_mpi(code: int, wait_sec: float | None, message: str) -> NoReturn:
    """A launcher kills what it can once a process of its job has failed, its last words included."""
    if code == 0 and not job.mpi_used:  # --help and the like, on every rank
        _exit(0)
    last_resort = threading.Timer((wait_sec or 0) + _LAST_RESORT_SEC, os.kill, (os.getpid(), signal.SIGKILL))
    last_resort.daemon = True
    if wait_sec is not None:
        last_resort.start()
    try:
        mpi = load_mpi()
    except LaunchError:
        _exit(code, at_once=True)
    _drain()
    met = None if wait_sec == 0 else _meet(mpi, code, message, wait_sec)
    if met is None:
        if wait_sec and not message:
            say(f"{_prefix()}left with exit code {code} while others went on; all are stopped")
        elif message and world().rank > 0:
            say(f"{_prefix()}{message}")
        _abort(mpi, code or 1)
    codes, messages = met
    if world().rank == 0:
        for rank, text in enumerate(messages):
            if text and text != messages[0]:
                say(f"[rank {rank}] {text}")
    if any(codes):
        # One of them stops all: the first to exit by itself would have the others killed, with another exit code.
        if world().rank > 0:
            time.sleep(_LAST_RESORT_SEC)
        _abort(mpi, next(filter(None, codes)))
    if job.comm is not None:
        with suppress(RuntimeError):
            job.comm.close()
    mpi.Finalize()
    last_resort.cancel()
    _exit(0)


def _meet(mpi: Any, code: int, message: str, wait_sec: float | None) -> tuple[list[int], list[str]] | None:
    """Wait, without spinning, until every rank is here: all exit codes and messages, or None when time runs out."""
    size = mpi.COMM_WORLD.size
    mine = bytes([code & 0xFF]) + message.encode("utf-8", "replace")[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0")
    everyones = bytearray(len(mine) * size)
    request = mpi.COMM_WORLD.Iallgather([mine, mpi.BYTE], [everyones, mpi.BYTE])
    end = None if wait_sec is None else time.monotonic() + wait_sec
    while not request.Test():
        if end is not None and time.monotonic() > end:
            return None
        time.sleep(0.02)
    parts = [everyones[at : at + len(mine)] for at in range(0, len(everyones), len(mine))]
    return [part[0] for part in parts], [part[1:].rstrip(b"\0").decode("utf-8", "replace") for part in parts]


def _abort(mpi: Any, code: int) -> NoReturn:
    _drain()
    _stop_children()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # all is said; MPICH would add a line without content
    mpi.COMM_WORLD.Abort(code)
    _exit(code, at_once=True)  # MPICH comes back from there when another rank was faster


def _drain() -> None:
    """Wait until the launcher has taken what we wrote: what still is in the pipe when it stops a job is lost."""
    end = time.monotonic() + _SILENCE_SEC
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, ImportError, AttributeError):  # not a pipe
            from fcntl import ioctl
            from termios import FIONREAD

            stream.flush()
            while int.from_bytes(ioctl(stream.fileno(), FIONREAD, bytes(4)), sys.byteorder) and time.monotonic() < end:
                time.sleep(0.01)
    time.sleep(0.05)  # and has passed it on


def _exit(code: int, *, at_once: bool = False) -> NoReturn:
    """End this process: through the interpreter's own end where nothing there can block, else at once."""
    if not at_once and threading.current_thread() is threading.main_thread():
        raise SystemExit(code)
    _stop_children()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _stop_children() -> None:
    """Loader workers notice by themselves within seconds; whoever restarts at once need not wait for that."""
    if multiprocessing := sys.modules.get("multiprocessing"):
        for child in multiprocessing.active_children():
            child.terminate()
