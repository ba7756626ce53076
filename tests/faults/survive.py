"""Programs that are killed and started again, as people and machines do: the harness of the fault tests."""

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GONE_SEC = 10  # in which all processes of a job must be gone


def patience() -> float:
    """How much longer things may take where more programs run than there are cores."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass(frozen=True)
class Job:
    """A command for `n` processes of one mpiexec (0: none), run in the root of the repository."""

    n: int
    args: Sequence[object]
    root: Path
    mpiexec: str
    timeout_sec: float = 120.0

    def at_fault(self, fault: str) -> int:
        """Run with JUKEBOX_FAULT; the exit code."""
        with self._start({"JUKEBOX_FAULT": fault}) as process:
            process.communicate(timeout=self.timeout_sec * patience())
        return process.returncode

    def killed_after(self, delay_sec: float, rank: int = 0) -> int:
        """Kill one rank after a while, if it still runs; the exit code of the job, which must end soon."""
        with self._start({}) as process:
            time.sleep(delay_sec)
            for pid in ranks_of(process.pid, rank) if self.n else [process.pid]:
                os.kill(pid, signal.SIGKILL)
            process.communicate(timeout=GONE_SEC)
        return process.returncode

    def ends(self, fault: str) -> "subprocess.CompletedProcess[str]":
        """Run with JUKEBOX_FAULT; exit code and what was said."""
        with self._start({"JUKEBOX_FAULT": fault}) as process:
            out, err = process.communicate(timeout=self.timeout_sec * patience())
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def killed_when(self, happened: Callable[[], bool], rank: int = 0) -> int:
        """Kill one rank (-1: the launcher) as soon as something has happened; the exit code of the job, which must end soon.
        A job that has ended before is left alone."""
        return self.told(happened, signal.SIGKILL, rank, GONE_SEC)[0]

    def told(
        self, happened: Callable[[], bool], number: int, rank: int = -1, gone_sec: float | None = None
    ) -> tuple[int, str]:  # fmt: skip
        """Send a signal to one rank, or the launcher, once something has happened; exit code and what was said."""
        with self._start({}) as process:
            found: list[int] = []
            while process.poll() is None and not (happened() and found):
                found = list(ranks_of(process.pid, rank)) if self.n and rank >= 0 else [process.pid]
                time.sleep(0.005)
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            _, err = process.communicate(timeout=gone_sec * patience() if gone_sec else self.timeout_sec * patience())
        return process.returncode, err

    def to_the_end(self) -> str:
        """Run undisturbed; what it printed. It must succeed."""
        with self._start({}) as process:
            out, err = process.communicate(timeout=self.timeout_sec * patience())
        assert process.returncode == 0, f"{out}\n{err}"
        return out

    def survives(self, kills: int, most_sec: float, seed: int = 0) -> str:
        """Kill any rank at any moment, so many times; then run to the end."""
        chance = random.Random(seed)
        for _ in range(kills):
            self.killed_after(chance.uniform(0, most_sec), chance.randrange(max(1, self.n)))
        return self.to_the_end()

    def _start(self, env: Mapping[str, str]) -> "subprocess.Popen[str]":
        command = [*([self.mpiexec, "-n", str(self.n)] if self.n else []), sys.executable, *map(str, self.args)]
        variables = {**os.environ, "PYTHONPATH": str(self.root), **env}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.root, env=variables, stdout=pipe, stderr=pipe, text=True)


@dataclass(frozen=True)
class Forked:
    """A program as a child of this process: like a Job of one process, without the seconds that importing takes."""

    main: Callable[[], int]

    def at_fault(self, fault: str) -> int:
        """Run with JUKEBOX_FAULT; the exit code, negative for a signal."""
        return self._code(self._start({"JUKEBOX_FAULT": fault}))

    def killed_when(self, happened: Callable[[], bool]) -> int:
        """Kill it as soon as something has happened; the exit code. One that has ended before is left alone."""
        pid = self._start({})
        while not happened():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        return self._code(pid)

    def to_the_end(self) -> None:
        """Run undisturbed. It must succeed."""
        assert self._code(self._start({})) == 0

    def _start(self, env: Mapping[str, str]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.environ.update(env)
            code = self.main()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    @staticmethod
    def _code(pid: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ranks_of(mpiexec_pid: int, rank: int) -> list[int]:
    """The process of a rank, when it has come so far."""
    return [pid for pid in descendants(mpiexec_pid) if f"PMI_RANK={rank}" in _environment(pid)][:1]


def descendants(pid: int) -> Iterator[int]:
    """All processes below one."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
