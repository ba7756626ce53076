"""Runs the whole main job on a corpus of its own making: `python jukebox/demo.py --out=demo`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guard


def main() -> int:
    """Run as a console script or by path."""
    from jukebox.walkthrough.run import main

    return main()


if __name__ == "__main__":
    guard(main)
