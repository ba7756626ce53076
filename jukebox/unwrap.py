"""Weights alone from a training checkpoint: `python jukebox/unwrap.py --ckpt-path=logs/model --name=model`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox import settings
from jukebox.parallel.launch import guarded


@guarded
def main() -> int:
    """Start by path, with `python -m`, or as the console script."""
    hps = settings.parse("unwrap", sys.argv[1:])  # help, and every mistake in a flag, before torch is loaded
    from jukebox.models import unwrap as run

    return run.main(hps)


if __name__ == "__main__":
    main()
