"""Aligns the lyrics of a finished sampling run with time: `python jukebox/align.py --logdir=sample_1b`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guarded


@guarded
def main() -> int:
    """Start by path, with `python -m`, or as the console script."""
    from jukebox.sampling import align_run as run

    return run.main()


if __name__ == "__main__":
    main()
