"""What all tests share: one thread, the root of the repository, programs run under a real mpiexec."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from jukebox.parallel.world import job

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes in

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job; programs started here would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(autouse=True)
def one_program_per_test() -> Iterator[None]:
    """A test that runs a program here, in this process, leaves no connection to the next one."""
    job.comm = None
    yield
    job.comm = None


@dataclass(frozen=True)
class Ran:
    """What a program left: exit code, stdout, stderr, and how long all its processes took to end."""

    code: int
    out: str
    err: str
    seconds: float


@pytest.fixture(scope="session")
def jukebox_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def mpiexec() -> str:
    if MPIEXEC is None:
        pytest.skip("no mpiexec here")
    return MPIEXEC


@pytest.fixture(scope="session")
def run_mpi(mpiexec: str) -> Callable[..., Ran]:
    """`run_mpi(n, args)`: `python args...` as n processes of one mpiexec, or plainly with n = 0.

    `env` adds variables, or with None takes them away.
    """

    def run(n: int, args: Sequence[object], timeout: float = 60, env: Mapping[str, str | None] | None = None) -> Ran:
        command = [*([mpiexec, "-n", str(n)] if n else []), sys.executable, *map(str, args)]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        wanted = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})}
        variables = {name: value for name, value in wanted.items() if value is not None}
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    return run
