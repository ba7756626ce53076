"""Two processes try all that a Comm offers; rank 0 prints what they found as JSON: `comm_program.py TASK`."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from jukebox.parallel import launch
from jukebox.parallel.mpi import load_mpi


def everything(comm, before) -> dict:
    import torch

    def mine(*shape, dtype=torch.float32):
        return torch.full(shape, comm.rank + 1, dtype=dtype)

    parameter = torch.nn.Parameter(mine(5))
    mixed = [mine(3, 2), mine(4, dtype=torch.float64), mine(2, 3).t(), mine(1000), mine(dtype=torch.int64), parameter]
    comm.all_reduce_tensors(mixed, bucket_bytes=512)
    noise = torch.rand(100_000, generator=torch.Generator().manual_seed(comm.rank))
    comm.all_reduce(noise)
    slices = torch.zeros(4, 4)
    comm.all_reduce(slices[:, 1].fill_(comm.rank + 1))
    began = time.monotonic()
    late = comm.run_first(lambda: time.sleep(2.5) or "scanned")  # longer than the timeout below
    found = {
        "place": [comm.rank, comm.size, comm.local_rank, comm.local_size, comm.is_first, comm.device],
        "mixed": [sorted(set(tensor.flatten().tolist())) for tensor in mixed],
        "bits": noise.numpy().tobytes().hex()[:2000],
        "slices": slices.sum(1).tolist(),
        "max": comm.all_reduce(mine(2), "max").tolist(),
        "min": comm.all_reduce(mine(2), "min").tolist(),
        "broadcast": comm.broadcast(mine(2), src=1).tolist(),
        "object": comm.broadcast_object({"from": comm.rank}, src=1),
        "objects": comm.gather_objects(f"r{comm.rank}"),
        "any": [comm.any(comm.rank == 1), comm.any(False)],
        "mean": comm.mean(comm.rank),
        "late": late,
        "waited": time.monotonic() - began > 2.4,
        "threads": [torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]],
        "listens": sorted(set(_listening()) - before),
        "launcher": comm.launcher,
    }
    comm.barrier()
    return found


def _listening() -> list[str]:
    """The addresses at which this process waits for connections."""
    inodes = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
        except OSError:  # the descriptor of this very listing
            continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]


def loop(comm) -> int:
    import torch

    sys.stdout.write("running\n")  # in one piece, unlike print
    if sys.argv[1] == "freeze" and comm.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        comm.all_reduce(torch.ones(1))
        time.sleep(0.01)
        if comm.any(launch.stop_requested()):
            comm.barrier()  # saving
            if comm.is_first:
                print("saved", flush=True)
            return launch.stop_code()


def main() -> int:
    if launch.world().launcher == "mpi":
        load_mpi()  # listens where it likes
    before = set(_listening())
    comm = launch.start("cpu", timeout_sec=2)
    if sys.argv[1] != "everything":
        return loop(comm)
    for rank, found in enumerate(comm.gather_objects(everything(comm, before))):
        if comm.is_first:
            Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    launch.guard(main)
