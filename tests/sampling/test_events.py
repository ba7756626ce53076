"""A run as events: after each, codes are in the folder, and what there is can be heard."""

import json

import numpy as np
import pytest
import soundfile
import torch

from jukebox.models import restricted
from jukebox.sampling import perform


@pytest.fixture
def always_heard(monkeypatch):
    """Sounds and page after every window, whatever that costs."""
    monkeypatch.setattr(perform.Seldom, "is_due", lambda self: True)


def test_every_window_is_published_and_heard(tiny, tmp_path, always_heard):
    root = tmp_path / "out"
    flags = tiny.flags(root, requests=tiny.requests(tmp_path / "songs.jsonl"), sample_length=960)
    seen = []
    for made in tiny.session(flags).events():
        seen.append(made.level)
        for song in made.songs:
            codes = np.load(root / f"progress/item_000{song.request.item}_level_{made.level}.npy")
            assert len(codes) == made.window.start + made.window.length
            wav = root / f"level_{made.level}/item_{song.request.item}.wav"
            assert soundfile.info(wav).frames == min(960, len(codes) * (4, 8, 16)[made.level])
        page = (root / "index.html").read_text()
        assert f"level_{made.level}/item_0.wav" in page and "2 of 2 songs are not whole yet" in page
        assert "of 0.1 s" in page
        if len(seen) == 5:
            break
    assert seen[:3] == [2, 1, 0]  # down as soon as possible
    for made in tiny.session(flags).events():  # goes on
        seen.append(made.level)
    assert max(i for i, level in enumerate(seen) if level == 2) > seen.index(0)
    zs = restricted.load(root / "level_0/data.pth.tar")["zs"]
    assert all(torch.equal(zs[level], tiny.arrays[f"ancestral.z_{level}"]) for level in range(3))


def test_level_by_level_where_priors_do_not_fit_together(tiny, tmp_path, monkeypatch):
    flags = tiny.flags(tmp_path / "out", requests=tiny.requests(tmp_path / "songs.jsonl"), sample_length=960)
    session = tiny.session(flags)
    choirs, make = [], session.choir

    def one_at_a_time(*args):
        choirs.append(make(*args))
        choirs[-1].together = False
        return choirs[-1]

    monkeypatch.setattr(session, "choir", one_at_a_time)
    levels = []
    for made in session.events():
        levels.append(made.level)
        assert len(choirs[0]._loaded) == 1
    assert levels == sorted(levels, reverse=True)
    lines = [json.loads(line) for line in (tmp_path / "out/progress/trace_0.jsonl").read_text().splitlines()]
    assert [line["level"] for line in lines if line["what"] == "end"] == levels
    zs = restricted.load(tmp_path / "out/level_0/data.pth.tar")["zs"]
    assert all(torch.equal(zs[level], tiny.arrays[f"ancestral.z_{level}"]) for level in range(3))
