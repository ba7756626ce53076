"""Fetches published weights: `python jukebox/fetch.py 1b_lyrics`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guard
from jukebox.weights.run import main

if __name__ == "__main__":
    guard(main)
