"""align.py: a run of ours and one of the first implementation get the golden alignment; what cannot be aligned says why."""

import json
import shutil

import pytest
import torch

from jukebox import settings
from jukebox.errors import UsageError
from jukebox.models import restricted
from jukebox.parallel.comm import SoloComm
from jukebox.sampling.align_run import align_run
from jukebox.sampling.hps import AlignHps


def align(*flags):
    hps = settings.parse("align", [str(flag) for flag in flags])
    return align_run(hps.section(AlignHps), SoloComm())


def rows(folder, item=0):
    return json.loads((folder / f"level_2/item_{item}/align.json").read_text())


def test_a_run_of_ours(tiny, ancestral, tmp_path):
    run = shutil.copytree(ancestral, tmp_path / "run")
    expected = rows(run)
    for path in (*run.glob("progress/align_*"), *run.glob("level_*/item_*/align.*")):
        path.unlink()
    assert align(run) == 0
    assert rows(run) == expected
    found = restricted.load(run / "level_0/data_align.pth.tar")["alignments"]
    torch.testing.assert_close(found[0], tiny.arrays["align_full.0"], rtol=1e-4, atol=1e-5)
    assert "sample.py" in (run / "index.html").read_text()  # the command that made the run, not this one


def test_another_head(tiny, ancestral, tmp_path):
    run = shutil.copytree(ancestral, tmp_path / "run")
    expected = rows(run)
    assert align(run, "--alignment_head=0") == 0
    assert rows(run) != expected


def test_a_run_of_the_first_implementation(tiny, ancestral, tmp_path):
    run = tmp_path / "old"
    for level in range(3):
        (run / f"level_{level}").mkdir(parents=True)
        for name in ("data.pth.tar", "item_0.wav", "item_1.wav"):
            shutil.copyfile(ancestral / f"level_{level}" / name, run / f"level_{level}" / name)
    with pytest.raises(UsageError, match="--model is missing"):
        align(run)
    hops = ",".join(map(str, tiny.info["hop_fraction"]))
    assert align(f"--logdir={run}", f"--model={tiny.model}", f"--ids_dir={tiny.ids_dir}", f"--hop_fraction={hops}") == 0
    for item in (0, 1):
        assert rows(run, item) == rows(ancestral, item)


def test_models_that_cannot(tiny, ancestral, tmp_path):
    with pytest.raises(UsageError, match="previous row|row"):
        align(shutil.copytree(ancestral, tmp_path / "run"), "--alignment_layer=2")
    with pytest.raises(UsageError, match="neither run.json"):
        align(tmp_path / "nothing")
