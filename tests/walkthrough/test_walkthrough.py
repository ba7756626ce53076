"""The demo's commands are real commands, and its verdict can fail."""

from pathlib import Path

import numpy as np
import pytest

from jukebox import settings
from jukebox.audio import io
from jukebox.codestore.geometry import Geometry
from jukebox.corpus import collection
from jukebox.walkthrough import figures, run
from jukebox.walkthrough.hps import WalkthroughHps

HPS = WalkthroughHps()


@pytest.mark.parametrize("step", run.steps(Path("demo"), HPS), ids=lambda step: f"{step.entry} {step.flags[0]}")
def test_every_step_is_an_ordinary_command(step: run.Step) -> None:
    assert (run.ENTRIES / f"{step.entry}.py").is_file()
    settings.parse(step.entry, list(step.flags))


def test_the_learning_rate_reaches_zero_only_after_the_last_step() -> None:
    from jukebox.training.schedule import Schedule

    for step in run.steps(Path("demo"), HPS):
        if step.entry == "train":
            v = settings.parse("train", list(step.flags)).values
            if v["lr_start_linear_decay"]:
                schedule = Schedule(v["lr"], lr_use_linear_decay=True, lr_decay=v["lr_decay"],
                                    lr_start_linear_decay=v["lr_start_linear_decay"])  # fmt: skip
                assert schedule(v["steps"] - 1) > 0
                assert schedule(v["steps"] + 2) == 0


def test_figures_are_judged_against_their_bounds() -> None:
    assert figures.Figure("a", -8.0, -8.0).good
    assert not figures.Figure("a", -7.9, -8.0).good
    assert figures.Figure("b", 15.0, 15.0, most=False).good
    assert not figures.Figure("b", 14.9, 15.0, most=False).good
    assert "BAD" in figures.table([figures.Figure("a", 1.0, 0.0)])


def test_samples_of_wrong_length_silent_or_clipped_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = (rng.standard_normal(4000) * 0.1).astype(np.float32)
    sounds = {"scratch": good, "continued": good[:-1], "upsampled": good * 0, "primed": np.sign(good)}
    for name, audio in sounds.items():
        folder = tmp_path / name / "level_0"
        folder.mkdir(parents=True)
        io.write(folder / "item_0.wav", audio, 8000)
    geometry = Geometry(8000, (8, 32), 16)  # 0.502 s are 4016 samples, 4000 in whole top codes
    assert [figure.value for figure in figures._samples(tmp_path, geometry, 0.502)] == [1, 1, 1]


def test_songs_keep_the_grid_and_noise_does_not() -> None:
    songs = [
        song.audio for song in map(collection.Order.make, collection.order(3, 5, min_sec=6, max_sec=7, sr_hz=8000))
    ]
    assert figures._share(songs, 8000) > 0.9
    noise = [np.random.default_rng(i).standard_normal(48000).astype(np.float32) * 0.1 for i in range(3)]
    assert figures._share(noise, 8000) < figures.RHYTHM
