"""How a program starts as one process or many; the same command runs alone, under mpiexec and under torchrun.

@launch.guarded
def main() -> int | None:
    comm = launch.start(hps.device, hps.threads, hps.port, hps.dist_timeout)
    ...
    return launch.stop_code() if stopped_early else 0

main()
"""

import logging
import os
import signal
import socket
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jukebox.errors import LaunchError
from jukebox.files import printable
from jukebox.parallel.comm import Comm, DistComm, SoloComm
from jukebox.parallel.mpi import load_mpi, mismatch
from jukebox.parallel.signals import stop_code, stop_requested
from jukebox.parallel.way_out import guard, guarded, set_phase, set_run_folder
from jukebox.parallel.world import World, job, world
from jukebox.resources import cores

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = [
    "World",
    "device_memory",
    "finish",
    "guard",
    "guarded",
    "set_phase",
    "set_run_folder",
    "solo_device",
    "start",
    "stop_code",
    "stop_requested",
    "world",
]

log = logging.getLogger(__name__)


def start(device: str = "auto", threads: int = 0, port: int = 0, timeout_sec: float = 600.0) -> Comm:
    """Join the processes of this run: connections, device and threads; once in a process.

    `device`: auto, cpu, cuda or, for one process, cuda:N. `threads`: 0 shares the machine's cores out over its
    processes. `port`: 0 takes a free one. `timeout_sec`: longest wait of one process for the others. Raises LaunchError.
    """
    assert job.comm is None, "start() was called before"
    here = world()
    if here.launcher != "none":
        _die_with_launcher()
    if here.size == 1:
        _set_threads(threads, 1)
        job.comm = SoloComm(solo_device(device), here.launcher)
        return job.comm

    import torch.distributed as dist

    here, one_host, store = _store_of_torchrun(here) if here.launcher == "torchrun" else _store_of_mpi(here, port)
    _set_threads(threads, here.local_size)
    if one_host:  # gloo would ask a name service for this host's name
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore("gloo", store),  # type: ignore[attr-defined]
        rank=here.rank,
        world_size=here.size,
        timeout=timedelta(seconds=timeout_sec),
    )
    board = dist.PrefixStore("board", store)  # type: ignore[attr-defined]
    comm = DistComm(here.rank, here.size, here.local_rank, here.local_size, here.launcher, board, timeout_sec)
    job.comm = comm
    _agree_on_device(comm, device)
    return comm


def finish(comm: Comm) -> None:
    """End a run in order: wait for every rank, then give up the connections. `guard` does this by itself."""
    comm.barrier()
    comm.close()
    if job.comm is comm:
        job.comm = None


# --- where the processes find each other: a store of torch's, kept by rank 0 or by torchrun's agent -------------------


def _store_of_torchrun(here: World) -> tuple[World, bool, "Store"]:
    import torch.distributed as dist

    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise LaunchError(
            "RANK and WORLD_SIZE are set, as by torchrun, but MASTER_ADDR and MASTER_PORT are not. "
            "Start with torchrun or mpiexec, or unset RANK to run alone."
        ) from error
    keeper = here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(host, port, here.size, keeper, wait_for_workers=False)  # type: ignore[attr-defined]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return here, here.local_size == here.size, dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]


def _store_of_mpi(here: World, port: int) -> tuple[World, bool, "Store"]:
    import torch.distributed as dist

    mpi = load_mpi()
    everyone = mpi.COMM_WORLD
    if everyone.size != here.size:
        raise LaunchError(mismatch(mpi))
    neighbours = everyone.Split_type(mpi.COMM_TYPE_SHARED)
    here = World(everyone.rank, everyone.size, neighbours.rank, neighbours.size, "mpi")
    one_host = neighbours.size == everyone.size
    hosts = everyone.allgather(socket.gethostname())
    keeper = here.rank == 0
    place, listener = ("", 0), -1
    if keeper:
        address = "127.0.0.1" if one_host else _address_towards(next(host for host in hosts if host != hosts[0]))
        # A listener of ours, so that nobody outside a run's only machine can connect.
        socket_ = _listen(address if one_host else "", port)
        place = address, socket_.getsockname()[1]
        listener = socket_.detach()
    place = everyone.bcast(place)
    make_store: Any = dist.TCPStore  # type: ignore[attr-defined]
    options = {"master_listen_fd": listener} if keeper else {}
    store = make_store(*place, here.size, keeper, wait_for_workers=False, **options)
    return here, one_host, store


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        raise LaunchError(
            f"--port={port} cannot be used ({error.strerror}). Leave it out to take a free one."
        ) from error
    return listener


def _address_towards(host: str) -> str:
    """The address of ours that `host` can reach; what a host calls itself often means 127.0.1.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
        except OSError as error:
            raise LaunchError(f"No way to host {printable(host)} ({error}). Its name must be known here.") from error
        return str(probe.getsockname()[0])


def _die_with_launcher() -> None:
    """End when the launcher does: Open MPI's ranks would live on after it was killed."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


# --- threads and devices: the one place where they are chosen ---------------------------------------------------------


def _set_threads(wish: int, local_size: int) -> None:
    import torch

    count = wish or _fair_threads(local_size)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # for libraries that load later, and for children
        os.environ[name] = str(count)
    torch.set_num_threads(count)


def _fair_threads(local_size: int) -> int:
    """This process's share of the cores, unless the user's environment says otherwise; MPICH alone would give one."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    by_torchrun = asked == "1" and "TORCHELASTIC_RUN_ID" in os.environ  # its default, not the user's word
    if asked.isdigit() and int(asked) > 0 and not by_torchrun:
        return int(asked)
    if "OMPI_COMM_WORLD_RANK" in os.environ and cores() < (os.cpu_count() or 1):
        log.warning("Open MPI binds this process to %d core(s); mpiexec --bind-to none lets it use more.", cores())
        return cores()
    return max(1, cores() // local_size)


def solo_device(wish: str) -> str:
    """The device that one process computes on: auto, cpu, cuda or cuda:N made plain. Raises LaunchError."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wish == "cpu" or (wish == "auto" and not count):
        return "cpu"
    kind, _, number = wish.partition(":")
    if kind not in ("auto", "cuda") or not (number or "0").isdigit():
        raise LaunchError(f"--device={printable(wish)} is not known. Say auto, cpu, cuda or cuda:N.")
    if int(number or 0) >= count:
        raise LaunchError(f"--device={wish}, but PyTorch sees {count} CUDA devices. --device=cpu goes without.")
    return f"cuda:{number or 0}"


def device_memory(device: str) -> tuple[int, int] | None:
    """Bytes that this process has taken of a GPU's memory at most, and bytes there are; None for the CPU."""
    if device == "cpu":
        return None
    import torch

    return torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]


def _agree_on_device(comm: DistComm, wish: str) -> None:
    """Give every process a GPU of its own, or none to anyone."""
    import torch

    if ":" in wish:
        raise LaunchError(f"--device={printable(wish)} is for one process. Say --device=cuda: each takes its own.")
    if wish == "cpu":
        return
    solo_device(wish)  # refuses what is not known or not there
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    enough = comm.gather_objects(count >= comm.local_size)
    if all(enough):
        comm.use_device(f"cuda:{comm.local_rank}")
    elif wish == "cuda" or any(enough):
        raise LaunchError(
            f"{comm.local_size} processes on this machine, but {count} CUDA devices: each process needs its own. "
            "Start fewer processes, or say --device=cpu."
        )
    elif count and comm.is_first:
        log.warning("%d processes, but %d CUDA device(s): running on the CPU.", comm.local_size, count)
