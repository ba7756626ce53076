"""A tiny VQ-VAE with weights that mean nothing, a few songs, and pre_encode.py as a person runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tests_encoding_nets import LENGTHS, TINY, make_song, net_of, save_run  # noqa: E402

from jukebox import settings  # noqa: E402
from jukebox.hparams.resolve import Resolved  # noqa: E402
from jukebox.models.codec import VQVAECodec  # noqa: E402


@pytest.fixture(scope="session")
def tiny_hps() -> Resolved:
    return settings.from_presets("teeny", **TINY)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_hps: Resolved) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_hps, net_of(tiny_hps))


@pytest.fixture(scope="session")
def tiny_codec(tiny_hps: Resolved) -> VQVAECodec:
    return VQVAECodec(net_of(tiny_hps), 8000)


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
