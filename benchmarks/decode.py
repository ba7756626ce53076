"""How fast priors of true size decode on this CPU, beside the speed of its memory.

    python benchmarks/decode.py                          all rows of docs/benchmarks.md, under 8 minutes on two cores
    python benchmarks/decode.py --model=upsampler_level_1 --dtype=int8 --n=1 --kind=step     one row

One JSON line per row. Weights are random, never zeros, and shapes are those of the presets. In the same run: memory
bandwidth (reading 800 MB), and a check of the outputs: codes drawn greedily by the packed float32 net, over the edge of
a row, must be what the plain net prefers in one block-parallel pass, and the logits must agree within 1e-4 of their
span. Forms are timed in turn (A B C A B C ...), the median of the repeats counts, the spread is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from jukebox import settings
from jukebox.models import build
from jukebox.nn import linear
from jukebox.nn.cache import DecodeState
from jukebox.prior.model import Conditioning, Prior
from jukebox.sampling.decode import Step, between, prefill, stepper
from jukebox.sampling.logits import Knobs, draw, gumbel, noise_keys
from jukebox.sampling.precision import made_up_labels

MODELS = {"small_prior": "small_vqvae,small_prior", "upsampler_level_1": "vqvae,upsampler_level_1",
          "prior_1b_lyrics": "vqvae,prior_1b_lyrics"}  # fmt: skip
BATCHES = {"small_prior": (1, 4, 16)}  # the others: 1
PROMPT = 4096  # codes given before the later rows
CHUNK = 1024  # codes of a prefill pass
TOLERANCE = 1e-4


def bandwidth() -> float:
    """Bytes per second of reading 800 MB with all threads, the best of nine."""
    data = torch.ones(200_000_000)
    return data.nbytes / min(timed(data.sum) for _ in range(9))


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def random_prior(presets: str, device: str = "cpu") -> Prior:
    """A prior of true size whose weights have the spread of a trained one; some blocks of numbers repeat."""
    torch.manual_seed(0)
    with torch.device("meta"):
        prior = build.build_prior(settings.from_presets(presets))
    prior = prior.to_empty(device=device).eval().requires_grad_(False)
    numbers = torch.randn(1 << 22, device=device)
    for name, tensor in prior.named_parameters():
        shift = int(torch.randint(1 << 20, ()))
        count = tensor.numel()
        repeats = -(-count // (numbers.numel() - shift))
        spread = 1.0 if "norm" in name and name.endswith("weight") else 0.02
        tensor.copy_((numbers[shift:].repeat(repeats)[:count] * spread).view_as(tensor))
    return prior


def packed(prior: Prior, form: str) -> Prior:
    """A second net on the same embeddings, its products packed; "plain" is the net itself."""
    if form == "plain":
        return prior
    other = copy.deepcopy(prior, {id(p): p for p in prior.parameters()})
    linear.pack(other, form)  # type: ignore[arg-type]
    return other


@dataclass
class Song:
    """A batch in the middle of a window: `position` codes are there."""

    prior: Prior
    cond: Conditioning
    state: DecodeState
    step: Step
    keys: Tensor
    drawn: Tensor

    @classmethod
    def begin(cls, prior: Prior, n: int, position: int = 0) -> Song:
        """After lyrics, where there are any, and `position` codes: their keys and values are random numbers."""
        upper = torch.randint(prior.shape.bins, (n, prior.n_ctx // prior.ratio)) if prior.ratio else None
        y = made_up_labels(prior, n, torch.Generator().manual_seed(0)) if prior.labelled else None
        cond = prior.condition(upper, y)
        state = prior.new_state(n)
        drawn = torch.zeros(n, 1, dtype=torch.int64)
        keys = noise_keys(torch.zeros(n, dtype=torch.int64), torch.arange(n), prior.level)
        song = cls(prior, cond, state, stepper(prior, state, cond), keys, drawn)
        prefill(prior, prior.tokens(drawn[:, :0], cond), cond, state)
        if position:
            for layer in state.layers:
                layer.kv.copy_(
                    torch.randn(1 << 16).repeat(-(-layer.kv.numel() >> 16))[: layer.kv.numel()].view_as(layer.kv)
                )
            state.position = prior.prefix + position
        return song

    def steps(self, count: int) -> None:
        """Draw so many codes of every song, exactly as sampling does."""
        with between(self.step):
            for _ in range(count):
                logits = self.step(self.drawn)
                noise = gumbel(self.keys, int(self.state.position), logits.shape[1])
                self.drawn = draw(logits, Knobs(0.98), noise)[:, None]


def check(plain: Prior, fp32: Prior) -> dict[str, Any]:
    """Packed float32 against the plain net over a row and a few codes more. Raises SystemExit when they differ."""
    song = Song.begin(fp32, 1)
    pattern = fp32.net.transformer.shape.pattern(0)
    count = pattern.width - (fp32.prefix % pattern.width) + 8
    seen, tokens = [], [song.drawn + fp32.shift]
    for _ in range(count):
        seen.append(song.step(tokens[-1]).clone())
        tokens.append(seen[-1].argmax(-1, keepdim=True))
    cond = song.cond
    before = torch.cat([fp32.tokens(torch.cat(tokens[:1], 1)[:, :0], cond), *tokens[:-1]], 1)
    hidden = prefill(plain, before, cond, plain.new_state(1))
    expected = plain.net.out(hidden[:, -count:])
    found = torch.stack(seen, 1)
    error = ((found - expected).abs().max() / (expected.max() - expected.min())).item()
    same = torch.equal(expected.argmax(-1), found.argmax(-1))
    if error > TOLERANCE or not same:
        raise SystemExit(f"the packed net differs from the plain one: {error:.1e} of the span, same choices: {same}")
    return {"codes": count, "logits_error": error, "greedy_codes_equal": same}


def weight_bytes(prior: Prior) -> int:
    """Bytes of weights that a step reads: transformer and head."""
    total = 0
    for module in [*prior.net.transformer.modules(), prior.net.out]:
        if isinstance(module, linear.Packed):
            total += module.n_in * module.n_out * module.itemsize
        elif isinstance(module, linear.Linear | linear.Head):
            total += module.weight.nbytes
    return total


def rows(model: str, asked: argparse.Namespace, speed: float) -> Iterator[dict[str, Any]]:
    """All rows of one model."""
    plain = random_prior(MODELS[model])
    about: dict[str, Any] = {"model": model, "threads": asked.threads, "bandwidth_gb": round(speed / 1e9, 1)}
    start = time.perf_counter()
    nets = {form: packed(plain, form) for form in asked.dtype}
    about["packing_sec"] = round(time.perf_counter() - start, 1)
    for index, n in enumerate(asked.n or BATCHES.get(model, (1,))):
        if index == 0 and asked.check and "fp32" in nets:
            yield {"row": "check", **about, **check(plain, nets["fp32"])}
        for position in asked.position:
            if "step" in asked.kind and not (position and n > 4):
                yield from ({"row": "step", **about, **row} for row in step_rows(nets, n, position, asked, speed))
        if index == 0 and "prefill" in asked.kind:
            for form, net in nets.items():
                if form != "int8" or len(nets) == 1:
                    yield {"row": "prefill", **about, "dtype": form, **prefill_row(net)}


def step_rows(
    nets: dict[str, Prior], n: int, position: int, asked: argparse.Namespace, speed: float
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Forms in turn: repeats x steps codes of each."""
    songs = {form: Song.begin(net, n, position) for form, net in nets.items()}
    count = {
        form: max(4, int(asked.seconds / asked.repeats / timed(lambda s=song: s.steps(1))))
        for form, song in songs.items()
    }
    times: dict[str, list[float]] = {form: [] for form in songs}
    for song in songs.values():
        song.steps(2)
    for _ in range(asked.repeats):
        for form, song in songs.items():
            times[form].append(timed(lambda s=song, f=form: s.steps(count[f])) / count[form])
    for form, song in songs.items():
        step = median(times[form])
        floor = weight_bytes(song.prior) / speed
        memory = weight_bytes(song.prior) + song.state.nbytes()
        yield {
            "dtype": form, "n": n, "after": position, "codes_per_sec": round(n / step, 1),
            "ms": round(step * 1e3, 2), "ms_min": round(min(times[form]) * 1e3, 2),
            "ms_max": round(max(times[form]) * 1e3, 2), "percent_of_limit": round(100 * floor / step, 1),
            "weights_and_cache_gb": round(memory / 1e9, 2), "peak_gb_of_process": peak_gb(),
        }  # fmt: skip


def prefill_row(net: Prior) -> dict[str, Any]:
    """One prompt in bounded passes."""
    song = Song.begin(net, 1)
    tokens = torch.randint(net.shape.bins, (1, PROMPT)) + net.shift
    before = net.tokens(tokens[:, :0], song.cond)
    state = net.new_state(1)
    seconds = timed(lambda: prefill(net, torch.cat([before, tokens], 1), song.cond, state, CHUNK))
    gflop = 2 * (PROMPT + net.prefix) * sum(
        m.n_in * m.n_out for m in net.net.transformer.modules() if isinstance(m, linear.Packed | linear.Linear)
    ) / 1e9  # fmt: skip
    return {
        "n": 1, "codes": PROMPT, "codes_per_sec": round(PROMPT / seconds, 1), "sec": round(seconds, 2),
        "gflops": round(gflop / seconds), "peak_gb_of_process": peak_gb(),
    }  # fmt: skip


def peak_gb() -> float:
    """Largest memory of this process so far; of one row where only one was asked for."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = {"type": lambda text: text.split(",")}
    numbers = {"type": lambda text: [int(word) for word in text.split(",")]}
    parser.add_argument("--model", default=list(MODELS), help=f"of {','.join(MODELS)}", **words)
    parser.add_argument("--dtype", default=["fp32", "bf16", "int8"], help="of plain,fp32,bf16,int8", **words)
    parser.add_argument("--n", default=None, help="songs at once; default 1, for small_prior 1,4,16", **numbers)
    parser.add_argument("--position", default=[0, PROMPT], help="codes that are there before", **numbers)
    parser.add_argument("--kind", default=["step", "prefill"], help="of step,prefill", **words)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5, help="of measuring per row")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-check", dest="check", action="store_false")
    return parser.parse_args()


def main() -> None:
    """Each model in a process of its own, so that its peak memory is its own."""
    asked = arguments()
    if len(asked.model) > 1:
        for model in asked.model:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], f"--model={model}"], check=True)
        return
    torch.set_num_threads(asked.threads)
    with torch.inference_mode():
        for row in rows(asked.model[0], asked, bandwidth()):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
