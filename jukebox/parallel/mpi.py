"""MPI, for processes that it started: the library, and what to say when it does not belong to the launcher."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from jukebox.errors import LaunchError
from jukebox.parallel.world import job, world

_LAUNCHER_NAMES = ("mpiexec", "mpirun", "prterun", "orterun", "srun", "slurmstepd")
_LIBRARY_NAMES = ("libmpi.", "libmpi_abi.", "libmpich.")


def load_mpi() -> Any:
    """`mpi4py.MPI`, which starts MPI when first imported; raises LaunchError where that cannot be.

    Never imported at the top of a module: loader workers that import it again would start MPI anew and die.
    """
    os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")  # MPICH; we have said what there is to say
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"Started by mpiexec as {world().size} processes, but mpi4py cannot be used: {error}. "
            "Install mpi4py and an MPI library (pip install mpi4py mpich)."
        ) from error
    job.mpi_used = True
    return MPI


def mismatch(mpi: Any) -> str:
    """What to say when launcher and library disagree on the number of processes."""
    ours = Path(sys.prefix) / "bin" / "mpiexec"
    cure = f"Use {ours}." if ours.exists() else "Use the mpiexec that belongs to this library."
    version = mpi.Get_library_version().splitlines()[0].strip(" \t\0")
    return (
        f"Started as {world().size} processes, but MPI sees {mpi.COMM_WORLD.size}: "
        "launcher and library do not belong together.\n"
        f"  launcher: {_launcher_path() or 'unknown'}\n"
        f"  library:  {_library_path() or 'unknown'} ({version})\n"
        f"{cure} Under Slurm: srun --mpi=pmix or --mpi=pmi2, whichever the library knows."
    )


def _launcher_path() -> str:
    """The program that started us: the first ancestor with the name of a launcher."""
    pid = os.getppid()
    with suppress(OSError, ValueError, IndexError):
        while pid > 1:
            path = os.readlink(f"/proc/{pid}/exe")
            if Path(path).name.startswith(_LAUNCHER_NAMES):
                return path
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return ""


def _library_path() -> str:
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = "/" + line.partition("/")[2]
            if Path(path).name.startswith(_LIBRARY_NAMES):
                return path
    return ""
