"""Training of two processes, killed at any moment: the end is the same to the last bit (rows P1 and P2)."""

import numpy as np
import pytest
import torch

from jukebox.audio import io
from jukebox.models import checkpoint

SMALL = (
    "--hps=tiny_vqvae", "--levels=1", "--downs_t=1", "--strides_t=8", "--width=8", "--depth=1", "--emb_width=4",
    "--l_bins=16", "--sample_length=2048", "--bs=1", "--lr_use_linear_decay=False", "--aug_shift", "--log_steps=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "songs"
    folder.mkdir()
    for n in range(4):
        sound = np.sin(np.arange(16000) * (0.1 + 0.03 * n)) * 0.3
        io.write(folder / f"{n}.wav", sound, 8000)
    return folder


@pytest.fixture
def training(job, songs, tmp_path):
    def command(name, steps):
        where = (f"--audio_files_dir={songs}", f"--local_logdir={tmp_path}", f"--name={name}")
        return job(2, ["jukebox/train.py", *SMALL, *where, f"--steps={steps}", "--save_iters=5", "--max_log=0"])

    return command


def _raw(folder):
    found = checkpoint.read(folder)
    return found.extra["players"]["main"]["raw"] | found.model | found.extra["own"]["net"]


def _check(training, tmp_path, kills, seed):
    training("whole", 60).to_the_end()
    training("killed", 60).survives(kills, most_sec=6, seed=seed)
    whole, killed = _raw(tmp_path / "whole"), _raw(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())
    assert not list((tmp_path / "killed").glob(".tmp-*"))


def test_killed_at_random(training, tmp_path):
    _check(training, tmp_path, kills=5, seed=1)


@pytest.mark.slow
def test_killed_at_random_often(training, tmp_path):
    _check(training, tmp_path, kills=30, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_before_a_checkpoint(training, tmp_path, rank):
    """The other process ends too, and with an error."""
    command = training("run", 10)
    assert command.at_fault(f"training.before_save:1:rank={rank}") == (0 if rank else 9)
    assert (checkpoint.latest_valid(tmp_path / "run") is None) == (rank == 0)
