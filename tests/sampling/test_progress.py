"""When a run will be done, who still lives, and how much time letting it be heard may take."""

import os

import numpy as np
import pytest

from jukebox.errors import LaunchError
from jukebox.labels.song import SongMeta
from jukebox.sampling import exports
from jukebox.sampling.exports import Seldom
from jukebox.sampling.levels import Song
from jukebox.sampling.plan import LevelPlan, Window
from jukebox.sampling.progress import Display, Outlook
from jukebox.sampling.pulse import Pulse
from jukebox.sampling.requests import LevelSettings, Request
from jukebox.sampling.schedule import Schedule, goals, shares
from jukebox.sampling.walk import Made

PLANS = {0: LevelPlan(0, 16, 8, 8, 4), 1: LevelPlan(1, 12, 6, 32, None)}


def outlook(ranks):
    songs = [Song(Request(item, SongMeta(), 0), 32 * 40, 32 * 40) for item in range(2)]
    schedule = Schedule(PLANS, goals(songs, PLANS), lambda request, level: LevelSettings())
    return songs, schedule, Outlook(schedule, {0: 3.0, 1: 1.0}, shares(range(2), PLANS, ranks))


def made(songs, level, codes, seconds):
    for song in songs:
        song.codes[level] = np.zeros(song.have(level) + codes, np.int64)
    return Made(level, Window(0, codes, 0), tuple(songs), 0.0, seconds)


def test_time_left():
    """240 and 960 codes in all; a level that was not sampled yet costs as its size says."""
    songs, _, found = outlook(1)
    assert found.left(songs) is None
    found.made(made(songs, 1, 10, 10.0))  # 20 codes of 2 x 40: half a second each
    assert found.seconds_per_code(1) == 0.5 and found.seconds_per_code(0) == 1.5
    assert found.level_left(songs, 1) == 60 * 0.5 and found.left(songs) == 60 * 0.5 + 320 * 1.5
    found.made(made(songs, 0, 16, 3.2))  # measured, it is faster
    assert found.left(songs) == pytest.approx(60 * 0.5 + 288 * 0.1)


def test_time_left_of_the_busiest_process():
    songs, _, found = outlook(4)
    found.made(made(songs, 1, 10, 10.0))
    assert found.left(songs) == 160 * 1.5  # one song's level 0, beside all else


def test_one_line(caplog):
    songs, schedule, found = outlook(1)
    display = Display(schedule, songs, found)
    display.made(made(songs, 1, 10, 10.0))
    display.code(20)
    assert display.bar.line().startswith("2 levels: 20/400 code, level 1: 20/80, 30 s left, ")
    assert display.bar.line().endswith("code/s, 8 min left")


def test_a_silent_process_is_named(tmp_path):
    for rank in range(3):
        (tmp_path / str(rank)).touch()
    pulse = Pulse(lambda rank: tmp_path / str(rank), 0, timeout_sec=0.0)
    pulse.check([1, 2])
    os.utime(tmp_path / "2", (1, 1))
    with pytest.raises(LaunchError, match="rank 1 for 0 s"):
        pulse.check([1, 2])
    before = (tmp_path / "0").stat().st_mtime_ns
    pulse.beat()
    assert (tmp_path / "0").stat().st_mtime_ns != before


def test_it_pays_for_itself(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(exports.time, "monotonic", lambda: now[0])
    seldom = Seldom(share=0.05)
    assert seldom.is_due()
    seldom.run(lambda: now.__setitem__(0, now[0] + 3.0))
    now[0] += 59
    assert not seldom.is_due()
    now[0] += 2
    assert seldom.is_due()
