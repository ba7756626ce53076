"""Makes id tables from what is known about a folder of songs, and proposes the keys that a labelled prior needs."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jukebox import files
from jukebox.data import admission
from jukebox.data.hps import MakeIdsHps
from jukebox.data.metadata import songs_of
from jukebox.errors import DataError, UsageError
from jukebox.files import printable
from jukebox.hparams.resolve import Resolved
from jukebox.labels.ids import UNKNOWN, Alphabet, IdTable, normalised, write_table
from jukebox.labels.song import SongMeta
from jukebox.parallel.comm import SoloComm

log = logging.getLogger(__name__)

BIN_SEC = 8.0  # the published models divide 600 s into 64 or 128 bins


def main(settings: Resolved) -> int:
    """Write the tables and print the proposal; the exit code."""
    hps = settings.section(MakeIdsHps)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not hps.audio_files_dir:
        raise UsageError("--audio_files_dir is missing: the folder of songs that the tables are made for.")
    out = Path(hps.out)
    index = admission.admit(
        hps.audio_files_dir, out / "audio_index.json", SoloComm(), max_bad=1.0, max_audio_sec=hps.max_audio_sec
    )
    songs = songs_of(index, hps.metadata)
    for name, text in tables(songs, hps.min_songs).items():
        _publish(out / name, text)
    for line in proposal(songs, [entry.length_sec for entry in index.usable], out, hps.min_songs):
        print(line)
    return 0


def tables(songs: Sequence[SongMeta], min_songs: int = 1) -> dict[str, str]:
    """File name -> text of the four tables: artists and genres of both versions. Id 0 is "unknown"; others by name.

    A name that fewer than min_songs songs bear has no id of its own.
    """
    return {
        "v2_artist_ids.txt": _table((normalised(song.artist) for song in songs), min_songs),
        "v2_genre_ids.txt": _table((word for song in songs for word in set(_words(song))), min_songs),
        "v3_artist_ids.txt": _table((song.artist.lower().strip() for song in songs), min_songs),
        "v3_genre_ids.txt": _table((song.genre.lower().strip() for song in songs), min_songs),
    }


def _words(song: SongMeta) -> list[str]:
    return normalised(song.genre).split("_")


def _table(names: Iterable[str], min_songs: int) -> str:
    counts = Counter(names)
    kept = sorted(name for name, count in counts.items() if count >= min_songs and name not in ("", UNKNOWN))
    for name in [name for name in kept if ";" in name or "\n" in name]:
        log.warning("%s: a table cannot hold a name with a semicolon; it stays unknown", printable(name))
        kept.remove(name)
    ids = {UNKNOWN: 0} | {name: id_ for id_, name in enumerate(kept, 1)}
    return write_table(IdTable(Path(), ids))


def proposal(songs: Sequence[SongMeta], lengths_sec: Sequence[float], out: Path, min_songs: int = 1) -> list[str]:
    """What was found, and the flags of train.py that fit it."""
    rows = {name: len(text.splitlines()) for name, text in tables(songs, min_songs).items()}
    shortest, longest = (
        math.floor(min(lengths_sec)),
        math.floor(max(lengths_sec)) + 1,
    )  # songs must be below the maximum
    t_bins = 2 ** math.ceil(math.log2(max(longest / BIN_SEC, 16)))
    words = max(len(_words(song)) for song in songs)
    common = f"--min_duration={shortest} --max_duration={longest} --t_bins={min(t_bins, 128)} --ids_dir={out}"
    lines = [
        f"{len(songs)} songs of {shortest} to {longest} s; tables in {out}",
        "Flags of train.py, one genre per song (version 3):",
        f"  --labels --labels_v3 --y_bins={rows['v3_genre_ids.txt']},{rows['v3_artist_ids.txt']} --max_bow_genre_size=1"
        f" {common}",
        "or a bag of genre words (version 2):",
        f"  --labels --y_bins={rows['v2_genre_ids.txt']},{rows['v2_artist_ids.txt']} --max_bow_genre_size={words} {common}",
        "--min_duration must not be below the window of the prior, n_ctx codes; shorter songs cannot be trained on.",
    ]
    return lines + _lyrics(songs)


def _lyrics(songs: Sequence[SongMeta]) -> list[str]:
    """How much of the lyrics the alphabets can write."""
    texts = [song.lyrics for song in songs if song.lyrics.strip()]
    if not texts:
        return ["No song has lyrics."]
    alphabet = Alphabet.open("", 3)
    lost = _outside(texts, alphabet.clean)
    lines = [
        f"{len(texts)} songs have lyrics, {max(map(len, texts))} characters at most: --use_tokens --n_vocab={alphabet.n_vocab}"
    ]
    if lost:
        shown = ", ".join(f"{printable(c)!r} ({count})" for c, count in lost.most_common(10))
        lines.append(f"Characters that the alphabet lacks and that are left out: {shown}")
    return lines


def _outside(texts: Iterable[str], clean: Callable[[str], tuple[str, list[int]]]) -> Counter[str]:
    lost: Counter[str] = Counter()
    for text in texts:
        kept = set(clean(text)[1])
        lost.update(character for at, character in enumerate(text) if at not in kept)
    return lost


def _publish(path: Path, text: str) -> None:
    """Write a table; never over another one, to which a trained model may refer."""
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise DataError(
            f"{path} is there already and is another table; a model may have been trained with it. Choose --out."
        )
    files.make_folder(path.parent, cure="Choose another --out.")
    files.publish_text(path, text)
