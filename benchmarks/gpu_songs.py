"""Whole songs of 20 s for gpu.py --full: three levels, window by window, resumable behind each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_nets import packed_prior, shape_of
from torch import Tensor

from jukebox import files
from jukebox.nn import linear
from jukebox.prior.model import Prior
from jukebox.sampling.hps import SongHps
from jukebox.sampling.levels import LevelSinger, Song
from jukebox.sampling.logits import Knobs
from jukebox.sampling.plan import LevelPlan, Window
from jukebox.sampling.precision import made_up_labels
from jukebox.sampling.requests import LevelSettings, requests_of
from jukebox.sampling.schedule import Schedule, goals
from jukebox.sampling.walk import walk

TOPS = ("prior_1b_lyrics", "prior_5b_lyrics")
LENGTH_SEC, SHORT_SEC = 20, 0.75
HOP = {0: 0.5, 1: 0.5, 2: 0.125}


class Singer(LevelSinger):
    """Labels are made up: these songs have no tables of artists."""

    def _labels(self, songs: Sequence[Song], window: Window, device: torch.device) -> Tensor | None:
        if not self.prior.labelled:
            return None
        return made_up_labels(self.prior, len(songs), torch.Generator().manual_seed(0)).to(device)


def sing(
    add: Callable[[str, Callable[[], dict[str, Any]]], None], form: linear.Form, batches: Sequence[int], device: str,
    folder: Path, small: bool,
) -> None:  # fmt: skip
    """A row for every top and batch; folder keeps codes and seconds of what is not finished."""
    folder.mkdir(exist_ok=True)
    for top in TOPS:
        for n in batches:
            if n <= (3 if "5b" in top else 16):
                add(f"{top} {form} n={n} full", lambda top=top, n=n: songs(top, form, n, device, folder, small))


def songs(top: str, form: linear.Form, n: int, device: str, folder: Path, small: bool) -> dict[str, Any]:
    """Sample n songs through three levels, one prior in memory at a time."""
    shapes = {2: shape_of(top, small), 1: shape_of("upsampler_level_1", small), 0: shape_of("upsampler_level_1", small)}
    hops = shapes[2].hops
    plans = {
        level: LevelPlan(
            level, shape.n_ctx, max(4, int(HOP[level] * shape.n_ctx)), hops[level], 4 if level < 2 else None
        )
        for level, shape in shapes.items()
    }
    length = int((SHORT_SEC if small else LENGTH_SEC) * 44_100) // hops[2] * hops[2]
    made = [Song(request, length, length) for request in requests_of(SongHps(), 0, n)]
    kept = folder / f"{top}_{form}_{n}.npz"
    seconds = {"2": 0.0, "1": 0.0, "0": 0.0}
    if kept.exists():
        with np.load(kept) as found:
            seconds = json.loads(str(found["seconds"]))
            for item, song in enumerate(made):
                song.codes = {level: found[f"{item}_{level}"] for level in plans if f"{item}_{level}" in found.files}
    settings = LevelSettings(Knobs(0.98), 1024, n)
    schedule = Schedule(plans, goals(made, plans), lambda request, level: settings)
    loaded: dict[int, Prior] = {}

    def singer(level: int, settings: LevelSettings) -> LevelSinger:
        if level not in loaded:
            loaded.clear()
            loaded[level] = packed_prior(shapes[level], form, device)
            loaded[level].level = level
        return Singer(loaded[level], plans[level], settings, None, linear.result_dtype(loaded[level]), True)

    for event in walk(made, schedule, singer):
        seconds[str(event.level)] += event.seconds
        arrays = {f"{item}_{level}": codes for item, song in enumerate(made) for level, codes in song.codes.items()}
        files.publish(kept, lambda out, arrays=arrays: np.savez(out, seconds=json.dumps(seconds), **arrays))  # noqa: B023
        print(f"level {event.level}: {made[0].have(event.level)} codes, {event.seconds:.1f} s", flush=True)
    return {
        "row": "songs", "model": top, "dtype": form, "n": n, "sec_of_music": round(length / 44_100, 1),
        "seconds": round(sum(seconds.values()), 1), "levels": {k: round(v, 1) for k, v in seconds.items()},
        "extrapolated": False,
    }  # fmt: skip
