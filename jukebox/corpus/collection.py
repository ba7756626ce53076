"""Corpora of songs of known truth: which songs, and the files that they stand in."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jukebox.audio import io
from jukebox.corpus import synth
from jukebox.errors import DataError
from jukebox.files import make_folder, publish_text
from jukebox.resources import cores


@dataclass(frozen=True)
class Order:
    """What a song of a corpus is to be: the arguments of `synth.song`."""

    seed: int
    artist: str
    genre: str
    seconds: float
    sr_hz: int
    channels: int
    taken: synth.Taken

    def make(self) -> synth.Song:
        """The song."""
        return synth.song(
            self.seed, artist=self.artist, genre=self.genre, seconds=self.seconds, sr_hz=self.sr_hz,
            channels=self.channels, taken=self.taken,
        )  # fmt: skip


def order(
    songs: int,
    seed: int,
    *,
    min_sec: float = 6,
    max_sec: float = 30,
    sr_hz: int | None = 16000,
    channels: int | None = 1,
    unlike: Iterable[str] = (),
) -> list[Order]:
    """Songs to be made, whose artists and genres are evenly spread; with another seed, songs of other words.

    No word and no run of four characters of the lyrics `unlike` is sung, so that these are new to who learns the songs.

    Without `sr_hz` and `channels` the songs go through 16, 22.05 and 44.1 kHz, mono and stereo.
    """
    rng, taken = np.random.default_rng([seed, 0xC0]), synth.Taken.by(unlike)
    pairs = [(a, g) for a in synth.ARTISTS for g in synth.GENRES]
    turns: list[int] = []
    while len(turns) < songs:
        turns += [int(i) for i in rng.permutation(len(pairs))]
    return [
        Order(
            seed=int(rng.integers(2**31)),
            artist=pairs[turns[i]][0],
            genre=pairs[turns[i]][1],
            seconds=float(rng.uniform(min_sec, max_sec)),
            sr_hz=(16000, 22050, 44100)[i % 3] if sr_hz is None else sr_hz,
            channels=1 + i % 2 if channels is None else channels,
            taken=taken,
        )
        for i in range(songs)
    ]


def write_corpus(
    folder: Path, songs: int, seed: int, *, min_sec: float = 6, max_sec: float = 30, unlike: Iterable[str] = ()
) -> Path:
    """Writes songs of all formats, rates and channels in turn, and last their `metadata.jsonl`, whose path it returns.

    `unlike` as in `order`. Every core makes songs; they are the same however many cores there are.
    """
    if not 1 <= songs <= 99999:
        raise DataError(f"--songs={songs}: a corpus has 1 to 99999 songs.")
    if not 2 <= min_sec <= max_sec:
        raise DataError(
            f"--min_sec={min_sec} --max_sec={max_sec}: the shortest song is at least 2 s, the longest not shorter."
        )
    make_folder(folder, cure="Choose another --out.")
    orders = order(songs, seed, min_sec=min_sec, max_sec=max_sec, sr_hz=None, channels=None, unlike=unlike)
    suffixes = ("wav", "flac", "mp3", "ogg", "m4a")
    paths = [folder / f"song_{i:0{len(str(songs - 1))}d}.{suffixes[i % 5]}" for i in range(songs)]
    workers = min(cores(), songs // 32)
    if workers > 1:
        fresh = multiprocessing.get_context("forkserver")  # clean of threads
        deaf = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who then ends them
        with ProcessPoolExecutor(workers, mp_context=fresh, initializer=signal.signal, initargs=deaf) as pool:
            lines = list(pool.map(_write, paths, orders, chunksize=8))
    else:
        lines = list(map(_write, paths, orders))
    path = folder / "metadata.jsonl"
    publish_text(path, "\n".join(lines) + "\n")
    return path


def _write(path: Path, one: Order) -> str:
    """Makes a song and writes its file; returns what is true about it, as a line of JSON."""
    made = one.make()
    tags = {name: str(getattr(made.meta, name)) for name in ("title", "artist", "genre", "lyrics")}
    io.write(path, made.audio, made.sr_hz, tags=tags)
    facts = {"file": path.name, **asdict(made.meta), "sr_hz": made.sr_hz, "length_samples": len(made.audio)}
    return json.dumps(facts)
