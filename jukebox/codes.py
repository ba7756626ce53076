"""Checks, shows, cuts, joins and plays stores of codes: `python jukebox/codes.py verify STORE`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox.parallel.launch import guarded


@guarded
def main() -> int:
    """Start by path, with `python -m`, or as the console script."""
    from jukebox.encoding import store_commands

    return store_commands.main()


if __name__ == "__main__":
    main()
