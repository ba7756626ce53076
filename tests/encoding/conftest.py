"""A tiny VQ-VAE with weights that mean nothing, a few songs, and pre_encode.py as a person runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from jukebox import settings
from jukebox.hparams.resolve import Resolved
from jukebox.models import build, checkpoint
from jukebox.models.codec import VQVAECodec
from jukebox.vqvae.model import VQVAE

TINY = {
    "sr": 8000, "levels": 3, "downs_t": (2, 1, 1), "strides_t": (2, 2, 4), "emb_width": 4, "l_bins": 32, "width": 8,
    "depth": 2, "dilation_growth_rate": 3, "hvqvae_multipliers": (2, 1, 1),
}  # fmt: skip
LENGTHS = {"a": 12_345, "b": 40_000, "c": 70_001, "d": 1, "e": 31, "f": 20_000}  # samples at 8 kHz


def net_of(hps: Resolved, seed: int = 0) -> VQVAE:
    """A VQ-VAE whose codebooks hold what its encoders say of noise, so that all codes occur."""
    torch.manual_seed(seed)
    net = build.build_vqvae(hps).eval()
    noise = torch.randn(1, 1, 400 * net.hops[-1])
    with torch.no_grad():
        for level in range(net.levels):
            rows = net.encoders[level](noise)[0].t()
            book = net.codebook(level)
            book.vectors.copy_(rows[torch.randperm(len(rows))[torch.arange(book.bins) % len(rows)]])
            book.vectors.add_(torch.randn_like(book.vectors), alpha=0.01 * float(rows.std()))
    return net


def save_run(folder: Path, hps: Resolved, net: VQVAE) -> Path:
    """A run folder as train.py leaves it."""
    table = build.vqvae_names(hps)
    model = checkpoint.published_state(net, table)
    checkpoint.write(folder, 1, hps=dict(hps.values), model=model, opt=None, extra={})
    return folder


@pytest.fixture(scope="session")
def tiny_hps() -> Resolved:
    return settings.from_presets("teeny", **TINY)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_hps: Resolved) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_hps, net_of(tiny_hps))


@pytest.fixture(scope="session")
def tiny_codec(tiny_hps: Resolved) -> VQVAECodec:
    return VQVAECodec(net_of(tiny_hps), 8000)


def make_song(path: Path, length: int, rate: int = 8000, channels: int = 2, seed: int = 0) -> Path:
    """A sound file of noise that rises and falls, 16 bit."""
    draw = np.random.default_rng(seed + length)
    loud = 0.3 + 0.2 * np.sin(np.arange(length) / 500)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, draw.normal(0, 0.2, (length, channels)) * loud[:, None], rate)
    return path


@pytest.fixture(scope="session")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six songs: two channels and one, one sample and nine seconds, one at another rate."""
    folder = tmp_path_factory.mktemp("music")
    for name, length in LENGTHS.items():
        make_song(folder / ("sub" if name in "cd" else "") / f"{name}.wav", length, channels=1 + (name != "b"))
    make_song(folder / "g.flac", 30_011, rate=11_025)
    (folder / "metadata.jsonl").write_text('{"file": "a.wav", "artist": "Ann", "genre": "folk", "lyrics": "la la"}\n')
    return folder


@pytest.fixture(scope="session")
def pre_encode(run_mpi: Callable[..., Any], jukebox_root: Path) -> Callable[..., Any]:
    """`pre_encode(arguments, ranks=0, fault="")`: the program by path, as so many processes."""

    def run(arguments: Sequence[object], ranks: int = 0, fault: str = "", timeout: float = 120) -> Any:
        env = {"JUKEBOX_FAULT": fault or None, "OMP_NUM_THREADS": "1"}
        return run_mpi(ranks, [jukebox_root / "jukebox" / "pre_encode.py", *arguments], timeout=timeout, env=env)

    return run


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, object]]:
    """What a store holds, but for the lock, the cache, the time it took to load, and the arguments."""
    import json

    def read(root: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in sorted(root.rglob("*")):
            if not path.is_file() or path.name in ("LOCK", ".index-cache"):
                continue
            name = str(path.relative_to(root))
            if path.suffix == ".json":
                data = json.loads(path.read_text())
                found[name] = {key: value for key, value in data.items() if key not in ("load_time", "args")}
            else:
                found[name] = path.read_bytes()
        return found

    return read
