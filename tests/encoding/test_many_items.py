"""Memory over many items."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests_encoding_nets import make_song

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
    make_song(folder / "music" / f"{{i:04d}}.wav", 4000 + 50 * (i % 20))
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
    """Of twenty lengths: for each new one oneDNN keeps kernels, 0.15 MB a convolution, 1,024 of them at most."""
    here = Path(__file__).parent
    program = PROGRAM.format(paths=[str(here), str(here.parents[1])], folder=str(tmp_path), count=1000)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    early, late = map(float, ran.stdout.split())
    assert late - early < 20, f"{early} MB after 100 items, {late} MB after 1,000"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a11_a_hundred_thousand_files(tmp_path, pre_encode, tiny_run):
    """Two processes look through 100,000 small files and encode the first; the second start looks at none again."""
    first = tmp_path / "music" / "000000.wav"
    make_song(first, 400)
    data = first.read_bytes()
    for number in range(1, 100_000):
        (tmp_path / "music" / f"{number:06d}.wav").write_bytes(data)
    command = [f"--restore_vqvae={tiny_run}", f"--audio_files_dir={tmp_path / 'music'}", "--limit-batches=1"]
    for store, least, most in (("a", 5, 120), ("b", 0, 60)):  # CPU seconds of both; the scan alone is a part of them
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = pre_encode([*command, f"--output-path={tmp_path / store}"], ranks=2, timeout=600)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ran.code == 0, ran.err
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{store}: {spent:.0f} s of CPU time of two processes, {after.ru_maxrss / 1024:.0f} MB")
        assert least <= spent <= most and after.ru_maxrss < 500 * 1024
    assert list(tmp_path.glob(".audio_index*"))
