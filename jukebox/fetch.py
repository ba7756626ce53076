"""Fetches published weights: `python jukebox/fetch.py 1b_lyrics`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guarded


@guarded
def main() -> int:
    """Start by path, with `python -m`, or as the console script."""
    from jukebox.weights import run

    return run.main()


if __name__ == "__main__":
    main()
