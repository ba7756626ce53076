"""Sampling on one GPU: ms per step beside the speed of its memory, prefill, time to 20 s of music, memory per song.

    sh benchmarks/gpu.sh                       under 10 minutes: steps in the middle of a window; times to 20 s of three levels
                                               are extrapolated from them and marked so
    sh benchmarks/gpu.sh --full                whole songs of 20 s through three levels, window by window
    sh benchmarks/gpu.sh --rehearse            the same program on the CPU with small nets: does it run? Its figures mean nothing

One JSON line per row, on the screen and in --out. Rows that the file holds are not run again, and --full goes on behind its
last window: after an interruption, or when the minutes are used up, the same command continues. Weights are random at true
shapes. In the same run the steps recorded as a CUDA graph are checked against the plain float32 net on the CPU: true
widths, one layer of each attention kind.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu_songs
import torch
from decode import CHUNK, PROMPT, weight_bytes
from gpu_nets import PRIORS, level_of, packed_prior, plain_prior, shape_of
from torch import Tensor

from jukebox.nn import linear
from jukebox.prior.model import Prior
from jukebox.sampling.decode import decode_window, prefill
from jukebox.sampling.graphs import FixedStep
from jukebox.sampling.logits import Knobs, draw, gumbel, noise_keys
from jukebox.sampling.memory import ran_out
from jukebox.sampling.needs import one_of_each_kind
from jukebox.sampling.plan import window_starts
from jukebox.sampling.precision import made_up_labels

BATCHES = (1, 3, 16)
PUBLISHED_WEIGHTS_GB = {"prior_1b_lyrics": 3.8, "prior_5b_lyrics": 11.5}
PUBLISHED_CACHE_GB = {"upsampler_level_1": 0.4, "prior_1b_lyrics": 0.4, "prior_5b_lyrics": 1.0}
"""What the first implementation states: weights, and cache of a song. Ours may not be larger."""
TOLERANCE = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05, "int8": 0.05}  # of the span of the logits
CODES = {0: 110_240, 1: 27_560, 2: 6_890}  # of 20 s
HOP = {0: 0.5, 1: 0.5, 2: 0.125}  # from window to window, of a window


class Device:
    """What is measured: a card, or, in a rehearsal, the CPU in its place."""

    def __init__(self, name: str) -> None:
        self.name, self.is_card = name, name.startswith("cuda")
        self.about = torch.cuda.get_device_name() if self.is_card else "rehearsal on a CPU: figures mean nothing"

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds, waiting for the device."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Until everything asked for is done."""
        if self.is_card:
            torch.cuda.synchronize()

    def bandwidth(self) -> float:
        """Bytes per second of reading 4 GB, the best of nine."""
        data = torch.ones(1_000_000_000 if self.is_card else 1_000_000, device=self.name)
        return data.nbytes / min(self.timed(data.sum) for _ in range(9))

    def start_peak(self) -> int:
        """Forget the peak so far; bytes taken now."""
        if not self.is_card:
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Bytes at most since then."""
        return torch.cuda.max_memory_allocated() if self.is_card else 0

    def kernels(self, work: Callable[[], Any]) -> int:
        """Kernels that ran on the device, those inside a graph counted one by one."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA if self.is_card else ProfilerActivity.CPU]) as seen:
            work()
            self.wait()
        kind = DeviceType.CUDA if self.is_card else DeviceType.CPU
        return sum(event.device_type == kind for event in seen.events() or ())


def inputs(prior: Prior, n: int, device: str) -> tuple[Tensor | None, Tensor | None]:
    """Upper codes and labels of n songs."""
    numbers = torch.Generator().manual_seed(0)
    upper = None
    if prior.ratio:
        upper = torch.randint(prior.shape.bins, (n, prior.n_ctx // prior.ratio), generator=numbers).to(device)
    return upper, made_up_labels(prior, n, numbers).to(device) if prior.labelled else None


def teacher_forced(prior: Prior, codes: Tensor, device: str) -> Tensor:
    """Logits `[steps, 2, K]` on the CPU: 8 codes are given, the others forced one after the other."""
    seen: list[Tensor] = []
    upper, y = inputs(prior, len(codes), device)
    forced: Iterator[Tensor] = iter(codes[:, 8:].t())

    def choose(logits: Tensor, place: int) -> Tensor:
        seen.append(logits.float().cpu().clone())
        return (next(forced) + prior.shift).to(logits.device)

    given = codes[:, :8].to(device)
    decode_window(prior, given, codes.shape[1], choose, upper=upper, y=y, dtype=linear.result_dtype(prior), fixed=True)
    return torch.stack(seen)


@cache
def reference(model: str, small: bool) -> tuple[Tensor, Tensor]:
    """Codes `[2, 24]`, and the logits that the plain float32 net gives for them on the CPU."""
    codes = torch.randint(16, (2, 24), generator=torch.Generator().manual_seed(1))
    return codes, teacher_forced(plain_prior(shape_of(model, small), "cpu", cut=one_of_each_kind), codes, "cpu")


def check(model: str, form: linear.Form, device: Device, small: bool) -> dict[str, Any]:
    """A net of the true widths with one layer of each kind: a form on the device against plain float32 on the CPU."""
    codes, expected = reference(model, small)
    prior = plain_prior(shape_of(model, small), "cpu", cut=one_of_each_kind)
    linear.pack(prior, form, device.name)
    found = teacher_forced(prior.to(device.name), codes, device.name)
    error = ((expected - found).abs().max() / (expected.max() - expected.min())).item()
    same = (expected.argmax(-1) == found.argmax(-1)).float().mean().item()
    return {"row": "check", "model": model, "dtype": form, "logits_error_of_span": error, "same_choice": same,
            "passes": error <= TOLERANCE[form]}  # fmt: skip


def measure(model: str, prior: Prior, n: int, speed: float, steps: int, device: Device) -> dict[str, Any]:
    """Steps of n songs in the middle of a window, as they are sampled: drawing included."""
    before_bytes = device.start_peak()
    dtype = linear.result_dtype(prior)
    cond = prior.condition(*inputs(prior, n, device.name), dtype)
    state = prior.new_state(n, dtype)
    if cond.encoded is not None:
        prior.net.transformer.encode(cond.encoded, state)
    given = torch.randint(prior.shape.bins, (n, min(PROMPT, prior.n_ctx // 2)), device=device.name)
    prefill_sec = device.timed(lambda: prefill(prior, prior.tokens(given, cond), cond, state, CHUNK))
    record = time.perf_counter()
    step = FixedStep(prior, state, cond)
    device.wait()
    record_sec = time.perf_counter() - record
    keys = noise_keys(torch.zeros(n, dtype=torch.int64), torch.arange(n), prior.level).to(device.name)
    drawn = given[:, -1:] + prior.shift

    def run(count: int) -> None:
        nonlocal drawn
        for place in range(count):
            logits = step(drawn)
            drawn = draw(logits, Knobs(0.98), gumbel(keys, place, logits.shape[1]))[:, None]

    run(min(20, steps))
    times = sorted(device.timed(lambda: run(steps)) / steps for _ in range(5))
    taken = device.peak() - before_bytes
    rate = given.numel() / prefill_sec
    return {
        "row": "step", "model": model, "n": n, "ms": round(times[2] * 1e3, 3), "ms_min": round(times[0] * 1e3, 3),
        "ms_max": round(times[-1] * 1e3, 3), "percent_of_limit": round(100 * weight_bytes(prior) / speed / times[2], 1),
        "kernels_per_step": device.kernels(lambda: step(drawn)), "kernels_of_drawing": device.kernels(lambda: run(1)),
        "prefill_codes_per_sec": round(rate), "record_sec": round(record_sec, 2),
        "level_of_20_sec_in_sec": {
            level: round(level_seconds(prior, level, times[2], rate / n), 1) for level in level_of(model)
        }, "extrapolated": True,
        "cache_gb_per_song": round(state.nbytes() / n / 1e9, 6), "published_cache_gb_per_song": PUBLISHED_CACHE_GB[model],
        "peak_gb_per_song": round(taken / n / 1e9, 3), "weights_gb": round(before_bytes / 1e9, 2),
        "published_weights_gb": PUBLISHED_WEIGHTS_GB.get(model),
    }  # fmt: skip


def level_seconds(prior: Prior, level: int, step_sec: float, given_per_sec: float) -> float:
    """Seconds of a level of 20 s: all its codes, and what each window reads again."""
    starts = window_starts(CODES[level], prior.n_ctx, max(1, int(HOP[level] * prior.n_ctx)))
    given = sum(prior.n_ctx - (later - earlier) for earlier, later in zip(starts, starts[1:], strict=False))
    return CODES[level] * step_sec + given / given_per_sec


def twenty_seconds(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Time to 20 s of three levels, from the rows of a top and of the upsampler with as many songs."""
    steps = {(row["model"], row["dtype"], row["n"]): row for row in rows if row.get("row") == "step" and "ms" in row}
    for (model, form, n), row in steps.items():
        upsampler = steps.get(("upsampler_level_1", form, n))
        if upsampler and model != "upsampler_level_1":
            seconds = {**row["level_of_20_sec_in_sec"], **upsampler["level_of_20_sec_in_sec"]}
            yield {"row": "20 s", "model": model, "dtype": form, "n": n, "seconds": round(sum(seconds.values()), 1),
                   "levels": seconds, "extrapolated": True}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="whole songs, not sampled steps")
    parser.add_argument("--rehearse", action="store_true", help="small nets on the CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    words = {"type": lambda text: text.split(",")}
    parser.add_argument("--model", default=list(PRIORS), help=f"of {','.join(PRIORS)}", **words)
    parser.add_argument("--dtype", default=["fp16", "bf16", "int8"], help="of fp32,fp16,bf16,int8", **words)
    parser.add_argument("--n", default=list(BATCHES), type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--steps", type=int, default=100, help="measured at a time")
    parser.add_argument("--minutes", type=float, default=9.0, help="no row is begun later; --full has no limit")
    asked = parser.parse_args()
    known = [("--model", asked.model, list(PRIORS)), ("--dtype", asked.dtype, list(TOLERANCE))]
    for flag, given, allowed in known:
        if unknown := [word for word in given if word not in allowed]:
            parser.error(f"{flag}={unknown[0]}: it takes {', '.join(allowed)}.")
    return asked


class Rows:
    """The rows of --out, by key, and the time there is for more."""

    def __init__(self, out: Path, device: Device, minutes: float) -> None:
        self.out, self.device, self.until, self.left = out, device, time.monotonic() + 60 * minutes, 0
        lines = out.read_text().splitlines() if out.exists() else []
        self.found = {row["key"]: row for row in map(json.loads, lines)}

    def add(self, key: str, make: Callable[[], dict[str, Any]]) -> None:
        """Make a row, unless it is there or time is up. What does not fit into memory is a row too."""
        if key in self.found:
            return
        if time.monotonic() > self.until:
            self.left += 1
            return
        try:
            row = make()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            row = {"row": "does not fit", "error": str(error).splitlines()[0]}
        if self.device.is_card:
            torch.cuda.empty_cache()
        self.found[key] = {"key": key, "device": self.device.about, **row}
        line = json.dumps(self.found[key])
        print(line, flush=True)
        with self.out.open("a") as file:
            file.write(line + "\n")


def main() -> int:
    asked = arguments()
    if not (torch.cuda.is_available() or asked.rehearse):
        print("no GPU here: unmeasured (--rehearse runs the program with small nets on the CPU)")
        return 1
    device = Device("cpu" if asked.rehearse else "cuda:0")
    forms = [form for form in asked.dtype if form in linear.forms(device.name)]
    rows = Rows(asked.out, device, 1e6 if asked.full else asked.minutes)
    with torch.inference_mode():
        if asked.full:
            gpu_songs.sing(rows.add, forms[0], asked.n, device.name, asked.out.with_suffix(".songs"), asked.rehearse)
            return 0
        speed = device.bandwidth()
        print(json.dumps({"bandwidth_gb": round(speed / 1e9), "device": device.about}), flush=True)
        for model in asked.model:
            for form in forms:
                rows.add(f"{model} {form} check", lambda m=model, f=form: check(m, f, device, asked.rehearse))
        for form in forms:  # all models in the first form before the second
            for model in asked.model:
                step_rows(rows, model, form, asked, speed)
        for row in list(twenty_seconds(list(rows.found.values()))):
            rows.add(f"{row['model']} {row['dtype']} n={row['n']} 20 s", lambda row=row: row)
    if rows.left:
        print(f"{rows.left} rows left after {asked.minutes:g} minutes: the same command goes on with them")
    return 0 if all(row.get("passes", True) for row in rows.found.values()) else 1


def step_rows(rows: Rows, model: str, form: linear.Form, asked: argparse.Namespace, speed: float) -> None:
    """The rows of one packed net, which is made when the first of them is."""
    made: list[Prior] = []

    def row(n: int) -> dict[str, Any]:
        if not made:
            made.append(packed_prior(shape_of(model, asked.rehearse), form, rows.device.name))
        return {"dtype": form, **measure(model, made[0], n, speed, asked.steps, rows.device)}

    for n in asked.n:
        rows.add(f"{model} {form} n={n} step", lambda n=n: row(n))


if __name__ == "__main__":
    sys.exit(main())
