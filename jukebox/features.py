"""Features of a folder of music from a prior: `python jukebox/features.py --model=RUN --audio_files_dir=music --output_path=features`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jukebox import settings
from jukebox.parallel.launch import guarded


@guarded
def main() -> int:
    """Start by path, with `python -m`, or as the console script."""
    hps = settings.parse("features", sys.argv[1:])  # help, and every mistake in a flag, before torch is loaded
    from jukebox.sampling import features_run as run

    return run.main(hps)


if __name__ == "__main__":
    main()
