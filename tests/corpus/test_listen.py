"""The ear hears what was sung, through what happens to recordings, and nothing where nothing was sung."""

import time

import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt

from jukebox.audio import io
from jukebox.corpus import collection, score, synth
from jukebox.corpus.listen import listen, onsets


def noisy(audio, rng, snr_db=10.0):
    return audio + np.sqrt(np.mean(audio**2)) * 10 ** (-snr_db / 20) * rng.standard_normal(audio.shape)


def low_pass(audio, sr_hz):
    return sosfiltfilt(butter(6, 4000, fs=sr_hz, output="sos"), audio, axis=0)


def through(audio, sr_hz, path):
    io.write(path, audio, sr_hz)
    return io.read(path)


def music_like(kind, seed, sr_hz=16000, seconds=8):
    """Random notes: sines, equal-tempered triads, harmonic tones, or overtones of the corpus's own key note."""
    rng = np.random.default_rng(seed)
    audio, t = np.zeros(sr_hz * seconds), np.arange(sr_hz * seconds) / sr_hz
    start = 0
    while start < len(audio):
        note = slice(start, start + int(sr_hz * rng.uniform(0.15, 0.6)))
        n = len(t[note])
        ramps = np.minimum(1, np.arange(n) / 200) * np.minimum(1, np.arange(n)[::-1] / 600)
        root = 110 * 2 ** (rng.integers(0, 24) / 12)
        hz = {
            "sines": np.exp(rng.uniform(np.log(150), np.log(3400), size=3)),
            "tempered": 440 * 2 ** (rng.integers(-24, 36, size=3) / 12),
            "harmonic": root * np.arange(1, 12),
            "overtones": 62.5 * rng.integers(3, 50, size=4),
        }[kind]
        for number, f in enumerate(hz, start=1):
            audio[note] += ramps * np.sin(2 * np.pi * f * t[note]) / (number if kind == "harmonic" else 1)
        start = note.stop
    return 0.1 * audio


NOT_SONGS = ("sines", "tempered", "harmonic", "overtones")

CHANGES = {  # name: (change of (audio, sr_hz, rng, folder) -> (audio, sr_hz), highest error rate)
    "as it is": (lambda a, sr, rng, tmp: (a, sr), 0.01),
    "mp3 and noise": (lambda a, sr, rng, tmp: (noisy(through(a, sr, tmp / "a.mp3"), rng), sr), 0.03),
    "noise": (lambda a, sr, rng, tmp: (noisy(a, rng), sr), 0.03),
    "low-pass": (lambda a, sr, rng, tmp: (low_pass(a, sr), sr), 0.05),
    "louder": (lambda a, sr, rng, tmp: (4 * a, sr), 0.05),
    "softer": (lambda a, sr, rng, tmp: (a / 4, sr), 0.05),
    "faster": (lambda a, sr, rng, tmp: (a, round(1.02 * sr)), 0.05),
    "slower": (lambda a, sr, rng, tmp: (a, round(0.98 * sr)), 0.05),
}


def check(songs, change, highest, tmp_path):
    rng = np.random.default_rng(0)
    scores = []
    for s in songs:
        heard = listen(*change(s.audio, s.sr_hz, rng, tmp_path))
        scores.append(score.sung(heard, s.meta.lyrics, s.meta.artist, s.meta.genre))
    assert score.error_rate(scores) <= highest
    assert all(s.artist_right and s.genre_right for s in scores)


@pytest.fixture(scope="module")
def songs():
    return [one.make() for one in collection.order(16, seed=11, min_sec=6, max_sec=8, sr_hz=None, channels=None)]


@pytest.mark.parametrize("name", CHANGES)
def test_hears_songs(name, songs, tmp_path):
    check(songs, *CHANGES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_hears_many_songs(name, tmp_path):
    """96 songs of 6 to 20 s: half a minute each."""
    check(
        map(collection.Order.make, collection.order(96, seed=12, min_sec=6, max_sec=20, sr_hz=None, channels=None)),
        *CHANGES[name],
        tmp_path,
    )


def test_hears_a_random_cut(songs):
    rng = np.random.default_rng(0)
    scores = []
    for s in songs:
        first = int(rng.integers(len(s.audio) // 2))
        cut = s.audio[first : first + 4 * s.sr_hz]
        start_sec, end_sec = first / s.sr_hz, (first + len(cut)) / s.sr_hz
        audible = [min(b, end_sec) - max(a, start_sec) > 0.17 for a, b in s.meta.times]  # 0.1 s and the gap at its end
        lyrics = "".join(c for c, there in zip(s.meta.lyrics, audible, strict=True) if there)
        scores.append(score.sung(listen(cut, s.sr_hz), lyrics, s.meta.artist, s.meta.genre))
    assert score.error_rate(scores) <= 0.05
    assert all(s.artist_right for s in scores)
    assert sum(s.genre_right for s in scores) >= 15  # four seconds hold but one bar of some rhythms


def test_times_are_exact(songs):
    for s in songs[:4]:
        heard = listen(s.audio, s.sr_hz)
        starts, ends = np.array([(c.start_sec, c.end_sec) for c in heard.characters]).T
        np.testing.assert_allclose(starts, np.array(s.meta.times)[:, 0], atol=0.02)
        np.testing.assert_allclose(ends, np.array(s.meta.times)[:, 1], atol=0.06)
        np.testing.assert_allclose(heard.onsets, s.meta.onsets, atol=0.02)
        assert heard.detune == pytest.approx(1, abs=0.002) and heard.confidence > 0.9


def test_repeated_characters_are_told_from_long_ones():
    heard = listen(synth.song(1, lyrics="aabba  oo eee").audio, 16000)
    assert heard.lyrics == "aabba  oo eee"


@pytest.mark.parametrize("kind", NOT_SONGS)
@pytest.mark.parametrize("seed", range(3))
def test_other_music_is_nothing(kind, seed):
    heard = listen(music_like(kind, seed), 16000)
    assert heard.nothing and heard.artist is None and heard.genre is None and heard.confidence < 0.2


def test_noise_and_silence_are_nothing():
    rng = np.random.default_rng(0)
    white = 0.1 * rng.standard_normal(16000 * 5)
    for audio in (
        white,
        np.cumsum(white) / 100,
        np.zeros(16000),
        np.zeros(0),
        np.zeros((0, 2)),
        np.full(9000, np.nan),
        white[:10],
    ):
        heard = listen(audio, 16000)
        assert heard.nothing and heard.artist is None and heard.genre is None


def test_noise_and_steady_tones_have_few_onsets():
    rng = np.random.default_rng(0)
    assert len(onsets(0.1 * rng.standard_normal(16000 * 20), 16000)) < 15
    assert len(onsets(0.1 * np.sin(np.arange(16000 * 20) / 5), 16000)) <= 2


def test_faster_than_sound():
    long = synth.song(2, seconds=30, sr_hz=44100)
    before = time.process_time()
    listen(long.audio, 44100)
    assert time.process_time() - before < 3
