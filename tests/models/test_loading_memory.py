"""Memory of loading: no more than the larger of file and net, whatever the layout of the file."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, time, torch
from jukebox.interop.published import Entry
from jukebox.models import checkpoint
from torch import nn

path, dtype = sys.argv[1], getattr(torch, sys.argv[2])
n, table = 64, [Entry(f"w{i}", f"{i}.weight", (1024, 1024)) for i in range(64)]
with torch.device("meta"):
    net = nn.Sequential(*(nn.Linear(1024, 1024, bias=False, dtype=dtype) for _ in range(n)))

def anonymous():
    lines = open("/proc/self/status").read().split("\\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
checkpoint.load_into(net, checkpoint.read(path).model, table, consume=True)
done = True
watcher.join()
print(peak - before)
"""


@pytest.mark.slow  # 250 MB files, 4 processes that import torch
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_peak_of_anonymous_memory(tmp_path, legacy, dtype):
    import torch

    path = tmp_path / "x.pth.tar"
    model = {f"w{i}": torch.full((1024, 1024), float(i)) for i in range(64)}
    torch.save({"model": model}, path, _use_new_zipfile_serialization=not legacy)
    held = path.stat().st_size
    del model
    done = subprocess.run([sys.executable, "-c", PROGRAM, path, dtype], capture_output=True, text=True, check=True)
    target = held if dtype == "float32" else held // 2
    assert int(done.stdout) <= 1.15 * max(target if not legacy else held, target), f"{int(done.stdout) / 2**20:.0f} MiB"
