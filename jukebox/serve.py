"""Serves a folder of samples to a browser on this machine: `python jukebox/serve.py RUN`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.pages.server import main
from jukebox.parallel.launch import guard

if __name__ == "__main__":
    guard(main)
