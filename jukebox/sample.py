"""Samples songs: `python jukebox/sample.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guard


def main() -> int:
    """Run as a console script or by path."""
    from jukebox.sampling.run import main

    return main()


if __name__ == "__main__":
    guard(main)
