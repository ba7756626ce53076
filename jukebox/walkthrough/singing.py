"""Does it sing? Songs asked of a model of the corpus, with lyrics that were in no song of it, and what is heard in them.

The ear (`corpus/listen`) knows nothing of what was asked. The control is the same songs compared with what others were
asked to sing: lyrics of another song err by about 85 %.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jukebox import files
from jukebox.audio import io
from jukebox.codestore.store import CodeStore
from jukebox.corpus import listen, score, synth
from jukebox.labels.song import SongMeta
from jukebox.sampling.alignment import character_times
from jukebox.sampling.save import RunFolder

ONSET_SEC = 0.25  # how far from where the alignment puts it a character may begin


@dataclass(frozen=True)
class Sung:
    """What is heard in the songs of a run at one level; shares 0 to 1.

    error_rate: characters put in, left out or exchanged, per character asked for; control: the same against the lyrics
    of all other songs. artist, genre: share of the songs in which the right one is heard.
    """

    songs: int
    error_rate: float
    control: float
    artist: float
    genre: float


def ask(path: Path, songs: int, *, length_sec: float, unlike: Iterable[str], seed: int = 0) -> list[SongMeta]:
    """Writes requests (.jsonl) for every artist in every genre by turns; no word and no four characters in a row of the
    lyrics are in `unlike`. They are as many characters as songs of that length have in the corpus."""
    known = list(unlike)
    pairs = [(artist, genre) for artist in synth.ARTISTS for genre in synth.GENRES]
    asked = []
    for i in range(songs):
        artist, genre = pairs[(5 * i + i // len(pairs)) % len(pairs)]  # neighbours differ in both
        lyrics = synth.made_up_lyrics(seed + i, characters(genre, length_sec), unlike=known)
        asked.append(SongMeta(artist=artist, genre=genre, lyrics=lyrics))
    lines = [
        json.dumps({"artist": song.artist, "genre": song.genre, "lyrics": song.lyrics, "seed": seed + i})
        for i, song in enumerate(asked)
    ]
    files.publish_text(path, "\n".join(lines) + "\n")
    return asked


def characters(genre: str, length_sec: float) -> int:
    """How many characters a song of the corpus has that is at most so long."""
    tick_sec = synth.GENRES[genre].tick_sec
    ticks = int((length_sec - synth.LEAD_SEC - synth.TAIL_SEC) / tick_sec + 1e-9)
    return round(ticks / synth.MEAN_TICKS)


def asked_of(run: Path) -> list[SongMeta]:
    """What the songs of a sampling run were asked to be."""
    store = CodeStore.open(run / "codes")
    return [SongMeta.from_json(store.item(i).meta["song"]) for i in range(len(store))]


def heard(run: Path, level: int) -> list[listen.Heard]:
    """What the ear makes of the songs of a sampling run, decoded from a level."""
    paths = [run / f"level_{level}" / f"item_{i}.wav" for i in range(len(asked_of(run)))]
    return [listen.listen(io.read(path)[:, 0], io.probe(path).sr_hz) for path in paths]


def compare(asked: Sequence[SongMeta], found: Sequence[listen.Heard]) -> Sung:
    """Figures of songs, each with what was asked of it."""
    scores = [_score(song, one) for song, one in zip(asked, found, strict=True)]
    pairs = [(song.lyrics, one.lyrics) for i, song in enumerate(asked) for j, one in enumerate(found) if i != j]
    against = sum(score.match(lyrics, sung)[0] for lyrics, sung in pairs)
    return Sung(
        songs=len(asked), error_rate=score.error_rate(scores),
        control=against / max(1, sum(len(lyrics) for lyrics, _ in pairs)),
        artist=float(np.mean([s.artist_right for s in scores])), genre=float(np.mean([s.genre_right for s in scores])),
    )  # fmt: skip


def onsets_found(run: Path, level: int) -> float:
    """Share of the characters heard at a level that begin within ONSET_SEC of where the alignment puts them.

    Characters asked for count that are heard and that the alignment knows; 0 where there is none.
    """
    store, folder = CodeStore.open(run / "codes"), RunFolder(run, {})
    close = []
    for number, (song, one) in enumerate(zip(asked_of(run), heard(run, level), strict=True)):
        weights = folder.load_alignment(number)
        if weights is None:
            continue
        times = character_times(weights, store.geometry.top_hop / store.geometry.sr_hz)
        for start, found in zip(_score(song, one).starts, times, strict=False):
            if start is not None and found is not None:
                close.append(abs(start - found[0]) <= ONSET_SEC)
    return float(np.mean(close)) if close else 0.0


def _score(song: SongMeta, one: listen.Heard) -> score.SungScore:
    """Labels are compared as the id tables do, whatever their case."""
    named = replace(one, artist=(one.artist or "").lower(), genre=(one.genre or "").lower())
    return score.sung(named, song.lyrics, song.artist.lower(), song.genre.lower())
