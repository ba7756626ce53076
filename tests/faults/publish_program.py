"""Counts to a number in a file, each step published whole: `publish_program.py FOLDER STEPS`.

Every step has its own file and a second name for the newest; the last two are kept, as checkpoints are.
"""

import sys
from pathlib import Path

from jukebox import files

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
with files.RunLock(folder):
    files.remove_stale_temps(folder)
    latest = folder / "latest"
    begin = int(latest.read_bytes()[:8]) if latest.exists() else 0
    print(begin)
    for step in range(begin + 1, steps + 1):
        text = b"%08d" % step * 50_000
        files.publish(folder / f"step_{step}", lambda stream, text=text: stream.write(text), digest=True)
        files.link_or_copy(folder / f"step_{step}", latest)
        files.fault_point("program.before_prune")
        for path in folder.glob("step_*"):
            if int(path.name[5:]) < step - 1:
                path.unlink()
