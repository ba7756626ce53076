"""Small songs, and training runs of them as people start them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from jukebox import settings
from jukebox.audio import io
from jukebox.models import checkpoint
from jukebox.parallel.world import job
from jukebox.training import asked

SR = 8000
VQVAE = (
    "--hps=tiny_vqvae", "--downs_t=1,1", "--strides_t=8,4", "--levels=2", "--width=8", "--depth=1", "--emb_width=8",
    "--l_bins=24", "--l_mu=0.9", "--sample_length=2048", "--lr_use_linear_decay=False", "--lr=0.003", "--log_steps=1",
    "--max_len=0.1", "--revival_threshold=0.5", "--mu=0.9", "--bs=1",
)  # fmt: skip
PRIOR = (
    "--hps=tiny_prior", "--prior", "--n_ctx=16", "--blocks=4", "--prior_width=16", "--prior_depth=2", "--heads=1",
    "--lr_use_linear_decay=False", "--log_steps=1", "--max_len=0.1", "--mu=0.9", "--bs=1", "--attn_order=0",
)  # fmt: skip


@dataclass(frozen=True)
class Small:
    """The flags of nets that take milliseconds a step."""

    vqvae: tuple = VQVAE
    prior: tuple = PRIOR


@pytest.fixture(scope="session")
def small():
    return Small()


@pytest.fixture(scope="session")
def songs(tmp_path_factory):
    """Six songs of three seconds, each of another pitch."""
    folder = tmp_path_factory.mktemp("music") / "songs"
    folder.mkdir()
    t = np.arange(3 * SR) / SR
    for n in range(6):
        noise = np.random.default_rng(n).standard_normal(len(t)) * 0.02
        io.write(folder / f"{n}.wav", 0.3 * np.sin(2 * np.pi * (200 + 60 * n) * t * (1 + 0.1 * t)) + noise, SR)
    return folder


@pytest.fixture(scope="session")
def made(songs, tmp_path_factory):
    """A VQ-VAE trained for a few steps (`vqvae`), and the store of its codes (`codes`)."""
    root = tmp_path_factory.mktemp("made")
    words = [*VQVAE, f"--local_logdir={root}", "--name=vqvae", f"--audio_files_dir={songs}", "--steps=6"]
    assert _run_here(["jukebox/train.py", *words]) == 0
    flags = [f"--restore_vqvae={root / 'vqvae'}", f"--audio_files_dir={songs}", f"--output-path={root / 'codes'}"]
    assert _run_here(["jukebox/pre_encode.py", *flags]) == 0
    return root


@dataclass(frozen=True)
class Run:
    """The folder of a run, and what is in it."""

    folder: Path

    def rows(self):
        """Its metrics, training and test apart."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [row for row in lines if "loss" in row], [row for row in lines if "test_loss" in row]

    def losses(self):
        return {row["step"]: row["loss"] for row in self.rows()[0]}

    def steps_kept(self):
        return sorted(int(path.name.split("_")[2].split(".")[0]) for path in self.folder.glob("checkpoint_step_*.tar"))

    def read(self):
        return checkpoint.read(self.folder)

    def tensors(self):
        """Every tensor of the newest checkpoint, by its place in it."""
        found = self.read()
        return dict(_leaves({"model": found.model, "opt": found.opt, "extra": found.extra}, ""))


def _leaves(value, where):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{where}/{key}")
    elif isinstance(value, list | tuple):
        for key, item in enumerate(value):
            yield from _leaves(item, f"{where}/{key}")
    elif isinstance(value, torch.Tensor | int | float):
        yield where, torch.as_tensor(value)


@pytest.fixture
def run_at(tmp_path):
    return lambda name: Run(tmp_path / "logs" / name)


@pytest.fixture
def flags(songs, tmp_path):
    """The command line of a small training run: `flags("name", "--steps=3")`, of a prior with PRIOR in place of VQVAE."""

    def make(name, *more, net=VQVAE, audio=songs):
        where = [f"--local_logdir={tmp_path / 'logs'}", f"--name={name}"] + [f"--audio_files_dir={audio}"] * bool(audio)
        asked = {word.partition("=")[0] for word in more}
        return ["jukebox/train.py", *(w for w in (*net, *where) if w.partition("=")[0] not in asked), *more]

    return make


@pytest.fixture
def train(run_mpi, flags, run_at, monkeypatch):
    """`train(n, "name", "--steps=3")`: such a run by n processes, or right here with n = 0; it must end with `code`."""

    def do(n, name, *more, code=0, **kind):
        words = flags(name, *more, **kind)
        if n:
            done = run_mpi(n, words, timeout=240)
            assert done.code == code, done.err
        else:
            monkeypatch.setattr("sys.argv", words)
            assert _run_here(words) == code
        return run_at(name)

    return do


@pytest.fixture
def killed(flags):
    """`killed("publish.before_fsync:2", "name", ...)`: such a run in a process that is killed at a fault point."""

    def do(fault, name, *more, **kind):
        child = os.fork()
        if child == 0:
            os.environ["JUKEBOX_FAULT"] = fault
            try:
                _run_here(flags(name, *more, **kind))
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9, f"{fault} was not reached"

    return do


def _run_here(words):
    from jukebox.encoding import run as encoding
    from jukebox.training import run as training

    try:
        if words[0].endswith("pre_encode.py"):
            return encoding.main(settings.parse("pre_encode", words[1:]))
        return training.main(asked.check(settings.parse("train", words[1:])))
    finally:
        job.renew()


@pytest.fixture
def events():
    """TensorBoard's own reader of a run's event files."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(run):
        everything = dict.fromkeys(("scalars", "audio", "images", "tensors"), 0)
        found = accumulator.EventAccumulator(str(run.folder / "logs"), size_guidance=everything)
        found.Reload()
        return found

    return read


@pytest.fixture
def same():
    """Whether two runs ended with the same bits in their checkpoints."""

    def check(one, other):
        mine, theirs = one.tensors(), other.tensors()
        assert mine.keys() == theirs.keys()
        apart = [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])]
        assert not apart

    return check
