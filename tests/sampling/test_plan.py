"""Which windows cover a song: no gap, no overlap beyond what is asked, every start where an upper code begins."""

import random

import pytest

from jukebox.errors import UsageError
from jukebox.sampling.plan import LevelPlan, Window, hop_codes, next_window, table, whole_length, window_starts

CASES = [(total, n_ctx, hop) for n_ctx in (4, 10) for total in (1, 3, 4, 5, 9, 10, 11, 37, 60) for hop in (1, 3, n_ctx)]


@pytest.mark.parametrize("total, n_ctx, hop", CASES)
def test_starts_cover_everything(total, n_ctx, hop):
    starts = window_starts(total, n_ctx, hop)
    assert starts[0] == 0 and starts == sorted(set(starts))
    length = min(n_ctx, total)
    assert starts[-1] + length == total
    assert all(0 < later - earlier <= hop for earlier, later in zip(starts, starts[1:], strict=False))


def walk(total: int, n_ctx: int, hop: int, have: int) -> list[Window]:
    made = []
    while window := next_window(total, n_ctx, hop, have):
        made.append(window)
        have = window.start + window.length
    return made


@pytest.mark.parametrize("total, n_ctx, hop", CASES)
def test_walking_adds_every_missing_code_once(total, n_ctx, hop):
    for have in {0, 1, n_ctx - 1, n_ctx, n_ctx + 1, total - 1, total, total + 5}:
        windows, there = walk(total, n_ctx, hop, have), have
        for window in windows:
            assert window.start + window.given == there or (window.given == 0 and there == window.start)
            assert 0 <= window.given < window.length <= n_ctx
            there = window.start + window.length
        assert there == max(have, total)
        assert all(window.start in window_starts(total, n_ctx, hop) for window in windows)
        assert not windows or all(w.length == min(n_ctx, total) for w in windows)


def test_a_partial_window_makes_what_is_missing_and_no_more():
    assert walk(26, 36, 9, 20) == [Window(0, 26, 20)] and walk(26, 36, 9, 26) == []


def test_upsamplers_begin_where_an_upper_code_begins():
    rng = random.Random(0)
    for _ in range(300):
        ratio, n_ctx = rng.choice([2, 4]), 4 * rng.randint(2, 12)
        hop, rounded = hop_codes(rng.uniform(0.01, 1.0), n_ctx, ratio)
        assert hop % ratio == 0 and 0 < hop <= max(n_ctx, ratio)
        total = n_ctx + ratio * rng.randint(0, 60)
        starts = window_starts(total, n_ctx, hop)
        assert all(start % ratio == 0 for start in starts) and starts[-1] + n_ctx == total


@pytest.mark.parametrize(
    "fraction, n_ctx, ratio, expected",
    [(0.5, 8192, 4, (4096, False)), (0.125, 6144, None, (768, False)), (0.3, 36, 2, (10, False)), (0.3, 40, 8, (8, True)),
     (0.001, 8192, 4, (8, False)), (0.0001, 8192, 4, (4, True)), (0.0001, 64, None, (1, False))],
)  # fmt: skip
def test_hops(fraction, n_ctx, ratio, expected):
    assert hop_codes(fraction, n_ctx, ratio) == expected


def test_lengths():
    assert whole_length(20.0, 0, 44100, 128) == 881_920 == 6890 * 128
    assert whole_length(20.0, 1000, 44100, 128) == 896
    with pytest.raises(UsageError, match="less than one top code"):
        whole_length(0.001, 0, 44100, 128)


def test_published_numbers():
    """20 s of the published models: 1 or 2, 6 and 26 windows (spec 7.5)."""
    plans = [LevelPlan(0, 8192, 4096, 8, 4), LevelPlan(1, 8192, 4096, 32, 4), LevelPlan(2, 6144, 768, 128, None)]
    totals = [plan.total(881_920) for plan in plans]
    assert totals == [110240, 27560, 6890]
    assert [len(window_starts(t, p.n_ctx, p.hop)) for t, p in zip(totals, plans, strict=True)] == [26, 6, 2]
    shown = table(plans, 881_920, 44100, {2: 100})
    assert shown.count("\n") == 3 and "6890" in shown and "26" in shown


def test_an_upsampler_needs_a_whole_window():
    LevelPlan(1, 8192, 4096, 32, 4).check(8192 * 32, 44100)
    LevelPlan(2, 8192, 1024, 128, None).check(100 * 128, 44100)
    with pytest.raises(UsageError, match="5.94 s"):
        LevelPlan(1, 8192, 4096, 32, 4).check(8192 * 32 - 128, 44100)
