"""Serves a folder of samples to a browser on this machine: `python jukebox/serve.py RUN`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guarded


@guarded
def main() -> int:
    """Start by path, with `python -m`, or as the console script."""
    from jukebox.pages import server

    return server.main()


if __name__ == "__main__":
    main()
