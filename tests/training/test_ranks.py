"""The same training by any number of processes, under any launcher."""

import subprocess
import sys
from pathlib import Path

import pytest

PUBLISHED_SCALARS = {
    "loss", "recons_loss", "spectral_loss", "multispectral_loss", "commit_loss", "spectral_convergence", "l1_loss",
    "l2_loss", "linf_loss", "fit", "pn", "entropy", "used_curr", "usage", "dk", "lr", "gn", "lg_loss_scale",
}  # fmt: skip


def test_two_ranks_are_one_with_twice_the_batch(train):
    """The first 20 steps of both, within 1e-5; codebooks are initialised and codes revived in them."""
    two = train(2, "two", "--steps=20", "--aug_shift", "--aug_blend").rows()[0]
    one = train(0, "one", "--steps=20", "--aug_shift", "--aug_blend", "--bs=2").rows()[0]
    assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(1, 21))
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "recons_loss", "multispectral_loss", "commit_loss", "gn", "entropy", "usage"):
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-7), (a["step"], name)
    assert one[-1]["loss"] < one[0]["loss"]
    assert any(row["usage"] < 24 for row in one), "some code fell out of use and was drawn anew"
    assert set(one[0]) >= PUBLISHED_SCALARS


def test_eight_ranks(train):
    assert len(train(8, "eight", "--steps=3").rows()[0]) == 3


def test_torchrun(train, flags, run_at, jukebox_root):
    """Two processes of torchrun do what two of mpiexec do, and one with twice the batch (above)."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, *flags("torchrun", "--steps=4")], cwd=jukebox_root, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    wanted = train(0, "one", "--steps=4", "--bs=2").losses()
    assert run_at("torchrun").losses() == {step: pytest.approx(loss, rel=1e-5) for step, loss in wanted.items()}


def test_the_published_line_without_data(run_mpi):
    done = run_mpi(8, ["jukebox/train.py", "--hps=small_vqvae"])
    assert done.code == 2
    assert done.err.count("--audio_files_dir is missing") == 1
    assert "mpiexec -n 8 python jukebox/train.py --hps=small_vqvae --audio_files_dir=DIR" in done.err
    assert not Path("logs/small_vqvae").exists()
