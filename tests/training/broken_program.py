"""train.py with a fault built in: `broken_program.py FAULT RANK BATCH flags...`."""

import os
import signal
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from jukebox import settings  # noqa: E402
from jukebox.parallel.launch import guarded  # noqa: E402
from jukebox.training import asked  # noqa: E402

FAULT, RANK, BATCH = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
del sys.argv[1:4]


@guarded
def main():
    hps = asked.check(settings.parse("train", sys.argv[1:]))
    from jukebox.training import run
    from jukebox.training.vqvae_task import VQVAETask

    sound_loss = VQVAETask.loss

    def loss(self, batch, step):
        out = sound_loss(self, batch, step)
        if self.comm.rank != RANK or self.seen <= BATCH:
            return out
        match FAULT:
            case "raise":
                raise ValueError(f"no good at {batch.files[0]}")
            case "exit":
                sys.exit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "slow":
                time.sleep(0.05)
            case "nan":
                out.loss = out.loss * float("nan")
        return out

    VQVAETask.loss = loss
    return run.main(hps)


if __name__ == "__main__":
    main()
