"""Makes a small corpus of songs of known truth: `python jukebox/make_corpus.py --out DIR --songs N --seed S`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guarded


@guarded
def main() -> int:
    """Start by path, with `python -m`, or as the console script."""
    from jukebox.corpus import run

    return run.main()


if __name__ == "__main__":
    main()
