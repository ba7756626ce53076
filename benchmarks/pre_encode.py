"""What pre-encoding costs: one JSON line per row, outputs checked in the same run.

    python benchmarks/pre_encode.py                     # the published VQ-VAE at full size, random weights
    python benchmarks/pre_encode.py --only=speed --threads=1 --repeats=9
    python benchmarks/pre_encode.py --only=stores

Rows: reading random windows from a store of 10,000 songs, opening one of 100,000 items; encoding 20 s to all levels and
to each, decoding from each, in seconds of wall time and of CPU time over all threads (which other programs on the machine
disturb less).
`% of limit` is the time that the multiplications alone would take at the speed of large oneDNN convolutions, measured in
the same run, as a share of the time taken.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jukebox import settings  # noqa: E402
from jukebox.codestore.geometry import Geometry  # noqa: E402
from jukebox.codestore.index import CACHE  # noqa: E402
from jukebox.codestore.layout import ItemFacts, Source  # noqa: E402
from jukebox.codestore.store import CodeStore  # noqa: E402
from jukebox.codestore.writer import StoreWriter  # noqa: E402
from jukebox.models import build  # noqa: E402
from jukebox.models.codec import VQVAECodec  # noqa: E402

SECONDS, RATE, TOP = 20, 44100, 2
WRITTEN = 10_000


def say(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def measured(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median and spread in seconds, after one run that does not count."""
    work()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {
        "wall_sec": round(statistics.median(walls), 3), "wall_min_sec": round(min(walls), 3),
        "wall_max_sec": round(max(walls), 3), "cpu_sec": round(statistics.median(cpus), 3),
    }  # fmt: skip


def peak_gflops(threads: int) -> float:
    """Large convolutions on all threads at once, each on one: what the cores can do with these products."""
    x = torch.randn(1, 256, 1, 4096).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 1, 3).contiguous(memory_format=torch.channels_last)

    def one(_: int) -> None:
        with torch.inference_mode():
            for _ in range(4):
                torch.nn.functional.conv2d(x, weight, dilation=(1, 3))

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(one, range(threads)))
            times.append(time.perf_counter() - began)
    return threads * 4 * 2 * 256 * 256 * 3 * (4096 - 6) / min(times) / 1e9


def gflop(net: nn.Module, x: torch.Tensor) -> float:
    """Multiplications and additions of one pass through convolutions."""
    total = 0.0

    def count(layer: Any, _: Any, y: torch.Tensor) -> None:
        nonlocal total
        positions = y.shape[-1] / (layer.stride[0] if isinstance(layer, nn.ConvTranspose1d) else 1)
        total += 2 * layer.weight.numel() * positions

    layers = [m for m in net.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    net.to("meta")(x.to("meta"))  # with gradients: the plain layers, and nothing is computed
    for hook in hooks:
        hook.remove()
    return total / 1e9


def codec_of(preset: str) -> VQVAECodec:
    """Random weights at true shapes; the codebooks hold encoded noise."""
    torch.manual_seed(0)
    net = build.build_vqvae(settings.from_presets(preset)).eval()
    noise = torch.randn(1, 1, 1024 * net.hops[-1])
    with torch.no_grad():
        for level in range(net.levels):
            rows = net.encoders[level](noise)[0].t()
            book = net.codebook(level)
            book.vectors.copy_(rows[torch.randint(len(rows), (book.bins,))])
            book.vectors.add_(torch.randn_like(book.vectors), alpha=float(rows.std()) / 2)
    return VQVAECodec(net, RATE)


def differing(codec: VQVAECodec, audio: np.ndarray, codes: dict[int, np.ndarray]) -> dict[str, int]:
    """Codes that differ from one pass of the plain layers, and how many of them are no near ties (must be 0)."""
    padded = np.zeros(codec.geometry.padded_length(len(audio)), np.float32)
    padded[: len(audio)] = audio
    x = torch.from_numpy(padded)[None, :, None]
    found = {"codes_differ": 0, "codes_differ_clearly": 0}
    for level in codes:
        with torch.enable_grad():
            rows = codec.vqvae.embed(x, level)[0].t().detach()
        vectors = codec.vqvae.codebook(level).vectors
        plain = torch.cat([codec.vqvae.codebook(level)(part).codes for part in rows.split(4096)]).numpy()
        other = np.flatnonzero(plain != codes[level])
        distance = (
            rows[other, None].double() - vectors[torch.from_numpy(np.stack([plain, codes[level]], 1)[other])]
        ).pow(2)
        gap = distance.sum(-1).diff(dim=1).abs().flatten()
        found["codes_differ"] += len(other)
        found["codes_differ_clearly"] += int((gap > 1e-6 * max(1.0, float(rows.pow(2).sum(1).max()))).sum())
    return found


def speed(preset: str, threads: int, repeats: int) -> None:
    codec = codec_of(preset)
    net, levels = codec.vqvae, range(codec.geometry.levels)
    audio = (np.random.default_rng(0).normal(0, 0.1, SECONDS * RATE)).astype(np.float32)
    codes = codec.encode(audio)
    checks = differing(codec, audio, codes)
    with torch.enable_grad():
        meta = build.build_vqvae(settings.from_presets(preset))
        x = torch.empty(1, 1, len(audio))
        encoding = [gflop(encoder, x) for encoder in meta.encoders]
        books = [2 * len(codes[level]) * net.bins * net.codebook(level).width / 1e9 for level in levels]
        decoding = [
            gflop(meta.decoders[level], torch.empty(1, net.codebook(level).width, len(codes[level])))
            for level in levels
        ]
    limit = peak_gflops(threads)
    common = {"preset": preset, "threads": threads, "limit_gflops": round(limit, 1)}

    def row(what: str, work: Callable[[], Any], amount: float, **more: Any) -> None:
        times = measured(work, repeats)
        share = 100 * amount / limit / times["wall_sec"]
        say(what=what, **common, **times, gflop=round(amount, 1), percent_of_limit=round(share, 1), **more)

    row("encode 20 s, all levels", lambda: codec.encode(audio), sum(encoding) + sum(books), **checks)
    for level in levels:
        row(
            f"encode 20 s, level {level}",
            lambda level=level: codec.encode(audio, [level]),
            encoding[level] + books[level],
        )
    for level in levels:
        with torch.enable_grad():
            vectors = net.codebook(level).lookup(torch.from_numpy(codes[level]))[None].transpose(1, 2)
            plain = net.decoders[level](vectors)[0, 0].detach().numpy()
        off = float(np.abs(codec.decode(codes[level], level) - plain).max())
        row(f"decode 20 s from level {level}", lambda level=level: codec.decode(codes[level], level), decoding[level],
            largest_difference_from_one_pass=off)  # fmt: skip


def stores(folder: Path) -> None:
    """Random windows from 10,000 songs at constant memory; opening 100,000 items a second time."""
    os.fsync = lambda _: None  # a disk's speed is not what is measured
    songs, codes = made_store(folder / "songs", 10_000, SECONDS * RATE)
    windows(songs, codes)
    made_store(folder / "many", 100_000, 1280)


def made_store(root: Path, items: int, length: int) -> tuple[CodeStore, np.ndarray]:
    """A store of equal items of `length` samples, and the top codes of each; says what opening it takes.

    Items beyond the first 10,000 are further names (hard links) of those: as many files to list, check and open.
    """
    geometry = Geometry(RATE, (8, 32, 128), 2048)
    codes = np.random.default_rng(0).integers(0, 2048, geometry.codes_for(TOP, length))
    sources, shards = [Source(f"{i}.wav") for i in range(items)], 10
    began = time.perf_counter()
    with StoreWriter.create_or_resume(root, geometry, "x", sources, shards=shards, levels=(TOP,)) as writer:
        for item in range(min(items, WRITTEN)):
            writer.add(item, {TOP: codes}, ItemFacts(length, length))
        for item in range(WRITTEN, items):
            for suffix in (".npy", ".json"):
                first = writer.plan.item_path(root, TOP, item % WRITTEN, suffix)
                os.link(first, writer.plan.item_path(root, TOP, item, suffix))
        writer.finish()
    made = time.perf_counter() - began
    (root / CACHE).unlink()
    openings = []
    for _ in range(2):
        began = time.perf_counter()
        store = CodeStore.open(root)
        openings.append(round(time.perf_counter() - began, 3))
    say(
        what=f"store of {items} items", made_sec=round(made, 1), first_opening_sec=openings[0],
        second_opening_sec=openings[1],
    )  # fmt: skip
    return store, codes


def windows(store: CodeStore, codes: np.ndarray, size: int = 2048, count: int = 20_000) -> None:
    """Random windows, each compared with what was written."""
    draw = np.random.default_rng(1)
    starts, items = draw.integers(0, len(codes) - size, count), draw.integers(0, len(store), count)
    store.codes(TOP, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    for start, i in zip(starts.tolist(), items.tolist(), strict=True):
        assert np.array_equal(store.codes(TOP, i, start, start + size), codes[start : start + size])
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    say(
        what=f"random windows of {size} codes from {len(store)} songs", windows_per_sec=round(count / took),
        windows_per_cpu_sec=round(count / cpu), memory_grown_mb=round(grown, 1),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vqvae")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("speed", "stores"), help="one half of the rows (default: both)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only != "speed":
        in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(dir=in_memory) as folder:
            stores(Path(folder))
    if arguments.only != "stores":
        speed(arguments.preset, arguments.threads, arguments.repeats)


if __name__ == "__main__":
    main()
