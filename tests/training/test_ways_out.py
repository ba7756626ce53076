"""However a run of two processes ends, all of it ends within 10 s and says why, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jukebox.errors import LockedError, UserError
from jukebox.training.vqvae_task import VQVAETask

BROKEN = Path(__file__).with_name("broken_program.py")
GONE_SEC = 10


@pytest.fixture
def broken(run_mpi, flags):
    def run(fault, *more, rank=1, batch=3):
        words = flags("run", "--steps=400", "--save_iters=2", *more)
        done = run_mpi(2, [BROKEN, fault, rank, batch, *words[1:]], timeout=90)
        return done, done.err.splitlines()

    return run


@pytest.mark.parametrize("fault", ["raise", pytest.param("exit", marks=pytest.mark.slow)])
def test_one_rank_fails(broken, run_at, fault):
    done, lines = broken(fault)
    said = [line for line in lines if not line.startswith(("scan:", "train:"))]
    if fault == "raise":
        assert done.code == 1
        assert said[0].startswith("[rank 1] ValueError: no good at ") and "(during step 3)" in said[0]
        report = json.loads((run_at("run").folder / "errors/rank1.json").read_text())
        assert report["rank"] == 1 and "no good at" in report["cause"]
    else:
        assert done.code == 3 and said[0].startswith("[rank 1] left with exit code 3")
    assert run_at("run").read().step == 2


@pytest.mark.slow
def test_one_rank_is_interrupted(broken):
    assert broken("interrupt")[0].code == 130


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_freezes(broken, rank):
    done, lines = broken("freeze", "--dist_timeout=5", rank=rank)
    assert done.code != 0 and any(f"no answer from rank {rank}" in line for line in lines), done.err


def test_memory_runs_out(train, run_at, monkeypatch):
    """The keys to lower are named, with their values; the last checkpoint stands."""
    sound_loss = VQVAETask.loss

    def loss(self, batch, step):
        return torch.empty(1 << 60) if self.seen == 3 else sound_loss(self, batch, step)

    monkeypatch.setattr(VQVAETask, "loss", loss)
    with pytest.raises(UserError, match="Out of memory: lower --bs=1 or --sample_length=2048.*checkpoint is good"):
        train(0, "run", "--steps=9", "--save_iters=2")
    assert run_at("run").read().step == 2


def test_not_finite_on_one_rank(broken, run_at):
    """All skip the same step; 20 in a row stop, with the last good checkpoint kept."""
    done, lines = broken("nan")
    assert done.code == 1
    assert any("not finite in 20 steps in a row. The last checkpoint is good" in line for line in lines)
    assert run_at("run").steps_kept() == [2] and run_at("run").read().step == 2
    assert list(run_at("run").losses()) == [1, 2, 3]


def test_asked_to_stop_and_locked(flags, mpiexec, run_at, train, jukebox_root):
    """A second run into the same folder is refused; SIGTERM to mpiexec saves at the next step; the same command goes on."""
    command = [mpiexec, "-n", "2", sys.executable]
    slow = [str(BROKEN), "slow", "0", "0", *flags("run", "--steps=4000", "--save_iters=4000")[1:]]
    env = {**os.environ, "PYTHONPATH": str(jukebox_root)}
    with subprocess.Popen([*command, *slow], cwd=jukebox_root, env=env, stderr=subprocess.PIPE, text=True) as first:
        figures = run_at("run").folder / "metrics.jsonl"
        end = time.monotonic() + 60
        while not (figures.exists() and figures.stat().st_size) and time.monotonic() < end:
            time.sleep(0.05)
        with pytest.raises(LockedError, match=r"is in use \(host .*another --name"):
            train(0, "run", "--steps=3")
        begun = time.monotonic()
        first.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=GONE_SEC)[1]
    assert time.monotonic() - begun < GONE_SEC
    assert first.returncode == 143, said
    stopped = run_at("run").read().step
    assert f"stopped at step {stopped}; the same command goes on from there" in said
    assert train(0, "run", f"--steps={stopped + 2}", "--bs=2").read().step == stopped + 2
