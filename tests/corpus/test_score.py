"""The figures are right on cases computed by hand, and chance does not pass for rhythm."""

import numpy as np
import pytest

from jukebox.corpus import collection, score, synth
from jukebox.corpus.listen import Heard, HeardCharacter


def heard(text, artist="Otto Fern", genre="Moss Waltz"):
    characters = tuple(HeardCharacter(c, float(i), i + 1.0, 1.0) for i, c in enumerate(text))
    return Heard(artist, genre, characters, (), 1.0, 1.0)


@pytest.mark.parametrize(
    ("asked", "got", "errors", "where"),
    [
        ("abc", "abc", 0, [0, 1, 2]),
        ("abc", "ac", 1, [0, None, 1]),
        ("abc", "xabc", 1, [1, 2, 3]),
        ("abc", "axc", 1, [0, None, 2]),
        ("abc", "", 3, [None] * 3),
        ("", "ab", 2, []),
    ],
)
def test_match(asked, got, errors, where):
    assert score.match(asked, got) == (errors, where)


def test_sung():
    one = score.sung(heard("xabc"), "abc", "Otto Fern", "Tin Gallop")
    assert one.error_rate == pytest.approx(1 / 3) and one.artist_right and not one.genre_right
    assert one.starts == (1.0, 2.0, 3.0)
    other = score.sung(heard("abcde", artist=None), "abcde", "Otto Fern", "Moss Waltz")
    assert not other.artist_right
    assert score.error_rate([one, other]) == pytest.approx(1 / 8)


@pytest.fixture(scope="module")
def songs():
    return [one.make() for one in collection.order(8, seed=21, min_sec=6, max_sec=8)]


def test_songs_keep_to_their_grid(songs):
    for s in songs:
        assert score.onsets_on_grid(s.audio, s.sr_hz).share > 0.95
        known = score.onsets_on_grid(s.audio, s.sr_hz, genre=s.meta.genre, first_sec=synth.LEAD_SEC)
        assert known.share == pytest.approx(known.on_grid, abs=0.05) and known.share > 0.95


def random_clicks(rng, seconds=8, sr_hz=16000):
    """As many short tones as a song has notes, at random times."""
    audio = np.zeros(seconds * sr_hz)
    for start in np.sort(rng.choice(seconds * 10 - 2, size=3 * seconds, replace=False)) / 10 + rng.uniform(0, 0.03):
        tone = np.exp(-np.arange(2000) / 500) * np.sin(np.arange(2000) * rng.uniform(0.1, 1.2))
        audio[int(start * sr_hz) :][:2000] += 0.3 * tone
    return audio


def test_chance_does_not_pass_for_rhythm():
    rng = np.random.default_rng(0)
    for given in ({}, {"genre": "Tin Gallop"}, {"genre": "Moss Waltz", "first_sec": 0.064}):
        scores = [score.onsets_on_grid(random_clicks(rng), 16000, **given) for _ in range(8)]
        together = score.pool(scores)
        assert together.onsets > 100 and together.share < 0.5
        assert together.share == pytest.approx(together.blind, abs=0.1)


def test_noise_and_silence_have_no_rhythm(songs):
    rng = np.random.default_rng(0)
    nothing = [score.onsets_on_grid(x, 16000) for x in (0.1 * rng.standard_normal(96000), np.zeros(96000))]
    assert [s.share for s in nothing] == [0, 0]
    good = score.onsets_on_grid(songs[0].audio, 16000)
    assert score.pool([good, *nothing]).share < 0.8 * good.share  # silence is not left out of the mean


def test_shift_and_drift_are_seen(songs):
    s = songs[0]
    given = {"genre": s.meta.genre, "first_sec": synth.LEAD_SEC}
    late = np.concatenate([np.zeros(round(s.meta.tick_sec / 2 * 16000)), s.audio])
    assert score.onsets_on_grid(late, 16000, **given).share < 0.1
    assert score.onsets_on_grid(late, 16000, genre=s.meta.genre).share > 0.95
    assert score.onsets_on_grid(s.audio, 14500, genre=s.meta.genre).share < 0.6  # a tenth too slow


def test_levels():
    tone = 0.5 * np.sin(np.arange(16000) * 0.1)
    found = score.levels(tone)
    assert found.rms_db == pytest.approx(-9.03, abs=0.1) and found.peak == pytest.approx(0.5, abs=1e-3)
    assert not found.silent and not found.clipped
    assert score.levels(np.clip(4 * tone, -1, 1)).clipped
    assert score.levels(np.zeros(10)).silent and score.levels(np.zeros(0)).silent
    with pytest.raises(ValueError, match="not numbers"):
        score.levels(np.array([np.nan]))


def test_likeness():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(16000)
    assert score.spectral_convergence_db(a, 0.9 * a) == pytest.approx(-20, abs=1e-6)
    assert score.spectral_convergence_db(a, -a) < -150
    assert score.spectral_convergence_db(a, 0 * a) == pytest.approx(0, abs=1e-6)
    noise = rng.standard_normal(16000)
    assert score.si_sdr_db(a, 3 * (a + 0.1 * noise)) == pytest.approx(20, abs=0.5)
    assert score.si_sdr_db(np.stack([a, a], 1), np.stack([a, a], 1)) > 100
    with pytest.raises(ValueError, match="shape"):
        score.si_sdr_db(a, a[1:])
