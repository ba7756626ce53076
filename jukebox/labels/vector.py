"""The label vector of a window: lengths, artist, genres and the lyrics around it, as the prior reads them.

y, int64 `[4 + G + S]`: total_length, offset and sample_length in audio samples, artist, G genre slots (-1 = none),
S lyric tokens (0 = padding).
"""

import bisect
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jukebox.errors import DataError, HparamsError
from jukebox.labels.ids import Alphabet, LabelIds
from jukebox.labels.song import CharTime, SongMeta

log = logging.getLogger(__name__)

Vector = NDArray[np.int64]
UNSUNG = "\r\ufeff"  # line ends of other systems, byte order marks: nobody misses them
MOST_SHOWN = 10


@dataclass(frozen=True)
class Label:
    """The label of a chunk of a song, with what is needed to make those of its windows."""

    y: Vector
    artist: str  # as given
    genre: str  # as given
    lyrics: str  # cleaned
    tokens: tuple[int, ...]  # of all the lyrics
    times: tuple[CharTime, ...] | None = None  # start and end of each token in the song, in seconds


class Labeller:
    """Makes label vectors for one prior.

    max_genre_words: G. n_tokens: S, even, 0 without lyrics. sample_length: samples of a window. sr_hz: rate of all
    lengths, needed only for songs with times; timed False: these are not looked at. Raises HparamsError when n_tokens is
    odd.
    """

    def __init__(
        self,
        ids: LabelIds,
        alphabet: Alphabet,
        *,
        max_genre_words: int,
        n_tokens: int,
        sample_length: int,
        sr_hz: int = 44100,
        timed: bool = True,
    ) -> None:
        if n_tokens % 2:
            raise HparamsError(
                f"--n_tokens={n_tokens} must be even: the lyric window lies half before, half after its middle"
            )
        self.ids, self.alphabet = ids, alphabet
        self.max_genre_words, self.n_tokens = max_genre_words, n_tokens
        self.sample_length, self.sr_hz, self.timed = sample_length, sr_hz, timed
        self._lost = set(UNSUNG)  # characters that the alphabet lacks and that were told, or are no loss

    @property
    def columns(self) -> int:
        """Length of y."""
        return 4 + self.max_genre_words + self.n_tokens

    def label(self, song: SongMeta, total_samples: int, offset_samples: int) -> Vector:
        """The vector alone of `full`."""
        return self.full(song, total_samples, offset_samples).y

    def full(self, song: SongMeta, total_samples: int, offset_samples: int) -> Label:
        """The label of the window that starts at `offset_samples` of a song of `total_samples`.

        Raises DataError when lyrics are longer than their window and the offset is outside the song, or, with strict
        ids, for an unknown name.
        """
        lyrics, sources = self.alphabet.clean(song.lyrics)
        if self.n_tokens:
            self._tell_lost(set(song.lyrics) - {song.lyrics[i] for i in sources})
        tokens = self.alphabet.tokens(lyrics)
        times = tuple(song.times[i] for i in sources) if song.times is not None and self.timed else None
        artist = self.ids.artist_id(song.artist)
        genres = self.ids.genre_ids(song.genre, self.max_genre_words)
        label = Label(np.empty(0, np.int64), song.artist, song.genre, lyrics, tuple(tokens), times)
        window = [tokens[i] if i >= 0 else 0 for i in self._indices(label, total_samples, offset_samples)]
        y = self.from_ids(artist, genres, window, total_samples, offset_samples)
        return Label(y, song.artist, song.genre, lyrics, tuple(tokens), times)

    def survey(self, songs: Iterable[SongMeta]) -> None:
        """Look up the names and lyric characters of all songs before any window of them is made: what is unknown is said
        once. Raises DataError for it when the ids are strict."""
        characters: set[str] = set()
        for song in songs:
            self.ids.artist_id(song.artist)
            self.ids.genre_ids(song.genre, self.max_genre_words)
            characters.update(song.lyrics)
        if self.n_tokens:
            self._tell_lost({c for c in characters if not self.alphabet.clean(c)[0]})

    def from_ids(
        self, artist: int, genres: Sequence[int], lyric_tokens: Sequence[int], total_samples: int, offset_samples: int
    ) -> Vector:
        """The vector of known ids and exactly n_tokens lyric tokens."""
        assert len(genres) <= self.max_genre_words and len(lyric_tokens) == self.n_tokens
        slots = [*genres, *[-1] * (self.max_genre_words - len(genres))]
        return np.array([total_samples, offset_samples, self.sample_length, artist, *slots, *lyric_tokens], np.int64)

    def at(self, label: Label, start_samples: int, window_samples: int) -> tuple[Vector, list[int]]:
        """The vector of a window that starts `start_samples` later, and the index of each lyric character (-1 = padding).

        The published rule of sampling: the first label of an item gives the others.
        """
        y = label.y.copy()
        y[1] += start_samples
        y[2] = window_samples
        indices = self._indices(label, int(y[0]), int(y[1]), window_samples)
        y[4 + self.max_genre_words :] = [label.tokens[i] if i >= 0 else 0 for i in indices]
        return y, indices

    def describe(self, y: Vector) -> dict[str, str]:
        """Artist, genre and lyric window of a vector as text."""
        genres = 4 + self.max_genre_words
        return {
            "artist": self.ids.artist_name(int(y[3])),
            "genre": self.ids.genre_name([int(id_) for id_ in y[4:genres]]),
            "lyrics": self.alphabet.text([int(token) for token in y[genres:]]),
        }

    def _tell_lost(self, characters: set[str]) -> None:
        """Say once of each character of lyrics that the alphabet lacks it."""
        fresh = sorted(characters - self._lost)
        if fresh and self.ids.aloud:
            self._lost.update(fresh)
            shown = ", ".join(map(repr, fresh[:MOST_SHOWN])) + (" ..." if len(fresh) > MOST_SHOWN else "")
            log.warning("%d characters of lyrics are not in the alphabet and are left out: %s", len(fresh), shown)

    def _indices(self, label: Label, total: int, offset: int, duration: int | None = None) -> list[int]:
        duration = self.sample_length if duration is None else duration
        if label.times is None or len(label.tokens) < self.n_tokens:
            return lyric_window(len(label.tokens), self.n_tokens, total, offset, duration)
        start_sec, end_sec = offset / self.sr_hz, (offset + duration) / self.sr_hz
        return timed_lyric_window(label.times, self.n_tokens, start_sec, end_sec)


def lyric_window(characters: int, n_tokens: int, total: int, offset: int, duration: int) -> list[int]:
    """Which characters a window sees when nothing is known but that they are spread evenly over the song.

    Fewer than n_tokens: all, padded at the left by -1. Otherwise n_tokens around the middle of the window. total,
    offset and duration in samples. Raises DataError when the offset is outside the song.
    """
    if characters < n_tokens:
        return [-1] * (n_tokens - characters) + list(range(characters))
    if not 0 <= offset < total:
        raise DataError(
            f"a window at sample {offset} lies outside its song of {total} samples; correct offset or total length"
        )
    return _around(int(characters * (offset + duration / 2.0) / total), characters, n_tokens)


def timed_lyric_window(times: Sequence[CharTime], n_tokens: int, start_sec: float, end_sec: float) -> list[int]:
    """The n_tokens characters around the middle of those sung between two times.

    `times` is at least n_tokens long and in order. Where nothing is sung, the window lies around that gap.
    """
    first = bisect.bisect_right(times, start_sec, key=lambda time: time[1])
    last = bisect.bisect_left(times, end_sec, key=lambda time: time[0])
    return _around((first + last) // 2, len(times), n_tokens)


def _around(middle: int, characters: int, n_tokens: int) -> list[int]:
    half = n_tokens // 2
    middle = min(max(middle, half), characters - half)
    return list(range(middle - half, middle + half))


def batch(labels: Sequence[Label]) -> Vector:
    """The vectors of several items, `[B, 4 + G + S]`."""
    return np.stack([label.y for label in labels])
