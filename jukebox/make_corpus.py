"""Makes a small corpus of songs of known truth: `python jukebox/make_corpus.py --out DIR --songs N --seed S`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.corpus.run import main
from jukebox.parallel.launch import guard

if __name__ == "__main__":
    guard(main)
