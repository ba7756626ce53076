"""Who this process is among those started together, and what the modules of this package know about the run."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from jukebox.parallel.comm import Comm


@dataclass(frozen=True)
class World:
    """This process's place among those started together, as the launcher's environment tells it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine
    local_size: int = 1
    launcher: str = "none"  # or "mpi", "torchrun"


# Launcher, then its variables of rank, size, local rank and local size. The first line whose rank and size are set
# counts. A Slurm batch script has SLURM_PROCID too; only srun sets SLURM_STEP_NUM_TASKS.
_OPEN_MPI = [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
_LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("mpi", *_OPEN_MPI),
    ("mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH and its kin
    ("mpi", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
)


def world() -> World:
    """This process's place, from environment variables alone: costs nothing and imports nothing."""
    for launcher, *names in _LAUNCHERS:
        values = [os.environ.get(name, "") for name in names]
        if values[0].isdigit() and values[1].isdigit():
            rank, size = int(values[0]), int(values[1])
            local_rank = int(values[2]) if values[2].isdigit() else rank
            local_size = int(values[3]) if values[3].isdigit() else size
            return World(rank, size, local_rank, local_size, launcher)
    return World()


@dataclass
class Job:
    """The run of this process; renewed in forked children, which must not answer for it."""

    guarded: bool = False  # `guard` is running
    comm: Comm | None = None
    mpi_used: bool = False
    phase: str = ""
    run_folder: Path | None = None
    stop_signal: int = 0
    signals_watched: bool = False
    leaving: threading.Lock = field(default_factory=threading.Lock)

    def renew(self) -> None:
        """Forget everything."""
        vars(self).update(vars(Job()))


job = Job()
