"""Songs through the encoder: equal to one pass, the same for any number of anything, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_encoding_nets import net_of

from jukebox import settings
from jukebox.audio import io
from jukebox.codestore.geometry import Geometry
from jukebox.data.admission import Entry
from jukebox.encoding.hps import EncodeHps
from jukebox.encoding.pipeline import Done, encode_jobs
from jukebox.encoding.sources import Job, Recording
from jukebox.errors import UserError
from jukebox.hparams import presets
from jukebox.labels.song import SongMeta
from jukebox.models.codec import VQVAECodec


@dataclass(frozen=True)
class Noise(Job):
    """A song that is made while it is read: a function of its length and block alone."""

    block: int = 1000

    def audio(self, sr_hz: int, channels: int) -> Iterator[np.ndarray]:
        for start in range(0, self.length_samples, self.block):
            yield whole(self.length_samples)[start : start + self.block, None]


def whole(length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(0, 0.3, length).astype(np.float32)


def job(length: int, block: int = 1000) -> Noise:
    entry = Entry(f"{length}.wav", 0, 0, sr_hz=8000, channels=1, length_samples=length)
    return Noise(Recording(entry.file, entry, SongMeta(), partial(open, "/dev/null")), 0, length, length, block)


def encoded(codec: VQVAECodec, lengths: list[int], levels: tuple[int, ...], **flags: Any) -> list[Done]:
    block = flags.pop("block", 1000)
    jobs = [(i, job(length, block)) for i, length in enumerate(lengths)]
    return list(encode_jobs(jobs, codec, levels, EncodeHps(**flags)))


PRESETS = [preset.name for preset in presets.listing() if "vqvae" in preset.name and preset.selectable] + ["teeny"]


@pytest.mark.parametrize("name", PRESETS)
def test_codes_are_those_of_one_pass_for_every_preset(name):
    """At a small width; apart from codes whose two nearest vectors are nearly as near."""
    wanted = settings.from_presets(name)
    hps = wanted.with_values("test", width=4, emb_width=4, l_bins=64, depth=min(2, wanted.values["depth"]))
    net = net_of(hps)
    codec = VQVAECodec(net, 8000, chunk_samples=64)  # four halos, then
    length = 30 * sum(codec._halo) // net.hops[-1] * net.hops[-1] + 5
    assert len(codec.pieces(length)) > 3
    (done,) = encoded(codec, [length], tuple(range(net.levels)))
    padded = np.zeros(codec.geometry.padded_length(length), np.float32)
    padded[:length] = whole(length)
    x = torch.from_numpy(padded)[None, :, None]
    near_ties = codes = 0
    for level in range(net.levels):
        rows = net.embed(x, level)[0].t().detach()  # with gradients: the plain layers
        distance = torch.cdist(rows.double(), net.codebook(level).vectors.double()).pow(2).sort(dim=1).values
        clear = ((distance[:, 1] - distance[:, 0]) >= 1e-6).numpy()
        near_ties, codes = near_ties + int((~clear).sum()), codes + len(clear)
        expected = net.encode(x, level, level + 1)[0][0].numpy()
        np.testing.assert_array_equal(done.result[0][level][clear], expected[clear])
    assert near_ties < 1e-3 * codes


def test_the_same_for_any_threads_workers_batch_and_block(tiny_codec):
    lengths = [1, 20_000, 31, 32, 33, 50_001]
    tiny_codec.chunk_samples = 4096
    levels = (0, 1, 2)
    expected = [tiny_codec.encode(whole(length)) for length in lengths]
    before = torch.get_num_threads()
    for threads, flags in ((1, {}), (2, {"num_workers": 0}), (3, {"num_workers": 2, "batch_size": 9, "block": 777})):
        torch.set_num_threads(threads)
        try:
            found = encoded(tiny_codec, lengths, levels, **flags)
        finally:
            torch.set_num_threads(before)
        assert [done.item for done in found] == list(range(len(lengths)))
        for done, codes in zip(found, expected, strict=True):
            for level in levels:
                np.testing.assert_array_equal(done.result[0][level], codes[level])


def test_only_the_levels_asked_for(tiny_codec, monkeypatch):
    monkeypatch.setattr(tiny_codec, "_encoders", [None, tiny_codec._encoders[1], None])
    (done,) = encoded(tiny_codec, [9000], (1,))
    assert set(done.result[0]) == {1}


@dataclass(frozen=True)
class Broken(Noise):
    def audio(self, sr_hz: int, channels: int) -> Iterator[np.ndarray]:
        yield from list(super().audio(sr_hz, channels))[:2]
        raise io.AudioError(self.recording.path, "ends early")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_song_that_breaks_off_is_left_out_with_its_reason(tiny_codec, workers):
    songs = [(0, job(9000)), (1, Broken(**vars(job(20_000)))), (2, job(5000))]
    found = list(encode_jobs(songs, tiny_codec, (0,), EncodeHps(num_workers=workers)))
    assert [done.item for done in found] == [0, 1, 2]
    assert str(found[1].result) == "20000.wav: ends early" and isinstance(found[2].result, tuple)


class Poor(VQVAECodec):
    """Memory for only so many pieces at a time."""

    room = 1
    used = 0

    def encode_piece(self, *arguments: Any) -> Any:
        import threading
        import time

        with threading.Lock():
            self.used += 1
        try:
            time.sleep(0.02)
            if self.used > self.room:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
            return super().encode_piece(*arguments)
        finally:
            self.used -= 1


def test_p17_out_of_memory_halves_what_is_in_flight_and_changes_nothing(tiny_codec, caplog):
    poor = Poor(tiny_codec.vqvae, 8000, 4096)
    rich = VQVAECodec(tiny_codec.vqvae, 8000, 4096)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        (done,) = encoded(poor, [60_000], (0, 2), batch_size=8)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(done.result[0][0], rich.encode(whole(60_000))[0])
    assert "out of memory" in caplog.text
    poor.room = 0
    with pytest.raises(UserError, match="Memory does not suffice for one piece"):
        encoded(poor, [60_000], (0,))


MEMORY = """
import resource, sys
sys.path[:0] = {paths!r}
import numpy as np, torch
torch.set_num_threads(1)
import test_pipeline as t
from jukebox import settings
from tests_encoding_nets import net_of
{model}
codec = t.VQVAECodec(net_of(hps), 8000, chunk)
t.whole = lambda length: None
class Long(t.Noise):
    def audio(self, sr_hz, channels):
        noise = np.random.default_rng(0).normal(0, .3, (1 << 16, 1)).astype(np.float32)
        for start in range(0, self.length_samples, 1 << 16):
            yield noise[: self.length_samples - start]
peaks = []
for seconds in {seconds}:
    one = Long(**vars(t.job(seconds * rate)))
    (done,) = t.encode_jobs([(0, one)], codec, range(codec.geometry.levels), t.EncodeHps())
    assert len(done.result[0][0]) == codec.geometry.codes_for(0, seconds * rate)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*peaks)
"""
TINY_MODEL = """
rate, chunk = 8000, 1 << 15
hps = settings.from_presets("tiny_vqvae", width=2, depth=1, emb_width=2, l_bins=8)
"""
FULL_MODEL = """
torch.set_num_threads(2)
rate, chunk = 44100, 1 << 19
hps = settings.from_presets("vqvae")
"""


def peaks_mb(model: str, seconds: tuple[int, int], timeout: float) -> list[float]:
    here = Path(__file__).parent
    program = MEMORY.format(paths=[str(here), str(here.parents[1])], model=model, seconds=seconds)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout)
    assert ran.returncode == 0, ran.stderr
    return [float(word) for word in ran.stdout.split()]


def test_s11_a_song_of_three_hours_needs_no_more_memory_than_one_of_a_minute():
    """346 MB of samples; its codes at a hop of 16 and in int64 are 43 MB, in parts and joined."""
    short, long = peaks_mb(TINY_MODEL, (60, 10_800), 200)
    assert long - short < 150


@pytest.mark.slow  # half an hour on two quiet cores
@pytest.mark.timeout(10_800)
def test_the_published_vqvae_encodes_three_hours_in_the_memory_of_a_minute():
    short, long = peaks_mb(FULL_MODEL, (60, 10_800), 10_800)
    assert long - short < 300


def test_geometry_of_the_tiny_codec(tiny_codec):
    assert tiny_codec.geometry == Geometry(8000, (4, 8, 32), 32)
