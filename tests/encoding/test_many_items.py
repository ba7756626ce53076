"""Memory over many items."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests_encoding_nets import TINY, make_song, net_of
from jukebox import settings
from jukebox.encoding import run
from jukebox.encoding.hps import EncodeHps
from jukebox.models.codec import VQVAECodec
from jukebox.parallel.comm import SoloComm
import os
os.fsync = lambda _: None
folder = Path({folder!r})
for i in range({count}):
    make_song(folder / "music" / f"{{i:04d}}.wav", 4000 + i)
peaks, add = [], run.StoreWriter.add
def watched(self, *rest):
    add(self, *rest)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
run.StoreWriter.add = watched
codec = VQVAECodec(net_of(settings.from_presets("teeny", **TINY)), 8000)
encode = EncodeHps(audio_files_dir=str(folder / "music"), output_path=str(folder / "s"))
assert len(run.encode_all(encode, codec, {{}}, SoloComm())) == {count}
print(peaks[99], peaks[-1])
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_is_flat_over_a_thousand_items(tmp_path):
    here = Path(__file__).parent
    program = PROGRAM.format(paths=[str(here), str(here.parents[1])], folder=str(tmp_path), count=1000)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    early, late = map(float, ran.stdout.split())
    assert late - early < 20, f"{early} MB after 100 items, {late} MB after 1,000"
