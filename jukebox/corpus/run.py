"""The command that writes a corpus."""

from __future__ import annotations

import sys
from pathlib import Path

from jukebox import settings
from jukebox.corpus import synth
from jukebox.corpus.hps import CorpusHps
from jukebox.errors import UsageError


def main(argv: list[str] | None = None) -> int:
    """Writes the songs and their metadata, and says where. Raises UsageError when it is not told where to."""
    hps = settings.parse("make_corpus", sys.argv[1:] if argv is None else argv).section(CorpusHps)
    if not hps.out:
        raise UsageError("--out is missing: the folder for the songs, as in `--out corpus`.")
    path = synth.write_corpus(Path(hps.out), hps.songs, hps.seed, min_sec=hps.min_sec, max_sec=hps.max_sec)
    print(f"{hps.songs} songs; what is true about them: {path}")
    return 0
