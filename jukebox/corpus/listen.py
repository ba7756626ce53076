"""The ear that reads a song of the corpus back from its samples: who sings, in which style, which characters, when.

It knows how the corpus is built (`synth`) and nothing about the song. In order:

1. The tuning: one factor for the whole recording (tape speed), where the eight overtones of the characters stand.
2. The characters: for each frame, how well its overtones agree with each pair; the best path through the frames.
3. What speaks against it: sound that is not of the corpus leaves energy beside the overtones, and no hum below them.
   Then nothing was heard, and the answer says so: no characters, no labels.
4. The artist from the partials of the hum under each character, the genre from the grid and rhythm of all onsets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from jukebox.audio import io
from jukebox.corpus.synth import ALPHABET, ARTISTS, BAND_GAINS, BANDS, CHIME, CODES, GENRES, PITCHES, UNIT_HZ, Genre

Floats = NDArray[np.float64]

SR_HZ = 8000  # everything that matters lies below 3.6 kHz
HOP = 64  # 8 ms
HOP_SEC = HOP / SR_HZ
WINDOW = 256  # 32 ms: short enough for the gap between notes, long enough to part the overtones (250 Hz apart)
MAX_DETUNE = 0.035


@dataclass(frozen=True)
class HeardCharacter:
    """A character, where it was sung, and how clearly: 1 is clear, 0 is a guess."""

    character: str
    start_sec: float
    end_sec: float
    confidence: float


@dataclass(frozen=True)
class Heard:
    """What a listener who knows the corpus makes of a recording; empty and None where it is not of the corpus.

    `confidence`, 0 to 1: the share of the sound that the characters explain, times how well an artist's hum lies under them.
    `detune` is the recording's speed against the corpus's.
    """

    artist: str | None
    genre: str | None
    characters: tuple[HeardCharacter, ...]
    onsets: tuple[float, ...]
    confidence: float
    detune: float

    @property
    def lyrics(self) -> str:
        return "".join(c.character for c in self.characters)

    @property
    def nothing(self) -> bool:
        return not self.characters


def listen(audio: NDArray[np.floating], sr_hz: int) -> Heard:
    """Reads (T,) or (T, C) samples of any rate and loudness."""
    sound = _prepare(audio, sr_hz)
    beats = _onsets(sound)
    detune = _detune(sound)
    characters, explained = _characters(sound, detune)
    artist, hum = _artist(sound, characters, detune)
    confidence = round(explained * hum, 4)
    if confidence < _BELIEVED:
        return Heard(None, None, (), beats, confidence, 1.0)
    return Heard(artist, _genre(sound, beats, detune), characters, beats, confidence, detune)


def onsets(audio: NDArray[np.floating], sr_hz: int) -> tuple[float, ...]:
    """Beginnings of notes in seconds, of any music; steady sound and noise have next to none."""
    return _onsets(_prepare(audio, sr_hz))


def _prepare(audio: NDArray[np.floating], sr_hz: int) -> Floats:
    """(T,) or (T, C) at any rate -> (T,) mono at SR_HZ with an RMS of 1, or empty if it is silent or too short to tell."""
    samples = np.asarray(audio, dtype=np.float32)
    samples = samples[:, None] if samples.ndim == 1 else samples
    mono = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0).mean(axis=1, keepdims=True)
    if len(mono) < 2 * WINDOW:
        return np.zeros(0)
    sound = io.resample(mono, sr_hz, SR_HZ)[:, 0].astype(np.float64)
    rms = float(np.sqrt(np.mean(sound**2)))
    return sound / rms if rms > 1e-4 else np.zeros(0)


def _frames(sound: Floats, window: int, hop: int) -> Floats:
    """(T,) -> (N, window), frame n centred at n * hop, under a Hann window of unit sum."""
    hann = np.hanning(window + 1)[:-1]
    padded = np.pad(sound, (window // 2, window))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)[: len(sound) + 1 : hop]
    frames: Floats = windows * (hann / hann.sum())
    return frames


def _spectrum(sound: Floats, window: int, hop: int) -> tuple[Floats, Floats]:
    """Power (N, F) of a tone's amplitude squared at its peak, and the frequencies (F,) in Hz."""
    power: Floats = np.abs(2 * np.fft.rfft(_frames(sound, window, hop))) ** 2
    return power, np.fft.rfftfreq(window, 1 / SR_HZ).astype(np.float64)


def _detune(sound: Floats) -> float:
    """The factor on all frequencies at which most energy stands on the eight overtones."""
    if not len(sound):
        return 1.0
    power, hz = _spectrum(sound, 1024, 256)
    fine = np.arange(850.0, 3300.0, 1.0)
    mean = np.convolve(np.interp(fine, hz, power.mean(axis=0)), np.hanning(17)[1:-1] / 8, mode="same")
    detunes = np.linspace(1 - MAX_DETUNE, 1 + MAX_DETUNE, 141)
    lines = np.multiply.outer(detunes, np.array(BANDS) * UNIT_HZ)
    return float(detunes[np.argmax(np.interp(lines, fine, mean).sum(axis=1))])


_BELIEVED = 0.25  # less confidence means nothing was heard; measured: the corpus from 0.92, other music up to 0.18

_SILENCE = len(ALPHABET)
_TEMPLATES = np.zeros((len(ALPHABET), len(BANDS) + 1))  # unit vectors: eight overtones, and all that stands beside them
for _i, _c in enumerate(ALPHABET):
    _TEMPLATES[_i, list(CODES[_c])] = np.sqrt(0.5)

_CLEAR = 0.7  # a frame speaks for a pair that agrees better; one of its two overtones alone agrees by 0.71, both by 1
_NEW_NOTE = 2.0  # what beginning a note costs, in fully loud and perfectly clear frames
_SHORTEST = 12  # frames (96 ms): the shortest note believed
_FAINT_DB, _LOUD_DB = -13.0, -7.0  # against the loudest moment near by: a gap below the first, a note above the second


def _characters(sound: Floats, detune: float) -> tuple[tuple[HeardCharacter, ...], float]:
    """The characters sung, and the share of the sound that they explain: of its energy from 1 to 3.2 kHz or of its time,
    whichever is less.
    """
    if not len(sound):
        return (), 0.0
    power, hz = _spectrum(sound, WINDOW, HOP)
    lines = detune * UNIT_HZ * np.array(BANDS)
    nearest = np.abs(hz[:, None] - lines)
    # A tone between two bins of 31 Hz shares its power among three; noise beside the line counts as noise.
    bands = np.stack([power[:, nearest[:, b] < 50].sum(axis=1) for b in range(len(BANDS))], axis=1) / 1.5
    zone = power[:, (hz > 960 * detune) & (hz < 3250)].sum(axis=1) / 1.5
    beside = np.maximum(zone - bands.sum(axis=1), 0)
    loud = bands.sum(axis=1)
    # High overtones are sung a little softer; undo that, so that all pairs look alike.
    amplitudes = np.sqrt(np.concatenate([bands / np.square(BAND_GAINS), beside[:, None]], axis=1))
    agreement = amplitudes @ _TEMPLATES.T / (np.linalg.norm(amplitudes, axis=1, keepdims=True) + 1e-9)  # (N, 27)

    near = np.maximum(_running_max(loud, 20), 0.01 * np.quantile(loud, 0.95)) + 1e-12
    level_db = 10 * np.log10(loud / near + 1e-12)
    weight = np.clip((level_db - _FAINT_DB) / (_LOUD_DB - _FAINT_DB), 0, 1)
    gain = weight[:, None] * (agreement - _CLEAR) / (1 - _CLEAR) - (1 - weight[:, None])

    heard: list[HeardCharacter] = []
    sung = np.zeros(len(loud), dtype=bool)
    for state, first, last in _best_path(np.concatenate([gain, np.zeros((len(gain), 1))], axis=1)):
        if state == _SILENCE:
            continue
        mine = np.average(agreement[first:last], axis=0, weights=weight[first:last] + 1e-9)
        others = np.delete(mine, state).max()
        clear = float(np.clip((mine[state] - others) / (1 - np.sqrt(0.5) + 0.1), 0, 1))
        heard.append(HeardCharacter(ALPHABET[state], max(0, first - 1) * HOP_SEC, last * HOP_SEC, round(clear, 3)))
        sung[first:last] = agreement[first:last, state] > 0.8
    for i, (this, following) in enumerate(pairwise(heard)):
        if following.start_sec - this.end_sec < 0.12:  # the gap belongs to the note before it
            heard[i] = replace(this, end_sec=following.start_sec)
    sounding = power[:, (hz > 250) & (hz < 3250)].sum(axis=1)
    sounding = np.minimum(sounding, 0.1 * np.quantile(sounding, 0.95))  # by time rather than by strength
    by_energy = float(bands[sung].sum() / (zone.sum() + 1e-12))
    by_time = float(sounding[sung].sum() / (sounding.sum() + 1e-12))
    return tuple(heard), min(1.0, by_energy, by_time)


def _best_path(gain: Floats) -> list[tuple[int, int, int]]:
    """The segmentation of all frames into states with the greatest sum of gains (N, states), as (state, first, end).

    A note pays to begin and lasts a while; silence, the last state, is free.
    """
    n_frames, states = gain.shape
    sums = np.concatenate([np.zeros((1, states)), np.cumsum(gain, axis=0)])
    cost = np.full(states, _NEW_NOTE)
    cost[_SILENCE] = 0.0
    best = np.zeros(n_frames + 1)
    came_from = np.zeros(n_frames + 1, dtype=int)
    came_as = np.full(n_frames + 1, _SILENCE)
    head = np.full(states, -np.inf)  # of each state: the best score of a segment that is under way, less its sums
    began = np.zeros(states, dtype=int)
    for n in range(1, n_frames + 1):
        for m, these in ((n - 1, slice(_SILENCE, None)), (n - _SHORTEST, slice(0, _SILENCE))):
            if m >= 0:
                start = best[m] - cost[these] - sums[m, these]
                better = start > head[these]
                head[these] = np.where(better, start, head[these])
                began[these] = np.where(better, m, began[these])
        score = head + sums[n]
        state = int(np.argmax(score))
        best[n], came_as[n], came_from[n] = score[state], state, began[state]
    runs = []
    n = n_frames
    while n:
        runs.append((int(came_as[n]), int(came_from[n]), n))
        n = int(came_from[n])
    return runs[::-1]


def _artist(sound: Floats, characters: tuple[HeardCharacter, ...], detune: float) -> tuple[str | None, float]:
    """Whose partials lie under the characters, each on its best pitch, and how well they agree on average, 0 to 1."""
    units = np.arange(min(PITCHES), 3 * max(PITCHES) + 1)
    names = list(ARTISTS)
    templates = np.zeros((len(names), len(PITCHES), len(units)))
    for a, artist in enumerate(ARTISTS.values()):
        for p, pitch in enumerate(PITCHES):
            for number, amplitude in enumerate(artist.partials, start=1):
                templates[a, p, number * pitch - units[0]] = amplitude
    templates /= np.linalg.norm(templates, axis=2, keepdims=True)
    agreement = np.zeros(len(names))
    for c in characters:
        note = sound[max(0, round(c.start_sec * SR_HZ)) : round((c.end_sec - 0.04) * SR_HZ)]
        wave = np.exp(-2j * np.pi * detune * UNIT_HZ / SR_HZ * np.outer(units, np.arange(len(note))))
        partials = np.abs(wave @ (note * np.hanning(len(note))))
        agreement += (templates @ partials).max(axis=1) / (np.linalg.norm(partials) + 1e-9)
    best = int(np.argmax(agreement))
    return (names[best], float(agreement[best] / len(characters))) if characters else (None, 0.0)


_BLOCKS = 24  # bands in which beginnings are looked for, evenly spread over pitch from 80 Hz to 3.7 kHz
_RISE_DB = 0.8  # mean over the bands, above the usual: one band alone that rises by 20 dB, or three by 7


def _strength(sound: Floats) -> Floats:
    """How much begins in each frame (N,): the mean rise in dB, over bands, within 24 ms."""
    power, hz = _spectrum(sound, WINDOW, HOP)
    edges = np.geomspace(80, 3700, _BLOCKS + 1)
    blocks = np.stack(
        [power[:, (hz >= lo - 16) & (hz < max(hi, lo + 32) - 16)].sum(axis=1) for lo, hi in pairwise(edges)], axis=1
    )
    floor = 1e-3 * np.quantile(blocks.sum(axis=1), 0.95)  # 30 dB below the loud parts: what begins below is not heard
    level_db = 10 * np.log10(blocks + floor)
    rise = np.maximum(level_db[3:] - level_db[:-3], 0).mean(axis=1)
    return np.concatenate([[0.0], rise, [0.0, 0.0]])[: len(power)]


def _onsets(sound: Floats) -> tuple[float, ...]:
    if not len(sound):
        return ()
    strength = _strength(sound)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(strength, 60, mode="reflect"), 121)
    usual, often = np.quantile(around, (0.5, 0.75), axis=1)
    peak = (strength == _running_max(strength, 9)) & (strength > usual + np.maximum(_RISE_DB, 5 * (often - usual)))
    return tuple(float(n * HOP_SEC) for n in np.flatnonzero(peak))


def _running_max(values: Floats, reach: int) -> Floats:
    padded = np.pad(values, reach, mode="edge")
    highest: Floats = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1)
    return highest


def fit_grid(beats: Floats, tick_sec: float) -> tuple[float, float]:
    """How well onsets (N,) keep to a grid of ticks, from 0 (not at all) to 1, and the first tick of the grid that fits best."""
    mean = np.mean(np.exp(2j * np.pi * beats / tick_sec)) if len(beats) else 0j
    return float(abs(mean)), float(np.angle(mean) / (2 * np.pi) % 1 * tick_sec)


def _genre(sound: Floats, beats: tuple[float, ...], detune: float) -> str | None:
    """The genre on whose grid the onsets stand and whose rhythm the chime plays; None without any grid."""
    power, hz = _spectrum(sound, WINDOW, HOP)
    chime = np.sqrt(power[:, np.abs(hz - detune * CHIME * UNIT_HZ) < 50].sum(axis=1))
    score = {}
    for name, genre in GENRES.items():
        tick_sec = genre.tick_sec / detune
        fit, first = fit_grid(np.array(beats), tick_sec)
        frames = np.round(np.arange(first, len(sound) / SR_HZ - 0.04, tick_sec) / HOP_SEC).astype(int)
        strokes = np.array([chime[n : n + 5].max() - chime[max(0, n - 5) : max(0, n - 5) + 3].min() for n in frames])
        score[name] = fit + 0.5 * _rhythm_fit(strokes, genre) if fit > 0.4 else 0.0
    best = max(score, key=score.__getitem__)
    return best if score[best] > 0 else None


def _rhythm_fit(strokes: Floats, genre: Genre) -> float:
    """The correlation of strokes, one per tick, with the rhythm, begun wherever in the bar it fits best."""
    bar = np.array([{"X": 1.0, "x": 0.7, ".": 0.0}[sign] for sign in genre.rhythm])
    if len(strokes) < len(bar) or not strokes.std():
        return 0.0
    shifted = (np.resize(np.roll(bar, -shift), len(strokes)) for shift in range(len(bar)))
    return max(float(np.corrcoef(strokes, expected)[0, 1]) for expected in shifted)
