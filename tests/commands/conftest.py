"""A workspace in which the published commands run as they stand: audio, tiny stand-ins for the published weights, and
the package where the commands look for it."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jukebox import settings
from jukebox.models import build, checkpoint

ROOT = Path(__file__).parent.parent.parent
NET = dict(emb_width=8, width=4, depth=1, l_bins=16, hvqvae_multipliers=(1, 1, 1))
PRIOR = dict(prior_width=16, heads=1, m_attn=1.0, y_bins=(9, 5), t_bins=8, max_bow_genre_size=2)
TOP = dict(prior_width=16, heads=4, m_attn=1.0, t_bins=8)
SIZES: dict[str, dict[str, object]] = {  # of the stand-ins, on top of the published presets
    "vqvae": {},
    "upsampler_level_0": PRIOR | dict(n_ctx=256, prior_depth=3, blocks=8, cond_width=8, cond_depth=1),
    "upsampler_level_1": PRIOR | dict(n_ctx=128, prior_depth=3, blocks=8, cond_width=8, cond_depth=1),
    "prior_5b": TOP | dict(n_ctx=128, prior_depth=3, blocks=8, y_bins=(9, 5), max_bow_genre_size=2),
    "prior_5b_lyrics": TOP
    | dict(n_ctx=128, prior_depth=69, blocks=8, y_bins=(9, 5), max_bow_genre_size=2, n_tokens=16)
    | dict(prime_width=8, prime_depth=2, prime_heads=1, prime_blocks=4),
    "prior_1b_lyrics": TOP | dict(n_ctx=64, prior_depth=64, blocks=8, y_bins=(5, 5), n_tokens=16),
}


@dataclass(frozen=True)
class Workspace:
    """A folder to run commands in."""

    root: Path

    def run(self, line: str, flags: Mapping[str, object], ranks: int, mpiexec: str) -> subprocess.CompletedProcess[str]:
        """A published command with some of its flags in another size, as `ranks` processes."""
        words = [sys.executable, *argv(line, flags)]
        variables = {**os.environ, "JUKEBOX_HPS_DIR": str(self.root / "hps"), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [mpiexec, "-n", str(ranks), *words],
            cwd=self.root,
            env=variables,
            capture_output=True,
            text=True,
            timeout=240,
        )


def argv(line: str, flags: Mapping[str, object]) -> list[str]:
    """The words behind `python`, each flag in `flags` put in place of the command's own, or added."""
    words = shlex.split(line)
    words = words[words.index("python") + 1 :]
    kept = [word for word in words if not any(re.match(rf"--{name}(=|$)", word) for name in flags)]
    return kept + [f"--{name}={value}" for name, value in flags.items()]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("workspace")
    (root / "jukebox").symlink_to(ROOT / "jukebox")
    _music(root)
    _weights(root)
    return Workspace(root)


def _music(root: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for name, length_sec in [(f"music/{i}.wav", 2 + 0.1 * i) for i in range(8)] + [
        (name, 1.0) for name in ("path/to/recording.wav", "awesome-mix.wav", "fav-song.wav", "etc.wav")
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        loudness = 0.9 / (1 + len(rows) % 4)  # so that the stand-in tells them apart
        soundfile.write(root / name, random.uniform(-loudness, loudness, (int(length_sec * 44100), 2)), 44100)
        rows.append({"file": Path(name).name, "artist": "Otto Fern", "genre": "night drive", "lyrics": "la la " * 20})
    (root / "music" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[:8])))


def _weights(root: Path) -> None:
    """`models/NAME.toml` beside presets of one's own: the published sets with small nets of random weights."""
    torch.manual_seed(0)
    (root / "hps" / "models").mkdir(parents=True)
    for name, sizes in SIZES.items():
        level = {"vqvae": None, "upsampler_level_0": 0, "upsampler_level_1": 1}.get(name, 2)
        prior = {} if level is None else {"prior": True, "level": level, "restore_vqvae": str(root / "weights/vqvae")}
        hps = settings.from_presets(f"vqvae,{name}".removesuffix(",vqvae"), **{**NET, **sizes, **prior})
        net = build.build_vqvae(hps) if level is None else build.build_prior(hps)
        if level is None:
            for at in range(3):
                net.codebook(at).vectors.normal_(std=0.05)
        table = build.vqvae_names(hps) if level is None else build.prior_names(hps)
        state = checkpoint.published_state(net, table)
        checkpoint.write(root / "weights" / name, 1, hps=dict(hps.values), model=state, opt=None, extra={})
    for name in ("5b", "5b_lyrics", "1b_lyrics"):
        parts = [f'[vqvae]\ncheckpoint = "{root}/weights/vqvae"']
        parts += [
            f'[[priors]]\ncheckpoint = "{root}/weights/{part}"\ntemp = 0.99'
            for part in ("upsampler_level_0", "upsampler_level_1", f"prior_{name}")
        ]
        (root / "hps" / "models" / f"{name}.toml").write_text("\n".join(parts))


@pytest.fixture(scope="session")
def run(workspace: Workspace, mpiexec: str) -> Callable[..., str]:
    """Runs a command under `mpiexec -n 2` and gives what it said; fails with that when it fails."""

    def start(line: str, ranks: int = 2, **flags: object) -> str:
        done = workspace.run(line, flags, ranks, mpiexec)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return start
