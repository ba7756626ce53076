"""Two processes under mpiexec and under torchrun, and one alone, do the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jukebox.errors import LaunchError
from jukebox.parallel import launch
from jukebox.parallel.comm import SoloComm
from jukebox.resources import cores

PROGRAM = Path(__file__).with_name("comm_program.py")


def _check(folder, launcher):
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    for rank, said in enumerate(found):
        assert said.pop("place") == [rank, 2, rank, 2, rank == 0, "cpu"]
        assert said.pop("mixed") == [[3.0]] * 6
        assert said.pop("slices") == [3.0] * 4
        assert (said.pop("max"), said.pop("min")) == ([2.0, 2.0], [1.0, 1.0])
        assert said.pop("broadcast") == [2.0, 2.0]
        assert said.pop("object") == {"from": 1}
        assert said.pop("objects") == ["r0", "r1"]
        assert said.pop("any") == [True, False]
        assert said.pop("mean") == 0.5
        assert (said.pop("late"), said.pop("waited")) == ("scanned", True)
        assert said.pop("launcher") == launcher
        share = max(1, cores() // 2)
        assert said.pop("threads") == [share, str(share)]
        if launcher == "mpi":
            assert all(address.startswith("0100007F:") for address in said["listens"]), "only this machine may connect"
        del said["listens"]
    assert found[0] == found[1], "the sums differ in bits"


def test_under_mpiexec(run_mpi, tmp_path):
    ran = run_mpi(2, [PROGRAM, "everything", tmp_path], env={"OMP_NUM_THREADS": None})
    assert (ran.code, ran.err) == (0, "")
    _check(tmp_path, "mpi")


def test_under_torchrun(run_mpi, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ran = run_mpi(0, [*torchrun, PROGRAM, "everything", tmp_path], env={"OMP_NUM_THREADS": None})
    assert ran.code == 0, ran.err
    _check(tmp_path, "torchrun")


@pytest.fixture
def two_ranks(mpiexec, jukebox_root):
    jobs = []

    def start(task):
        command = [mpiexec, "-n", "2", sys.executable, PROGRAM, task]
        env = {**os.environ, "PYTHONPATH": str(jukebox_root)}
        job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        jobs.append(job)
        assert [job.stdout.readline() for _ in range(2)] == ["running\n"] * 2
        return job

    yield start
    for job in jobs:
        job.kill()
        job.communicate()


def test_a_frozen_rank_is_named(two_ranks):
    """Row P10: the timeout fires and says who is missing."""
    job = two_ranks("freeze")
    began = time.monotonic()
    _, err = job.communicate(timeout=30)
    assert err.startswith("[rank 0] PeerLost: no answer from rank 1: frozen, or busy for longer than --dist_timeout")
    assert time.monotonic() - began < 2 + 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_mpiexec_lets_the_ranks_save(two_ranks, number, code):
    """Row P9."""
    job = two_ranks("loop")
    time.sleep(0.3)
    job.send_signal(number)
    out, err = job.communicate(timeout=15)
    assert job.returncode == code, err
    assert out.endswith("saved\n")  # mpiexec has words of its own before


def test_no_rank_outlives_mpiexec(two_ranks):
    """Row P8."""
    job = two_ranks("loop")
    ranks = _descendants(job.pid)
    assert len([pid for pid in ranks if "comm_program" in _command(pid)]) == 2
    job.kill()
    job.wait()
    end = time.monotonic() + 5
    while any(_command(pid) for pid in ranks):
        assert time.monotonic() < end
        time.sleep(0.05)


def _descendants(pid):
    children = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in _descendants(child)]


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_launcher_of_another_mpi_is_refused(run_mpi):
    """Row P14: the environment says two, the library sees one process."""
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    env = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "0202", strict=True)}
    ran = run_mpi(0, [PROGRAM, "everything"], env=env)
    assert ran.code == 1
    assert "Started as 2 processes, but MPI sees 1" in ran.err
    assert "libmpi" in ran.err
    assert str(Path(sys.prefix) / "bin" / "mpiexec") in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0, 1, "none")),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4, 1, 2, "torchrun")),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2, 1, 2, "mpi")),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2, 1, 2, "mpi")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1, 0, 1, "none")),  # a batch script: no srun
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}, (5, 8, 1, 8, "mpi")),
    ],
)
def test_the_environment_tells_who_we_are(monkeypatch, variables, expected):
    for name in list(os.environ):
        if name.startswith(("PMI_", "OMPI_", "SLURM_", "MPI_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.world() == launch.World(*expected)


@pytest.fixture
def alone(monkeypatch):
    from jukebox.parallel.world import job

    monkeypatch.setattr(job, "comm", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")


def test_one_process_has_the_same_methods(alone):
    import torch

    comm = launch.start("cpu", threads=1)
    assert isinstance(comm, SoloComm)
    tensor = torch.ones(3)
    assert comm.all_reduce(tensor) is tensor
    comm.all_reduce_tensors([tensor])
    assert comm.broadcast(tensor) is tensor
    assert (comm.broadcast_object("x"), comm.gather_objects("x"), comm.run_first(lambda: "x")) == ("x", ["x"], "x")
    assert (comm.any(True), comm.any(False), comm.mean(2)) == (True, False, 2.0)
    assert not launch.stop_requested()
    launch.finish(comm)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:64"])
def test_a_device_that_is_not_there_is_refused(alone, device):
    with pytest.raises(LaunchError, match=f"--device={device}"):
        launch.start(device, threads=1)


class Ranks:
    """Stands for two processes on machines with so many GPUs each."""

    rank, local_rank, local_size, is_first = 1, 1, 2, True
    device = "cpu"

    def __init__(self, gpus):
        self.gpus = gpus

    def gather_objects(self, value):
        return [count >= 2 for count in self.gpus]

    def use_device(self, device):
        self.device = device


@pytest.mark.parametrize(
    ("wish", "gpus", "expected"),
    [
        ("auto", (0, 0), "cpu"),
        ("auto", (2, 2), "cuda:1"),
        ("cuda", (8, 2), "cuda:1"),
        ("cpu", (2, 2), "cpu"),
        ("auto", (1, 1), "cpu"),  # with a warning: the demo's two processes run on a laptop with one GPU
        ("cuda", (1, 1), LaunchError),
        ("cuda", (0, 0), LaunchError),
        ("auto", (2, 1), LaunchError),
        ("cuda:1", (2, 2), LaunchError),
    ],
)
def test_each_process_has_a_gpu_of_its_own_or_none_has(monkeypatch, wish, gpus, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus[0] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus[0])
    ranks = Ranks(gpus)
    if expected is LaunchError:
        with pytest.raises(LaunchError, match="--device=c"):
            launch._agree_on_device(ranks, wish)
    else:
        launch._agree_on_device(ranks, wish)
        assert ranks.device == expected
