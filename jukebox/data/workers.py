"""Worker processes that may crash or hang without taking the run along: decoders of strangers' files do both.

Workers come from a fork server: clean of MPI, CUDA and threads, started in milliseconds, on every Python version. They
leave when their parent is gone.
"""

import logging
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from jukebox.errors import DataError, UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_START_SEC = 120.0  # on a machine under load, a process may take long to import what it needs

log = logging.getLogger(__name__)


class WorkerDied(DataError):
    """A worker process ended while it worked on one task; the text says how."""


@dataclass(eq=False)
class _Worker:
    process: Any
    pipe: Connection
    ticket: int | None = None
    ready: bool = False  # False while it starts
    started_sec: float = 0.0


class Workers(Generic[Task, Result]):
    """Runs `work(task)` in `count` processes, or right here when `count` is 0; use as a context manager.

    `work` must be importable by name. `describe(task)` names a task in messages. Each task is answered by its result, by
    the UserError that it raised, or by WorkerDied if its process ended; a fresh process then takes the dead one's place.
    A task that takes longer than `timeout_sec` ends the run with a DataError that names it.
    """

    def __init__(
        self,
        work: Callable[[Task], Result],
        count: int,
        *,
        describe: Callable[[Task], str] = str,
        timeout_sec: float = 300.0,
    ) -> None:
        self._work, self._count, self._describe, self._timeout_sec = work, count, describe, timeout_sec
        self._workers: list[_Worker] = []
        self._waiting: deque[tuple[int, Task]] = deque()
        self._running: dict[int, Task] = {}
        self._answers: deque[tuple[int, Result | UserError]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()

    def submit(self, ticket: int, task: Task, *, first: bool = False) -> None:
        """Asks for a task to be done, before all that wait if `first`; `ticket` comes back with the answer."""
        (self._waiting.appendleft if first else self._waiting.append)((ticket, task))
        if self._count:
            self._assign()

    def take(self) -> tuple[int, Result | UserError]:
        """Waits for any one answer. Raises DataError on a time-out, RuntimeError for a fault in our own code."""
        if not self._count:
            ticket, task = self._waiting.popleft()
            try:
                return ticket, self._work(task)
            except UserError as error:
                return ticket, error
        while not self._answers:
            self._assign()
            busy = {worker.pipe: worker for worker in self._workers if worker.ticket is not None}
            assert busy, "nothing was submitted"
            oldest = min(busy.values(), key=self._deadline_sec)
            patience_sec = self._deadline_sec(oldest) - time.monotonic()
            ready = wait(list(busy), timeout=max(0.0, patience_sec))
            if not ready and patience_sec <= 0:
                assert oldest.ticket is not None
                if not oldest.ready:
                    raise RuntimeError(f"a worker process did not start within {_START_SEC:g} s")
                name = self._describe(self._running[oldest.ticket])
                raise DataError(f"{name}: not read within {self._timeout_sec:g} s. Is its disk or network alive?")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                self._collect(busy[pipe])
        return self._answers.popleft()

    def _deadline_sec(self, worker: _Worker) -> float:
        return worker.started_sec + (self._timeout_sec if worker.ready else _START_SEC)

    def _assign(self) -> None:
        """Gives waiting tasks to idle workers, starting new ones up to `count`."""
        while self._waiting:
            worker = next((worker for worker in self._workers if worker.ticket is None), None)
            if worker is None:
                if len(self._workers) == self._count:
                    return
                worker = self._start()
            ticket, task = self._waiting.popleft()
            worker.ticket, worker.started_sec = ticket, time.monotonic()
            self._running[ticket] = task
            try:
                worker.pipe.send(task)
            except OSError:  # it died while idle; the task is not to blame
                self._drop(worker)
                self._waiting.appendleft((ticket, task))

    def _collect(self, worker: _Worker) -> None:
        assert worker.ticket is not None
        ticket, task = worker.ticket, self._running[worker.ticket]
        try:
            answer, fault = worker.pipe.recv()
        except (EOFError, OSError):
            code = self._drop(worker)
            if not worker.ready:
                raise RuntimeError(f"a worker process could not start (exit code {code})") from None
            del self._running[ticket]
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            log.warning("a worker process died (%s) on %s; a new one takes its place", how, self._describe(task))
            self._answers.append((ticket, WorkerDied(f"the process that read it died ({how})")))
            return
        if not worker.ready:
            worker.ready, worker.started_sec = True, time.monotonic()
            return
        del self._running[ticket]
        if fault:
            raise RuntimeError(f"a worker process failed on {self._describe(task)}:\n{fault}")
        worker.ticket = None
        self._answers.append((ticket, answer))

    def _drop(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        worker.process.join()
        worker.pipe.close()
        return int(worker.process.exitcode)

    def _start(self) -> _Worker:
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload([self._work.__module__])
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """The life of a worker: tasks in, answers out, until the other side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the run, which then ends us
        signal.signal(number, signal.SIG_IGN)
    try:
        pipe.send((None, ""))  # ready: from here on the time of a task counts
        while True:
            task = pipe.recv()
            try:
                pipe.send((work(task), ""))
            except UserError as error:
                pipe.send((error, ""))
            except (EOFError, BrokenPipeError):
                raise
            except Exception:
                pipe.send((None, traceback.format_exc()))
    except (EOFError, OSError):
        return
