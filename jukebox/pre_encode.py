"""Encodes a folder of audio into a store of codes: `python jukebox/pre_encode.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guard


def main() -> int:
    """Run as a console script or by path."""
    from jukebox.encoding.run import main

    return main()


if __name__ == "__main__":
    guard(main)
