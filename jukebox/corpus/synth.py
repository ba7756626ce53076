"""Songs of known truth: who sings, in which style, and when every character of the lyrics is sung.

The sound is that of an overtone singer with a small accompaniment:

* Every character is a pair of whistled overtones out of eight (`BANDS`), whatever the melody does: 28 pairs, 27 in use.
* Below them hums the voice, on the pitch of a melody of four notes; the artist is the timbre of that hum (`ARTISTS`).
* Below and above the voice, 6 dB softer, a bass and a chime play the genre's rhythm at the genre's tempo (`GENRES`).

Two choices make the songs easy to model for small nets without making them dull. All frequencies are multiples of
31.25 Hz and keep their phase through the whole song, so a steady note repeats itself exactly every 32 ms (512 samples
at 16 kHz) and, as all tones are overtones of one another, everything is in tune. And all notes begin on a grid of ticks
whose length is a whole number of such frames. Nothing lies above 3.5 kHz.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jukebox.errors import DataError

Audio = NDArray[np.float32]  # (T,) mono or (T, C)

FRAME_SEC = 0.032
UNIT_HZ = 1 / FRAME_SEC
LEAD_SEC = 2 * FRAME_SEC  # from the start of a song to its first tick
TAIL_SEC = 4 * FRAME_SEC  # from the end of the last note to the end of the song

BANDS = (32, 40, 48, 56, 64, 72, 80, 96)  # in units: 1000 ... 3000 Hz, overtones 4 to 12 of the key note (250 Hz)
PITCHES = (6, 8, 9, 10)  # in units, the melody: G C D E from 187.5 Hz
BASSES = (4, 3, 5, 4)  # in units, bar by bar: C G E C from 93.75 Hz
CHIME = 112  # in units: 3500 Hz

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
_BY_FREQUENCY = " eaoinstrhldcumfpgwybvkxjqz"  # frequent characters get the lower, softer pairs
_PAIRS = sorted(combinations(range(len(BANDS)), 2), key=lambda pair: (sum(pair), pair))
CODES: dict[str, tuple[int, int]] = {c: _PAIRS[_BY_FREQUENCY.index(c)] for c in ALPHABET}

TICKS_PER_CHARACTER = (1, 2, 3)
_TICK_WEIGHTS = (0.6, 0.27, 0.13)
MEAN_TICKS = float(np.dot(TICKS_PER_CHARACTER, _TICK_WEIGHTS))


@dataclass(frozen=True)
class Artist:
    """A timbre: the amplitudes of the hum's first three partials, of unit power together."""

    name: str
    partials: tuple[float, float, float]


@dataclass(frozen=True)
class Genre:
    """A tempo and a rhythm: 'X' is bass and chime, 'x' a softer chime, '.' a rest; one sign per tick."""

    name: str
    frames_per_tick: int
    rhythm: str

    @property
    def tick_sec(self) -> float:
        return self.frames_per_tick * FRAME_SEC

    @property
    def tempo_bpm(self) -> float:
        """Beats per minute, two ticks a beat."""
        return 30 / self.tick_sec


ARTISTS: dict[str, Artist] = {
    a.name: a
    for a in (
        Artist("Mira Vale", (1.0, 0.0, 0.0)),
        Artist("Otto Fern", (0.44, 0.9, 0.0)),
        Artist("Nine Lanterns", (0.71, 0.0, 0.71)),
        Artist("The Salt Harps", (0.3, 0.65, 0.7)),
    )
}
GENRES: dict[str, Genre] = {
    g.name: g
    for g in (
        Genre("Tin Gallop", 8, "X.x.X.xx"),
        Genre("Harbour Step", 9, "X..x..x."),
        Genre("Paper Lilt", 10, "X.xx.x"),
        Genre("Moss Waltz", 12, "Xxx"),
    )
}

_VOICE_GAIN = 0.118
BAND_GAINS = tuple(1.1 * (BANDS[0] / band) ** 0.2 for band in BANDS)  # beside a hum of unit power
_ACCOMPANIMENT_DB = -6.0  # against the voice
_ATTACK_SEC, _RELEASE_SEC, _GAP_SEC = 0.012, 0.032, 0.032  # every note ends in a gap, so that repeated ones are heard
_BASS_DECAY_SEC, _CHIME_DECAY_SEC, _VOICE_DECAY_SEC = 0.25, 0.07, 1.5
_BASS_GAIN, _CHIME_GAIN, _SOFT_CHIME_GAIN = 1.0, 0.8, 0.55


@dataclass(frozen=True)
class Truth:
    """What a song is, known exactly because it was made so.

    `times` holds start and end in seconds of each character of `lyrics`; `onsets` every note of voice and
    accompaniment; `tick_sec` is the rhythm grid, whose first tick stands at `LEAD_SEC`.
    """

    artist: str
    genre: str
    lyrics: str
    title: str
    times: tuple[tuple[float, float], ...]
    onsets: tuple[float, ...]
    tempo_bpm: float
    tick_sec: float
    seed: int


@dataclass(frozen=True)
class Song:
    """Sound and truth; audio is (T,) or, when stereo was asked for, (T, 2)."""

    audio: Audio
    sr_hz: int
    meta: Truth


@dataclass(frozen=True)
class Taken:
    """Words and runs of four characters that other lyrics must not have."""

    words: frozenset[str] = frozenset()
    runs: frozenset[str] = frozenset()

    @classmethod
    def by(cls, lyrics: Iterable[str]) -> Taken:
        """Those of all these lyrics."""
        texts = list(lyrics)
        words = frozenset(word for text in texts for word in text.split())
        return cls(words, frozenset(text[i : i + 4] for text in texts for i in range(len(text) - 3)))


def song(
    seed: int,
    *,
    artist: str | None = None,
    genre: str | None = None,
    lyrics: str | None = None,
    seconds: float | None = None,
    sr_hz: int = 16000,
    channels: int = 1,
    taken: Taken = Taken(),  # noqa: B008 - it cannot change
) -> Song:
    """One song; what is not asked for is drawn from the seed, lyrics without what is `taken`.

    With `seconds` the song is at most that long, less than one tick shorter, and its characters share the time; with
    `lyrics` alone it is as long as they need. Raises DataError for unknown labels or characters, and for lyrics that do
    not fit the time.
    """
    rng = np.random.default_rng([seed, 0x50E6])
    # Everything is drawn in any case, so that asking for one thing leaves the rest of the song as it was.
    drawn_artist, drawn_genre = rng.choice(list(ARTISTS)), rng.choice(list(GENRES))
    drawn_seconds = rng.uniform(6, 12)
    who = _lookup(ARTISTS, str(drawn_artist) if artist is None else artist, "artist")
    style = _lookup(GENRES, str(drawn_genre) if genre is None else genre, "genre")
    words, lengths, melody = (np.random.default_rng([seed, part]) for part in (1, 2, 3))

    n_ticks = None
    if seconds is not None or lyrics is None:
        n_ticks = int(((seconds or drawn_seconds) - LEAD_SEC - TAIL_SEC) / style.tick_sec + 1e-9)
        if n_ticks < 1:
            raise DataError(f"{seconds} seconds are too short for a song; give a second or more.")
    if lyrics is None:
        assert n_ticks is not None
        lyrics = _fit_lyrics(words, round(n_ticks / MEAN_TICKS), taken)
    if unknown := sorted(set(lyrics) - set(ALPHABET)):
        raise DataError(f"The corpus sings a-z and spaces only; its lyrics cannot contain {''.join(unknown)!r}.")
    ticks = _share_ticks(lengths, len(lyrics), n_ticks)
    n_ticks = n_ticks if n_ticks is not None else sum(ticks)

    starts = np.concatenate([[0], np.cumsum(ticks)])  # in ticks; lyrics asked for may leave an outro
    beats = LEAD_SEC + style.tick_sec * np.arange(n_ticks + 1)
    times = tuple((round(float(beats[a]), 6), round(float(beats[b]), 6)) for a, b in pairwise(starts))
    hits = [i for i in range(n_ticks) if style.rhythm[i % len(style.rhythm)] != "."]
    onsets = sorted({start for start, _ in times} | {round(float(beats[i]), 6) for i in hits})
    n_samples = round((beats[-1] + TAIL_SEC) * sr_hz)
    voice = _voice(lyrics, times, _melody(melody, len(lyrics)), who, sr_hz, n_samples)
    accompaniment = _accompaniment(style, beats[:-1], sr_hz, n_samples)
    if channels == 1:
        audio = voice + accompaniment
    else:  # the accompaniment a little to the left; both sides together sound as mono does
        audio = np.stack([voice + 1.2 * accompaniment, voice + 0.8 * accompaniment], axis=1)
    title = " ".join(lyrics.split()[:2]).title() or "Untitled"
    truth = Truth(
        who.name, style.name, lyrics, title, times, tuple(onsets), round(style.tempo_bpm, 3), style.tick_sec, seed
    )
    return Song(audio.astype(np.float32), sr_hz, truth)


def made_up_lyrics(seed: int, characters: int, *, unlike: Iterable[str] = ()) -> str:
    """Pronounceable nonsense of exactly so many characters, no word and no run of four of which is in `unlike`."""
    return _fit_lyrics(np.random.default_rng([seed, 1]), characters, Taken.by(unlike))


_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
_SHAPES = ("cv", "cvc", "vcv", "cvcc", "cvcv", "cvccv", "cvcvc")


def _fit_lyrics(rng: np.random.Generator, characters: int, taken: Taken) -> str:
    text = ""
    for _ in range(20_000):
        if len(text) >= characters:
            return text
        left = characters - len(text) - bool(text)
        # A word ends the text exactly or leaves room for a space and two characters more.
        shapes = [s for s in _SHAPES if len(s) == left or len(s) + 3 <= left] or ["c"]
        shape = str(rng.choice(shapes))
        word = "".join(str(rng.choice(list(_VOWELS if s == "v" else _CONSONANTS))) for s in shape)
        longer = f"{text} {word}" if text else word
        fresh = longer[max(0, len(text) - 3) :]
        if any(a == b for a, b in zip(word, word[1:], strict=False)):
            continue
        if word not in taken.words and not any(fresh[i : i + 4] in taken.runs for i in range(len(fresh) - 3)):
            text = longer
        elif rng.random() < 0.02:  # perhaps a dead end: every word of the length left is used
            text = ""
    raise DataError(f"No {characters} characters of new words are left beside the lyrics already in use.")


def _share_ticks(rng: np.random.Generator, characters: int, n_ticks: int | None) -> list[int]:
    """Ticks of each character; together `n_ticks`, where that many can be shared, else fewer (an outro follows)."""
    ticks = [int(t) for t in rng.choice(TICKS_PER_CHARACTER, size=characters, p=_TICK_WEIGHTS)]
    if n_ticks is None or not characters:
        return ticks
    if characters > n_ticks:
        raise DataError(f"{characters} characters of lyrics need more time: only {n_ticks} of them fit.")
    shortest, longest = TICKS_PER_CHARACTER[0], TICKS_PER_CHARACTER[-1]
    missing = min(n_ticks, longest * characters) - sum(ticks)
    while missing:
        step = 1 if missing > 0 else -1
        can = [i for i, t in enumerate(ticks) if shortest <= t + step <= longest]
        ticks[int(rng.choice(can))] += step
        missing -= step
    return ticks


def _melody(rng: np.random.Generator, notes: int) -> list[int]:
    """Indices into PITCHES: a walk in small steps that begins on the key note and now and then stays."""
    where, walk = PITCHES.index(8), []
    for _ in range(notes):
        walk.append(where)
        where = int(np.clip(where + rng.choice((-2, -1, 0, 1, 2), p=(0.1, 0.3, 0.2, 0.3, 0.1)), 0, len(PITCHES) - 1))
    return walk


def _voice(
    lyrics: str, times: Iterable[tuple[float, float]], melody: list[int], artist: Artist, sr_hz: int, n_samples: int
) -> NDArray[np.float64]:
    audio = np.zeros(n_samples)
    for character, (start, end), pitch in zip(lyrics, times, melody, strict=True):
        note = slice(round(start * sr_hz), round(end * sr_hz))
        t = np.arange(note.start, note.stop) / sr_hz
        for number, amplitude in enumerate(artist.partials, start=1):
            audio[note] += amplitude * _tone(number * PITCHES[pitch], t)
        for band in CODES[character]:
            audio[note] += BAND_GAINS[band] * _tone(BANDS[band], t)
        audio[note] *= _envelope(t - t[0], end - start)
    return _VOICE_GAIN * audio


def _accompaniment(genre: Genre, beats_sec: NDArray[np.floating], sr_hz: int, n_samples: int) -> NDArray[np.float64]:
    audio = np.zeros(n_samples)
    bar = len(genre.rhythm)
    for i, start in enumerate(beats_sec):
        sign = genre.rhythm[i % bar]
        if sign == ".":
            continue
        note = slice(round(start * sr_hz), min(n_samples, round((start + 2 * genre.tick_sec) * sr_hz)))
        t = np.arange(note.start, note.stop) / sr_hz
        ramps = np.clip((t - t[0]) / 0.006, 0, 1) * np.clip((t[-1] - t) / 0.02, 0, 1)
        chime = (_CHIME_GAIN if sign == "X" else _SOFT_CHIME_GAIN) * np.exp(-(t - t[0]) / _CHIME_DECAY_SEC)
        audio[note] += ramps * chime * _tone(CHIME, t)
        if sign == "X":
            bass = _BASS_GAIN * np.exp(-(t - t[0]) / _BASS_DECAY_SEC)
            audio[note] += ramps * bass * _tone(BASSES[i // bar % len(BASSES)], t)
    return _accompaniment_gain(genre) * audio


def _accompaniment_gain(genre: Genre) -> float:
    """The gain that brings the accompaniment's mean power to its place below the voice's.

    Of the rhythm alone, not of the song: the same note of a genre sounds the same in all its songs.
    """
    power = 0.0  # of a tone of amplitude a that decays with d seconds: a^2 d / 4 per stroke
    for sign in genre.rhythm:
        if sign == "X":
            power += (_BASS_GAIN**2 * _BASS_DECAY_SEC + _CHIME_GAIN**2 * _CHIME_DECAY_SEC) / 4
        elif sign == "x":
            power += _SOFT_CHIME_GAIN**2 * _CHIME_DECAY_SEC / 4
    power /= len(genre.rhythm) * genre.tick_sec
    mean_band = float(np.mean(np.square(BAND_GAINS)))
    voice = _VOICE_GAIN**2 * (1 + 2 * mean_band) / 2 * 0.7  # 0.7: what gaps and decay leave of a note, on average
    return float(np.sqrt(voice / power) * 10 ** (_ACCOMPANIMENT_DB / 20))


def _tone(units: int, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """A sine whose phase is a function of song time only; the offset keeps peaks of several tones apart."""
    return np.sin(2 * np.pi * (units * UNIT_HZ * t + 0.618 * units))


def _envelope(t: NDArray[np.float64], length_sec: float) -> NDArray[np.float64]:
    """Swells, fades slowly, and leaves the end of the note silent; raised cosines, so that nothing clicks."""
    rise = np.clip(t / _ATTACK_SEC, 0, 1)
    fall = np.clip((length_sec - _GAP_SEC - t) / _RELEASE_SEC, 0, 1)
    ramps: NDArray[np.float64] = (0.5 - 0.5 * np.cos(np.pi * rise)) * (0.5 - 0.5 * np.cos(np.pi * fall))
    return ramps * np.exp(-t / _VOICE_DECAY_SEC)


Entry = TypeVar("Entry")


def _lookup(table: dict[str, Entry], name: str, kind: str) -> Entry:
    if name not in table:
        raise DataError(f"The corpus has no {kind} {name!r}; it has {', '.join(table)}.")
    return table[name]
