"""The command that writes a corpus."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jukebox import settings
from jukebox.corpus import collection
from jukebox.corpus.hps import CorpusHps
from jukebox.errors import UsageError
from jukebox.labels.song import SongMeta


def main(argv: list[str] | None = None) -> int:
    """Writes the songs and their metadata, and says where. Raises UsageError when it is not told where to."""
    hps = settings.parse("make_corpus", sys.argv[1:] if argv is None else argv).section(CorpusHps)
    if not hps.out:
        raise UsageError("--out is missing: the folder for the songs, as in `--out corpus`.")
    unlike = lyrics_of(Path(hps.unlike)) if hps.unlike else []
    path = collection.write_corpus(
        Path(hps.out), hps.songs, hps.seed, min_sec=hps.min_sec, max_sec=hps.max_sec, unlike=unlike
    )
    print(f"{hps.songs} songs; what is true about them: {path}")
    return 0


def lyrics_of(path: Path) -> list[str]:
    """The lyrics of songs in a `.jsonl`: requests or metadata. Raises UsageError for a file that holds none."""
    where = f"--unlike={path}"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [SongMeta.from_json(json.loads(line), where).lyrics for line in lines if line.strip()]
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}.") from error
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{where} is no list of songs: one JSON object with lyrics a line.") from error
