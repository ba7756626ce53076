"""Parts of a run, one after the other, are the run."""

import numpy as np
import pytest
import soundfile
import torch

from jukebox import settings
from jukebox.codestore.geometry import Geometry
from jukebox.errors import UsageError
from jukebox.models import restricted
from jukebox.sampling import commands, recorded
from jukebox.sampling.hps import SampleHps
from jukebox.sampling.parts import items_asked, levels_asked

GEOMETRY = Geometry(8000, (4, 8, 16), 32)


@pytest.mark.parametrize(
    "text, levels", [("", (2, 1, 0)), ("3", (2, 1, 0)), ("2", (2,)), ("1,0", (1, 0)), ("0,1", (1, 0)), ("0", (0,))]
)
def test_levels(text, levels):
    """One number that is no level is that of all levels, as the published commands have it."""
    assert levels_asked(_sample(f"--levels={text}"), GEOMETRY) == levels


def test_levels_that_are_not_there():
    for text in ("4", "3,1"):
        with pytest.raises(UsageError, match="0 to 2"):
            levels_asked(_sample(f"--levels={text}"), GEOMETRY)


def test_items():
    assert items_asked("0,3-5", 6) == {0, 3, 4, 5} and items_asked("", 3) == {0, 1, 2} and items_asked("2", 3) == {2}
    for text in ("6", "5-3", "a", "-1", "0-9", "1.5"):
        with pytest.raises(UsageError, match=r"0 to 5"):
            items_asked(text, 6)


def _sample(*flags):
    return settings.parse("sample", ["--model=x", "--name=y", *flags]).section(SampleHps)


def have(root, item):
    found = {}
    for path in sorted(root.glob(f"progress/item_{item:04d}_level_*.npy")):
        found[int(path.stem[-1])] = len(np.load(path))
    return found


def test_parts_make_the_whole(tiny, tmp_path):
    root = tmp_path / "out"
    whole = tiny.flags(root, requests=tiny.requests(tmp_path / "songs.jsonl"), sample_length=960)
    with pytest.raises(UsageError, match="--levels=2,1"):
        tiny.sing([*whole, "--levels=1,0"])
    tiny.sing([*whole, "--levels=2", "--items=1", "--to=0.03"])
    assert have(root, 0) == {} and 15 <= have(root, 1)[2] < 60
    page = (root / "index.html").read_text()
    assert "1 of 2 songs" not in page and "2 of 2 songs are not whole" in page and "level 2 0.1 of 0.1 s" in page
    tiny.sing([*whole, "--levels=1,0"])  # of what there is
    assert have(root, 0) == {} and 0 < have(root, 1)[0] < 240
    assert not list(root.glob("level_*/data.pth.tar"))
    tiny.sing([*whole, "--levels=2", "--embed"])
    assert "2 of 2 songs are not whole yet" in (root / f"{root.name}.html").read_text()
    assert (root / "level_2/data.pth.tar").exists() and not (root / "level_1/data.pth.tar").exists()
    hps, asked = recorded.as_begun(
        settings.parse("sample", [f"--name={root}", "--device=cpu", "--embed", "--plan"]), root
    )
    assert hps.section(SampleHps).model == tiny.model and hps.section(SampleHps).embed and len(asked) == 2
    assert hps.given("top_k") and not hps.given("sr")
    typed = [flag for flag in whole if not flag.startswith(("--device", "--chunk_size", "--max_batch_size"))]
    offered = commands.sing_on(settings.parse("sample", typed))
    assert commands.sing_on(hps) == offered.replace(" --mode=", " --device=cpu --mode=")
    with pytest.raises(UsageError, match="--temp"):
        recorded.as_begun(settings.parse("sample", [f"--name={root}", "--temp=0.9"]), root)
    tiny.sing([*whole, "--items=0-1"])
    tree = restricted.load(root / "level_0/data.pth.tar")
    zs, knobs = tree["zs"], {"temp": 1.0, "top_k": 1, "top_p": 0.0, "min_p": 0.0, "seed": 0}
    assert tree["sampling_kwargs"][1] == knobs | {"chunk_size": 8, "max_batch_size": 2}
    assert "temperature 1, top k 1" in (root / "index.html").read_text()
    assert all(torch.equal(zs[level], tiny.arrays[f"ancestral.z_{level}"]) for level in range(3))
    assert "not whole" not in (root / "index.html").read_text() and not (root / "earlier").exists()


def test_an_excerpt_sounds_as_the_whole_will(tiny, tmp_path):
    """Where windows do not overlap nothing is missing at its beginning: codes are then those of the run."""
    flags = tiny.flags(
        tmp_path / "out", requests=tiny.requests(tmp_path / "songs.jsonl"), sample_length=960, hop_fraction="1,1,0.5",
        top_k=None, seed=5,
    )  # fmt: skip
    plan = tiny.session(flags).levels[1].plan
    window = plan.n_ctx * plan.samples_per_code
    start, stop = 2 * window, 3 * window
    stretch = [f"--from={(start + 0.5) / 8000}", f"--to={(start + 20) / 8000}", "--items=1"]
    with pytest.raises(UsageError, match="level 2 goes to 0.00 s only"):
        tiny.sing([*flags, "--levels=1,0", *stretch])
    tiny.sing([*flags, *stretch])
    root = tmp_path / "out" / "excerpts" / f"{start / 8000:.2f}-{stop / 8000:.2f}"
    preview = {level: np.load(root / f"progress/item_0001_level_{level}.npy") for level in range(3)}
    assert soundfile.info(root / "level_0/item_1.wav").frames == window and (root / "index.html").exists()
    assert list(have(tmp_path / "out", 1)) == [2] and have(tmp_path / "out", 0) == {}
    before = sorted(root.rglob("*.npy"))
    tiny.sing([*flags, *stretch])  # there already
    assert sorted(root.rglob("*.npy")) == before
    tiny.sing([*flags, "--items=1"])
    for level, samples in ((2, 16), (1, 8), (0, 4)):
        codes = np.load(tmp_path / f"out/progress/item_0001_level_{level}.npy")
        assert np.array_equal(codes[start // samples : stop // samples], preview[level]), level
    tiny.sing([*flags, "--items=1", "--from=0.01", "--to=0.02"])  # of a whole run: heard alone, nothing sampled
    (other,) = (folder for folder in (tmp_path / "out/excerpts").iterdir() if folder != root)
    assert (other / "level_0/data.pth.tar").exists() and not (other / "progress/trace_0.jsonl").read_text()
    with pytest.raises(UsageError, match="a song ends"):
        tiny.sing([*flags, "--from=9"])
