"""A tiny three-level model with lyrics, from the golden weights, as files that sample.py reads."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from jukebox import settings
from jukebox.models import checkpoint, model_set
from jukebox.parallel.comm import SoloComm
from jukebox.sampling.hps import DrawHps, SampleHps, SongHps
from jukebox.sampling.requests import requests_of
from jukebox.sampling.run import Session

sys.path.insert(0, str(Path(__file__).parent))  # small_priors

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden" / "jukebox"


@dataclass(frozen=True)
class Tiny:
    """The golden sampling file, and its model on disk: `model` is what --model= takes."""

    model: str
    ids_dir: Path
    info: dict[str, Any]
    arrays: dict[str, Tensor]

    def requests(self, path: Path, **common: Any) -> Path:
        """The golden songs as a requests file."""
        keys = ("artist", "genre", "lyrics")
        path.write_text("\n".join(json.dumps({k: m[k] for k in keys} | common) for m in self.info["metas"]))
        return path

    def flags(self, name: Path, **more: Any) -> list[str]:
        """The flags of the golden runs: the likeliest code each time, windows as they were."""
        hops = ",".join(map(str, self.info["hop_fraction"]))
        flags = {
            "model": self.model, "name": name, "ids_dir": self.ids_dir, "hop_fraction": hops, "top_k": 1,
            "chunk_size": "5,8,4", "max_batch_size": 2, "total_sample_length_in_seconds": 2880 / 8000, "device": "cpu",
        } | more  # fmt: skip
        return [f"--{key}={value}" for key, value in flags.items() if value is not None]

    def sing(self, flags: Sequence[str]) -> int:
        """What sample.py does with these flags, in this process."""
        return self.session(flags).run()

    def plan(self, flags: Sequence[str]) -> int:
        """What sample.py --plan does."""
        return self.session(flags).tell_plan()

    def session(self, flags: Sequence[str]) -> Session:
        """A run with these flags, before it starts."""
        hps = settings.parse("sample", flags)
        sample = hps.section(SampleHps)
        asked = requests_of(hps.section(SongHps), hps.section(DrawHps).seed, None)
        models = model_set.find(sample.model, sample.restore_vqvae)
        return Session(hps, models, asked, SoloComm(), Path(sample.name))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    info = json.loads((GOLDEN / "sampling.json").read_text())
    weights, config = load_file(GOLDEN / "sampling_weights.safetensors"), info["config"]
    vqvae = {key: value for key, value in config["vqvae"].items() if key != "sample_length"}
    hps = settings.from_presets("teeny", name="vqvae", **vqvae)
    write(root / "vqvae", hps, weights, "vqvae.")
    for level in range(3):
        own = config["top"] if level == 2 else config["upsampler"] | {"cond_res_scale": level == 1}
        hps = settings.from_presets(
            "teeny", name=f"level{level}", **vqvae, **config["common"], **own, level=level, prior=True,
            restore_vqvae=str(root / "vqvae"),
        )  # fmt: skip
        write(root / f"level{level}", hps, weights, f"prior{level}.")
    ids_dir = root / "ids"
    ids_dir.mkdir()
    for kind in ("artist", "genre"):
        shutil.copyfile(GOLDEN / f"ids_v3_{kind}.txt", ids_dir / f"v3_{kind}_ids.txt")
    runs = ",".join(str(root / f"level{level}") for level in (2, 1, 0))
    return Tiny(runs, ids_dir, info, load_file(GOLDEN / "sampling.safetensors"))


def write(folder: Path, hps: Any, weights: dict[str, Tensor], prefix: str) -> None:
    model = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    checkpoint.write(folder, 1, hps=dict(hps.values), model=model, opt=None, extra={})


@pytest.fixture(scope="session")
def ancestral(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the golden ancestral run; not to be changed."""
    root = tmp_path_factory.mktemp("run")
    assert tiny.sing(tiny.flags(root / "out", requests=tiny.requests(root / "songs.jsonl"), sample_length=960)) == 0
    return root / "out"
