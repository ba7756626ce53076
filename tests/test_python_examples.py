"""What the README and the notebook show in Python, executed: in a folder like that of `make demo`, with untrained nets."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
import torch
from nbclient import NotebookClient

from jukebox import settings
from jukebox.models import build, checkpoint

ROOT = Path(__file__).resolve().parent.parent
PRIORS = {"top": ("tiny_top", 2), "up1": ("tiny_upsampler", 1), "up0": ("tiny_upsampler", 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """demo/logs and demo/held_out; nets of the demo's presets, but smaller, as random numbers made them."""
    root = tmp_path_factory.mktemp("clone")
    torch.manual_seed(0)
    hps = settings.from_presets("tiny_vqvae", name="vqvae", width=8)
    net = build.build_vqvae(hps)
    write(root / "demo/logs/vqvae", hps, net, build.vqvae_names(hps))
    for name, (presets, level) in PRIORS.items():
        hps = settings.from_presets(
            f"tiny_vqvae,{presets}", name=name, width=8, prior_width=16, prior_depth=3 if level == 2 else 1, level=level,
            prior=True, restore_vqvae="demo/logs/vqvae",
        )  # fmt: skip
        write(root / f"demo/logs/{name}", hps, build.build_prior(hps), build.prior_names(hps))
    held_out = root / "demo/held_out"
    held_out.mkdir()
    for item, suffix in enumerate((".wav", ".flac")):
        soundfile.write(held_out / f"song_{item}{suffix}", np.random.default_rng(item).normal(0, 0.1, 40_000), 8000)
    return root


def write(path, hps, net, names):
    checkpoint.write(path, 1, hps=dict(hps.values), model=checkpoint.published_state(net, names), opt=None, extra={})


def test_the_readme(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    assert re.search(r"level 2: 0\.0 to 2\.0 s\n", capsys.readouterr().out)
    assert len(names["sounds"]) == 2 and names["heard"][2].shape == (16,)
    assert soundfile.info("song.flac").frames == names["more"][0].length_samples == 4 * 8000 // 256 * 256


def test_the_notebook(folder, monkeypatch):
    """Seconds: it starts a kernel, which is a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs/jukebox.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "docs/jukebox.ipynb is kept without outputs"
    (folder / "docs").mkdir()
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder / "docs")}}).execute()
    shown = [output["data"] for cell in cells for output in cell.outputs if "data" in output]
    sounds = [data["text/html"] for data in shown if "text/html" in data]
    assert len(sounds) == 9 and all("<audio" in html and "data:audio/wav;base64," in html for html in sounds)
    assert (folder / "demo/piece.pth.tar").is_file()
    printed = "".join(output["text"] for cell in cells for output in cell.outputs if "text" in output)
    assert re.search(r"level 2: 0\.00 to 1\.98 s\nlevel 1: 0\.00 .*\nlevel 0: 0\.00 ", printed)
