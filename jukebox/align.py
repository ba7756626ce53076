"""Aligns the lyrics of a finished sampling run with time: `python jukebox/align.py --logdir=sample_1b`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox import settings
from jukebox.parallel.launch import guarded


@guarded
def main() -> int:
    """Start by path, with `python -m`, or as the console script."""
    hps = settings.parse("align", sys.argv[1:])  # help, and every mistake in a flag, before torch is loaded
    from jukebox.sampling import align_run as run

    return run.main(hps)


if __name__ == "__main__":
    main()
