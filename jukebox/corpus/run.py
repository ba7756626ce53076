"""The command that writes a corpus."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from jukebox import settings
from jukebox.corpus import synth
from jukebox.corpus.hps import CorpusHps

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Writes the songs and their metadata, and says where."""
    hps = settings.parse("make_corpus", sys.argv[1:] if argv is None else argv).section(CorpusHps)
    path = synth.write_corpus(Path(hps.out), hps.songs, hps.seed)
    print(f"{hps.songs} songs and what is true about them: {path}")
    return 0
