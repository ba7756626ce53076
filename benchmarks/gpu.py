"""Sampling on one GPU: ms per step beside the speed of its memory, prefill, time to 20 s of music, memory per song.

Run it by benchmarks/gpu.sh. Weights are random at true shapes. In the same run the steps recorded as a CUDA graph are
checked against the plain float32 net on the CPU, at a small depth (all attention kinds, the same widths). Times to 20 s
are extrapolated from sampled steps and marked so, unless --full.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from decode import CHUNK, PROMPT, random_prior, weight_bytes
from torch import Tensor

from jukebox import settings
from jukebox.models import build
from jukebox.nn import linear
from jukebox.prior.model import Prior
from jukebox.sampling.decode import decode_window, prefill
from jukebox.sampling.graphs import FixedStep
from jukebox.sampling.logits import Knobs, draw, gumbel, noise_keys
from jukebox.sampling.precision import made_up_labels

PRIORS = {"upsampler_level_1": "vqvae,upsampler_level_1", "prior_1b_lyrics": "vqvae,prior_1b_lyrics",
          "prior_5b_lyrics": "vqvae,prior_5b_lyrics"}  # fmt: skip
BATCHES = (1, 3, 16)
PUBLISHED_GB = {"upsampler_level_1": 1.0, "prior_1b_lyrics": 3.8, "prior_5b_lyrics": 10.3}
"""Memory per song that the first implementation states for sampling with these tops (cache alone for an upsampler)."""
CODES_20_SEC, WINDOWS = {0: 110_240, 1: 27_560, 2: 6_890}, {0: 27, 1: 7, 2: 2}  # of 20 s; half a window is primed again


def bandwidth() -> float:
    """Bytes per second of reading 4 GB, the best of nine."""
    data = torch.ones(1_000_000_000, device="cuda")
    return data.nbytes / min(timed(data.sum) for _ in range(9))


def timed(work: Callable[[], Any]) -> float:
    """Seconds, waiting for the device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def inputs(prior: Prior, n: int, device: str) -> tuple[Tensor | None, Tensor | None]:
    """Upper codes and labels of n songs."""
    numbers = torch.Generator().manual_seed(0)
    upper = None
    if prior.ratio:
        upper = torch.randint(prior.shape.bins, (n, prior.n_ctx // prior.ratio), generator=numbers).to(device)
    return upper, made_up_labels(prior, n, numbers).to(device) if prior.labelled else None


def check(model: str, form: linear.Form) -> dict[str, Any]:
    """A net of the true widths, 16 layers deep, recorded on the GPU, against plain float32 on the CPU."""
    shape = build.prior_shape(settings.from_presets(PRIORS[model]))
    torch.manual_seed(0)
    prior = Prior(replace(shape, transformer=replace(shape.transformer, depth=16), alignment_layer=None)).eval()
    prior.requires_grad_(False)
    seen: dict[str, list[Tensor]] = {"cpu": [], "cuda": []}
    codes = torch.randint(shape.bins, (2, 24))
    for device in seen:
        if device == "cuda":
            prior.to("cuda")
            linear.pack(prior, form)
        upper, y = inputs(prior, 2, device)
        forced = iter(codes[:, 8:].t())

        def choose(logits: Tensor, place: int, device: str = device, forced: Iterator[Tensor] = forced) -> Tensor:
            seen[device].append(logits.float().cpu().clone())
            return (next(forced) + prior.shift).to(logits.device)

        given = codes[:, :8].to(device)
        decode_window(prior, given, 24, choose, upper=upper, y=y, dtype=linear.result_dtype(prior))
    cpu, gpu = torch.stack(seen["cpu"]), torch.stack(seen["cuda"])
    error = ((cpu - gpu).abs().max() / (cpu.max() - cpu.min())).item()
    agreement = (cpu.argmax(-1) == gpu.argmax(-1)).float().mean().item()
    return {"row": "check", "logits_error_of_span": error, "same_choice": agreement, "passes": error < 0.02}


def on_gpu(model: str, form: linear.Form) -> Prior:
    """A prior of true size, packed on the GPU."""
    prior = random_prior(PRIORS[model], "cuda")
    linear.pack(prior, form)
    return prior


def measure(model: str, form: linear.Form, prior: Prior, n: int, speed: float, steps: int) -> dict[str, Any]:
    """Steps of n songs in the middle of a window, as they are sampled: drawing included."""
    torch.cuda.reset_peak_memory_stats()
    before_bytes = torch.cuda.memory_allocated()
    dtype = linear.result_dtype(prior)
    upper, y = inputs(prior, n, "cuda")
    cond = prior.condition(upper, y, dtype)
    state = prior.new_state(n, dtype)
    if cond.encoded is not None:
        prior.net.transformer.encode(cond.encoded, state)
    given = torch.randint(prior.shape.bins, (n, min(PROMPT, prior.n_ctx // 2)), device="cuda")
    prefill_sec = timed(lambda: prefill(prior, prior.tokens(given, cond), cond, state, CHUNK // 4))
    record = time.perf_counter()
    step = FixedStep(prior, state, cond)
    torch.cuda.synchronize()
    record_sec = time.perf_counter() - record
    keys = noise_keys(torch.zeros(n, dtype=torch.int64), torch.arange(n), prior.level).cuda()
    drawn = given[:, -1:] + prior.shift

    def run(count: int) -> None:
        nonlocal drawn
        for place in range(count):
            logits = step(drawn)
            drawn = draw(logits, Knobs(0.98), gumbel(keys, place, logits.shape[1]))[:, None]

    run(20)
    times = sorted(timed(lambda: run(steps)) / steps for _ in range(5))
    kernels = count_kernels(lambda: run(1))
    ms = times[2] * 1e3
    level = 2 if "prior" in model else 1
    primed = WINDOWS[level] * prior.n_ctx // 2
    return {
        "row": "step", "n": n, "ms": round(ms, 3), "ms_min": round(times[0] * 1e3, 3), "ms_max": round(times[-1] * 1e3, 3),
        "percent_of_limit": round(100 * weight_bytes(prior) / speed / times[2], 1), "kernels_per_step": kernels,
        "prefill_codes_per_sec": round(given.numel() / prefill_sec), "record_sec": round(record_sec, 2),
        "level_of_20_sec_in_sec": round(CODES_20_SEC[level] * times[2] + primed / (given.shape[1] / prefill_sec), 1),
        "extrapolated": True,
        "gb_per_song": round((torch.cuda.max_memory_allocated() - before_bytes) / n / 1e9, 3),
        "published_gb_per_song": PUBLISHED_GB[model], "weights_gb": round(weight_bytes(prior) / 1e9, 2),
    }  # fmt: skip


def whole(model: str, prior: Prior, n: int) -> dict[str, Any]:
    """Whole windows of a level instead of sampled steps: the first from nothing, then one that goes on from half."""
    dtype = linear.result_dtype(prior)
    upper, y = inputs(prior, n, "cuda")
    keys = noise_keys(torch.zeros(n, dtype=torch.int64), torch.arange(n), prior.level).cuda()

    def choose(logits: Tensor, place: int) -> Tensor:
        return draw(logits, Knobs(0.98), gumbel(keys, place, logits.shape[1]))

    def window(given: Tensor) -> Tensor:
        return decode_window(prior, given, prior.n_ctx, choose, upper=upper, y=y, dtype=dtype, mask_lyric_codes=True)

    codes = torch.zeros(n, 0, dtype=torch.int64, device="cuda")
    first = timed(lambda: window(codes))
    half = torch.randint(prior.shape.bins, (n, prior.n_ctx // 2), device="cuda")
    later = timed(lambda: window(half))
    level = 2 if "prior" in model else 1
    windows = max(1, -(-(CODES_20_SEC[level] - prior.n_ctx) // (prior.n_ctx // 2)))
    return {
        "row": "windows", "n": n, "first_window_sec": round(first, 1), "later_window_sec": round(later, 1),
        "level_of_20_sec_in_sec": round(first + windows * later, 1), "extrapolated": False,
    }  # fmt: skip


def count_kernels(work: Callable[[], Any]) -> int:
    """Kernels that the device ran, those inside a graph counted one by one."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="whole windows, not sampled steps")
    parser.add_argument("--out", default="gpu.jsonl", help="rows that it holds are not run again")
    parser.add_argument("--dtype", default="fp16,bf16", help="of fp32,fp16,bf16,int8, by comma")
    parser.add_argument("--steps", type=int, default=100)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: unmeasured")
        return 1
    out = Path(asked.out)
    done = {json.loads(line)["key"] for line in out.read_text().splitlines()} if out.exists() else set()

    def publish(key: str, make: Callable[[], dict[str, Any]]) -> None:
        if key not in done:
            line = json.dumps({"key": key, "gpu": torch.cuda.get_device_name(), **make()})
            print(line, flush=True)
            with out.open("a") as file:
                file.write(line + "\n")

    with torch.inference_mode():
        speed = bandwidth()
        print(json.dumps({"bandwidth_gb": round(speed / 1e9)}), flush=True)
        for model in PRIORS:
            for form in asked.dtype.split(","):
                what = "full" if asked.full else "step"
                keys = {n: f"{model} {form} n={n} {what}" for n in BATCHES}
                publish(f"{model} {form} check", lambda m=model, f=form: check(m, f))
                if set(keys.values()) <= done:
                    continue
                prior = on_gpu(model, form)
                for n, key in keys.items():
                    if asked.full:
                        publish(key, lambda m=model, p=prior, n=n: whole(m, p, n))
                    else:
                        publish(key, lambda m=model, f=form, p=prior, n=n: measure(m, f, p, n, speed, asked.steps))
                del prior
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
