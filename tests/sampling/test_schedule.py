"""The order of windows: each once, each as soon as the codes it stands on exist, whoever samples which."""

import random

import numpy as np
import pytest

from jukebox.labels.song import SongMeta
from jukebox.sampling.levels import Song
from jukebox.sampling.logits import Knobs
from jukebox.sampling.plan import LevelPlan
from jukebox.sampling.requests import LevelSettings, Request
from jukebox.sampling.schedule import Schedule, goals, shares

PLANS = {
    0: LevelPlan(0, 16, 8, 2, 4), 1: LevelPlan(1, 16, 8, 8, 4), 2: LevelPlan(2, 12, 3, 32, None),
}  # fmt: skip


def songs_of(*lengths):
    return [Song(Request(item, SongMeta(), 0), length, length, {}) for item, length in enumerate(lengths)]


def schedule_of(songs, finest_first=True, size=16, plans=PLANS, until=None):
    return Schedule(
        plans, goals(songs, plans, until), lambda request, level: LevelSettings(max_batch_size=size), finest_first
    )


def take(task):
    """Sample a window: it must go on from what is there, under codes that exist."""
    for song in task.songs:
        plan, have, window = PLANS[task.level], song.have(task.level), task.window
        assert window.start + window.given == have or (window.given == 0 and have < window.start)
        if plan.ratio:
            assert song.have(task.level + 1) * plan.ratio >= window.start + plan.n_ctx
        song.codes[task.level] = np.zeros(window.start + window.length, np.int64)


def walked(songs, schedule=None, **options):
    schedule, made = schedule or schedule_of(songs, **options), []
    while task := schedule.next(songs):
        take(task)
        made.append((task.level, task.window, tuple(song.request.item for song in task.songs)))
    assert schedule.is_done(songs)
    return made


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("finest_first", [False, True])
def test_every_window_once(finest_first, size):
    songs = songs_of(32 * 20, 32 * 4, 32 * 20, 32 * 33)
    made = walked(songs, finest_first=finest_first, size=size)
    each = [(level, window, item) for level, window, items in made for item in items]
    assert len(each) == len(set(each))
    assert all(song.have(level) == plan.total(song.length_samples) for song in songs for level, plan in PLANS.items())
    assert max(len(items) for _, _, items in made) <= size


def test_levels_need_not_wait():
    songs = songs_of(32 * 40)
    deep = [level for level, *_ in walked(songs)]
    assert deep[:4] == [2, 1, 0, 0] and deep.index(0) < len(deep) - 1 - deep[::-1].index(2)
    flat = [level for level, *_ in walked(songs_of(32 * 40), finest_first=False)]
    assert flat == sorted(deep, reverse=True)


def test_batches_are_full():
    """Going down early does not split them: who can still join is waited for."""
    songs = songs_of(*[32 * 40] * 7)
    for level, window, items in walked(songs, size=3):
        assert len(items) == 3 or sum(song.have(level) > window.start for song in songs) == 7, (level, window, items)
    songs = songs_of(*[32 * 40] * 7)
    assert {items for *_, items in walked(songs)} == {tuple(range(7))}


def test_songs_drawn_otherwise_are_not_mixed():
    songs = songs_of(*[32 * 20] * 4)
    drawn = [LevelSettings(Knobs(temp)) for temp in (1.0, 0.9, 1.0, 0.9)]
    schedule = Schedule(PLANS, goals(songs, PLANS), lambda request, level: drawn[request.item], True)
    assert {items for *_, items in walked(songs, schedule)} == {(0, 2), (1, 3)}


def test_as_far_as_the_codes_above_exist():
    below = {level: PLANS[level] for level in (0, 1)}
    (song,) = songs = songs_of(32 * 20)
    assert goals(songs, below) == {(0, 0): 0, (0, 1): 0}
    song.codes[2] = np.zeros(7, np.int64)  # 28 codes of level 1
    assert goals(songs, below) == {(0, 0): 96, (0, 1): 24}
    walked(songs, plans=below)
    song.codes[2] = np.zeros(20, np.int64)
    walked(songs, plans=below)
    assert song.have(0) == 320 and song.have(1) == 80


def test_up_to_a_moment():
    """Whole windows, and above it what they stand on."""
    songs = songs_of(32 * 40)
    for until in (0, 1, 100, 500, 32 * 40, 10**6):
        found = goals(songs, PLANS, until)
        for level, plan in PLANS.items():
            reached = found[0, level] * plan.samples_per_code
            assert min(until, 32 * 40) <= reached <= 32 * 40
        assert found[0, 1] >= found[0, 0] // 4 and found[0, 2] >= found[0, 1] // 4
        walked(songs_of(32 * 40), until=until)
    assert goals(songs, PLANS, 1) == {(0, 0): 16, (0, 1): 16, (0, 2): 12}


@pytest.mark.parametrize("ranks", range(1, 10))
@pytest.mark.parametrize("items", [1, 2, 3, 5])
def test_shares(items, ranks):
    found = shares(range(items), PLANS, ranks)
    assert len(found) == items * 3
    busy = set(found.values())
    assert len(busy) == min(ranks, items * 3) and busy <= set(range(ranks))  # nobody idles while there is work
    if ranks <= items:  # a song is then sung by one process
        assert all(len({found[item, level] for level in PLANS}) == 1 for item in range(items))
    elif ranks >= 2 * items:  # the finest level has a process of its own
        finest = {found[item, 0] for item in range(items)}
        assert finest.isdisjoint(found[item, level] for item in range(items) for level in (1, 2))


@pytest.mark.parametrize("seed", range(5))
def test_processes_in_any_order(seed):
    """However fast each is, all of it is sampled, and the windows of an item are always the same."""
    chance = random.Random(seed)
    lengths = [32 * chance.randint(4, 40) for _ in range(chance.randint(1, 4))]
    expected = {(level, window, item) for level, window, items in walked(songs_of(*lengths)) for item in items}
    songs = songs_of(*lengths)
    schedule, ranks = schedule_of(songs, size=chance.randint(1, 3)), chance.randint(1, 7)
    owner = shares(range(len(songs)), PLANS, ranks)
    found = set()
    while not schedule.is_done(songs):
        tasks = [schedule.next(songs, lambda cell, rank=rank: owner[cell] == rank) for rank in range(ranks)]
        task = chance.choice([task for task in tasks if task])  # there is always one: nobody waits for ever
        take(task)
        found |= {(task.level, task.window, song.request.item) for song in task.songs}
    assert found == expected
