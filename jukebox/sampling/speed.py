"""How fast a level will be sampled: a short measurement with a net of the true widths and few layers, no weights read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from jukebox.nn import linear
from jukebox.nn.linear import Form
from jukebox.prior.model import Conditioning, Prior, PriorShape
from jukebox.sampling.decode import between, stepper
from jukebox.sampling.graphs import FixedStep
from jukebox.sampling.logits import Knobs, draw, gumbel

_PRODUCT_BYTES = 200e6  # of weights at least, so that they do not stay in the processor's cache
_SECONDS = 0.5  # of measuring steps
_ROWS = 256  # of given codes, at most
_REPEAT = 3  # layers in which the attention kinds repeat


@dataclass(frozen=True)
class Speed:
    """Seconds of a step, which draws one code of every song of the batch, and of reading one given code of each."""

    step_sec: float
    given_sec: float

    def seconds(self, codes: int, given: int) -> float:
        """For so many drawn and given codes of a batch."""
        return codes * self.step_sec + given * self.given_sec


@torch.inference_mode()
def measure(shape: PriorShape, form: Form, songs: int, chunk_size: int | None, device: str) -> Speed:
    """Speed of a batch in the middle of a window. The time of the layers is scaled up to the depth of the prior."""
    prior = _cut(shape, form, songs, device)
    scale = shape.transformer.depth / len(prior.net.transformer.layers)
    width, place = prior.net.pos.shape[1], prior.n_ctx // 2
    rows = min(chunk_size or _ROWS, _ROWS, prior.n_ctx - place)
    cond = Conditioning(prior.net.pos[None].expand(songs, -1, -1), None, None, None)
    state = prior.new_state(songs, linear.result_dtype(prior))
    before = torch.zeros(songs, rows, dtype=torch.int64, device=device)
    hidden, keys = torch.zeros(songs, width, device=device), before.new_zeros(songs)

    def given() -> None:
        state.position = place
        prior.net.extend(before, state, cond.x_cond)

    def choose(logits: Tensor) -> None:
        draw(logits, Knobs(), gumbel(keys, place, logits.shape[1]))

    given_sec = _timed(given, device, 1) / rows
    state.position = place
    step = FixedStep(prior, state, cond) if torch.device(device).type != "cpu" else stepper(prior, state, cond)
    before = before[:, :1]
    logits = prior.net.out(hidden)
    head = getattr(step, "without_layers", lambda: prior.net.out(hidden))
    most = min(prior.n_ctx - place - 1, 200)

    def outside() -> None:
        head()
        choose(logits)

    with between(step):
        step_sec = _timed(lambda: choose(step(before)), device, most)
        head_sec = min(step_sec, _timed(outside, device, 20))
    return Speed(head_sec + (step_sec - head_sec) * scale, given_sec * scale)


def _cut(shape: PriorShape, form: Form, songs: int, device: str) -> Prior:
    """A packed net of the true widths: as few layers as keep their weights out of the processor's cache."""
    whole = shape.transformer
    numbers = (4 * whole.m_attn + 2 * whole.m_mlp) * whole.width**2
    layer_bytes = numbers * {"fp32": 4, "int8": 1}.get(form, 2)
    few = -(-int(_PRODUCT_BYTES / layer_bytes) // _REPEAT) * _REPEAT
    transformer = replace(whole, depth=min(whole.depth, max(_REPEAT, few)))
    with torch.device("meta"):
        prior = Prior(replace(shape, transformer=transformer, conditioner=None, lyric_encoder=None))
    prior = prior.to_empty(device=device).eval().requires_grad_(False)
    for parameter in prior.parameters():
        parameter.fill_(0.01)
    linear.pack(prior, form)
    return prior


def _timed(work: Callable[[], Any], device: str, most: int) -> float:
    """Median seconds of a call, after one to warm up."""
    work()
    times: list[float] = []
    while len(times) < max(1, most) and sum(times) < _SECONDS:
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return median(times)


def _wait(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
