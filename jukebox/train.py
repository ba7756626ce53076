"""Trains a VQ-VAE or a prior: `python jukebox/train.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guard


def main() -> int:
    """Run as a console script or by path."""
    from jukebox.training.run import main

    return main()


if __name__ == "__main__":
    guard(main)
