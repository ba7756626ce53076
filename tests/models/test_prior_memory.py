"""Memory of loading a prior by the way that sampling takes: meta net, file read once, freed tensor by tensor."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jukebox import resources, settings
from jukebox.models import build

PROGRAM = """
import json, sys, threading, time
from jukebox import settings
from jukebox.models import model_set
from jukebox.nn import linear

def anonymous():
    lines = open("/proc/self/status").read().split("\\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

class Peak:
    def __enter__(self):
        self.before, self.peak, self.done, self.started = anonymous(), 0, False, time.monotonic()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self
    def watch(self):
        while not self.done:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.001)
    def __exit__(self, *error):
        self.done = True
        self.watcher.join()
        self.seconds = time.monotonic() - self.started

vqvae = settings.from_presets(sys.argv[1])
level = vqvae.values["levels"] - 1
with Peak():
    linear.pack(model_set.load_prior(model_set.Part(sys.argv[3]), vqvae, level)[0], "bf16")  # what libraries take once
with Peak() as loading:
    net, _ = model_set.load_prior(model_set.Part(sys.argv[2]), vqvae, level)
size = sum(p.nbytes for p in net.parameters())
with Peak() as packing:
    linear.pack(net, "bf16")
print(json.dumps({"loading": loading.peak - loading.before, "packed": packing.peak - loading.before, "net": size,
                  "seconds": loading.seconds}))
"""


def write(path: Path, presets: str, *, legacy: bool, half: bool, **sizes: int | None) -> Path:
    """A checkpoint as the first implementation wrote it. Its tensors all map one small file: nothing is in memory."""
    hps = settings.from_presets(presets, prior=True, fp16_params=half, **sizes)
    table = build.prior_names(hps)
    scratch = path.with_name("scratch")
    with scratch.open("wb") as file:
        file.truncate(4 * max(torch.Size(entry.shape).numel() for entry in table))
    model: dict[str, torch.Tensor] = {}
    for entry in table:
        dtype, numel = torch.float16 if half and entry.half_ok else torch.float32, torch.Size(entry.shape).numel()
        mapped = torch.from_file(str(scratch), shared=True, size=numel, dtype=dtype).view(entry.shape)
        model[entry.published] = model["prior.x_emb.weight"] if entry.tied_to else mapped
    tree = {"model": model, "hps": dict(hps.values), "step": 1}
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    scratch.unlink()
    return path


def measured(tmp_path: Path, vqvae: str, prior: str, *, legacy: bool, half: bool, **level: int) -> dict[str, float]:
    """Peaks in bytes of a prior of full size, after one of the same kind that is small."""
    sizes = level | {"prior_width": 64, "prior_depth": 2, "alignment_layer": None, "alignment_head": None}
    small = write(tmp_path / "tiny.pth.tar", f"{vqvae},{prior}", legacy=legacy, half=half, **sizes)
    path = write(tmp_path / "prior.pth.tar", f"{vqvae},{prior}", legacy=legacy, half=half, **level)
    size = path.stat().st_size
    done = subprocess.run([sys.executable, "-c", PROGRAM, vqvae, path, small], capture_output=True, text=True)
    path.unlink()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"file": size}


@pytest.mark.slow  # files of 600 MB
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_peak_of_a_prior(tmp_path, legacy, half):
    found = measured(tmp_path, "small_vqvae", "small_prior", legacy=legacy, half=half, level=1)
    assert found["net"] < 1.01 * found["file"]  # half matrices stay half
    assert found["loading"] <= 1.15 * max(found["file"], found["net"]), found


@pytest.mark.slow  # a file of 11.45 GB: minutes, and as much memory
@pytest.mark.timeout(7200)  # on a busy disk
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_peak_at_the_size_of_5b_lyrics(tmp_path, legacy):
    """Also packed, both forms of the weights are never in memory together."""
    if resources.disk_free_bytes(tmp_path) < 13e9:
        pytest.skip("needs 13 GB of disk")
    if available_bytes() < 15e9:
        pytest.skip("needs 15 GB of memory that nobody uses")
    found = measured(tmp_path, "vqvae", "prior_5b_lyrics", legacy=legacy, half=True, level=2)
    print(found)
    assert found["file"] == pytest.approx(11.45e9, rel=0.005) and found["net"] == pytest.approx(11.45e9, rel=0.005)
    assert found["loading"] <= 1.15 * found["file"] and found["packed"] <= 1.3 * found["file"], found


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return min(free, resources.memory_limit_bytes())
