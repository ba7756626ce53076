"""A program that leaves in the way its argument says: `way_out_program.py WAY [FOLDER]`.

Rank 1 misbehaves while rank 0 sits in an MPI barrier, where it would stay for ever. No torch: starts in no time.
"""

import signal
import sys
import threading
import time
from pathlib import Path

from jukebox.errors import DataError, HparamsError
from jukebox.parallel import launch
from jukebox.parallel.mpi import load_mpi

WAY = sys.argv[1]
RANK = launch.world().rank


def before_start() -> None:
    if WAY == "usage error on all":
        raise HparamsError("--foo is not known.\nDid you mean --food?")
    if WAY == "usage error on one" and RANK == 1:
        raise HparamsError("--hps=mine: no such preset on this machine.")
    if WAY == "help":
        sys.stdout.write("usage\n")  # one write, so that no other process speaks between
        sys.exit(0)


def main() -> int:
    before_start()
    mpi = load_mpi()
    mpi.COMM_WORLD.Barrier()
    if len(sys.argv) > 2:
        launch.set_run_folder(Path(sys.argv[2]))
    launch.set_phase("step 7")
    if WAY == "user error on all":
        raise DataError(f"song {RANK // 2}.wav is silent.")  # ranks 0 and 1 agree, 2 differs
    if WAY == "agreed stop":
        return 143
    if WAY == "end":
        time.sleep(0.5 * RANK)
        print(f"rank {RANK} ends")
        return 0
    if RANK == 1:
        misbehave()
    mpi.COMM_WORLD.Barrier()
    return 0


def misbehave() -> None:
    match WAY:
        case "exception":
            raise ValueError("the\x1b[31m cause\nand more")
        case "exception in a thread":
            threading.Thread(target=lambda: [][0]).start()
            time.sleep(60)
        case "user error":
            raise DataError("x.wav is silent.")
        case "sys.exit(3)":
            sys.exit(3)
        case "sys.exit(0)":
            sys.exit(0)
        case "sys.exit(text)":
            sys.exit("that is all")
        case "interrupt":
            raise KeyboardInterrupt
        case "SIGKILL":
            signal.raise_signal(signal.SIGKILL)


if __name__ == "__main__":
    launch.guard(main)
