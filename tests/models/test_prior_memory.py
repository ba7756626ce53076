"""Memory of loading a prior by the way that sampling takes: meta net, file read once, freed tensor by tensor."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jukebox import settings
from jukebox.models import build, checkpoint

PROGRAM = """
import sys, threading, time
from jukebox import settings
from jukebox.models import model_set

def anonymous():
    lines = open("/proc/self/status").read().split("\\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

vqvae = settings.from_presets("small_vqvae")
model_set.load_prior(model_set.Part(sys.argv[2]), vqvae, 1)  # what libraries take once
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
net, _ = model_set.load_prior(model_set.Part(sys.argv[1]), vqvae, 1)
done = True
watcher.join()
print(peak - before, sum(p.numel() * p.element_size() for p in net.parameters()))
"""


def write(path: Path, *, legacy: bool, half: bool, **sizes: int) -> Path:
    """A checkpoint of small_prior, as the first implementation wrote it."""
    hps = settings.from_presets("small_vqvae,small_prior", level=1, prior=True, fp16_params=half, **sizes)
    model: dict[str, torch.Tensor] = {}
    for entry in build.prior_names(hps):
        dtype = torch.float16 if half and entry.half_ok else torch.float32
        tied = model.get("prior.x_emb.weight") if entry.tied_to else None
        model[entry.published] = torch.ones(entry.shape, dtype=dtype) if tied is None else tied
    tree = {"model": model, "hps": dict(hps.values), "step": 1}
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    assert checkpoint.read(path).step == 1
    return path


@pytest.mark.slow  # files of 600 MB
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_peak_of_a_prior(tmp_path, legacy, half):
    path = write(tmp_path / "prior.pth.tar", legacy=legacy, half=half)
    small = write(tmp_path / "tiny.pth.tar", legacy=legacy, half=half, prior_width=64, prior_depth=2)
    size = path.stat().st_size
    done = subprocess.run([sys.executable, "-c", PROGRAM, path, small], capture_output=True, text=True, check=True)
    path.unlink()
    peak, net = map(int, done.stdout.split())
    assert peak <= 1.15 * max(size, net), f"{peak / max(size, net):.2f}"
