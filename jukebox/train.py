"""Trains a VQ-VAE or a prior: `python jukebox/train.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox import settings
from jukebox.parallel.launch import guarded
from jukebox.training import asked


@guarded
def main() -> int:
    """Start by path, with `python -m`, or as the console script."""
    hps = asked.check(settings.parse("train", sys.argv[1:]))  # help, and every mistake, before torch is loaded
    from jukebox.training import run

    return run.main(hps)


if __name__ == "__main__":
    main()
