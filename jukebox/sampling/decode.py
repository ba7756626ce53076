"""One window of one level: prefill what is given, then code by code. Owns the decode state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from jukebox.nn.cache import DecodeState
from jukebox.nn.linear import Rows
from jukebox.prior.model import Conditioning, Prior
from jukebox.sampling.graphs import Steps

log = logging.getLogger(__name__)

Choose = Callable[[Tensor, int], Tensor]
"""Logits `[B, K]` and the place of the code in the window -> codes `[B]`."""

Step = Callable[[Tensor], Tensor]
"""The token drawn last, `[B, 1]`, or none at the start, `[B, 0]` -> logits `[B, K]` of the next."""


@torch.inference_mode()
def decode_window(
    prior: Prior, given: Tensor, length: int, choose: Choose, *, upper: Tensor | None = None, y: Tensor | None = None,
    dtype: torch.dtype = torch.float32, chunk_size: int | None = None, mask_lyric_codes: bool = False,
    on_code: Callable[[], None] | None = None, fixed: bool | None = None, steps: Steps | None = None,
) -> Tensor:  # fmt: skip
    """Codes `[B, length]` of a window that begins with `given` `[B, m]`, m < length <= n_ctx.

    upper `[B, n_ctx / ratio]` and y as in `Prior.condition`. dtype: of keys, values and lyric states. chunk_size: codes
    per prefill pass, None for all at once (the same result). mask_lyric_codes keeps lyric characters from being drawn
    among the codes, which the published one-sequence models can do (arXiv:2005.00341 sec. 4.4). on_code is called after
    each new code. fixed: steps of fixed shape, recorded as a CUDA graph; None = on a GPU. steps: keeps the recording for
    the next window of this prior.
    """
    B, m = given.shape
    if not m < length <= prior.n_ctx:
        raise ValueError(f"{m} codes given for a window of {length} of at most {prior.n_ctx}")
    steps = (steps or Steps()) if (given.is_cuda if fixed is None else fixed) else None
    cond = prior.condition(upper, y, dtype)
    state, cond = steps.begin(prior, B, cond, dtype) if steps else (prior.new_state(B, dtype), cond)
    if cond.encoded is not None:
        prior.net.transformer.encode(cond.encoded, state)
    tokens = torch.cat([prior.tokens(given, cond), given.new_zeros(B, length - m)], 1)
    at = prior.prefix + m  # place of the next token in the sequence
    step = None if steps else stepper(prior, state, cond)
    if step and at == 0:  # the start vector alone is a step too
        logits = step(tokens[:, :0])
    else:
        logits = prior.net.out(prefill(prior, tokens[:, :at], cond, state, chunk_size)[:, -1])
    if steps:
        step = steps.after_prefill(prior, state, cond)
    assert step is not None
    with between(step):
        while True:
            if mask_lyric_codes and prior.shift:
                logits[:, : prior.shift] = -torch.inf
            tokens[:, at] = choose(logits, at - prior.prefix)
            at += 1
            if on_code:
                on_code()
            if at == tokens.shape[1]:
                return prior.codes(tokens)
            logits = step(tokens[:, at - 1 : at])


def stepper(prior: Prior, state: DecodeState, cond: Conditioning) -> Step:
    """The steps that go on from `state`: compiled as one function where the prior is packed for a CPU, else layer by
    layer. Logits are good until the next step."""
    if isinstance(prior.net.out, Rows):
        try:
            from jukebox.sampling.compiled import CompiledStep  # numba takes half a second to come
        except ImportError as error:
            _say_once(f"Steps are not compiled, and several times slower for it ({error}): pip install numba.")
        else:
            return CompiledStep(prior, state, cond)
    return lambda before: next_logits(prior, before, state, cond)


@cache
def _say_once(text: str) -> None:
    log.warning(text)


def between(step: Step) -> AbstractContextManager[None]:
    """What is done between steps is done in this context, so that it does not slow them down."""
    return step if isinstance(step, AbstractContextManager) else nullcontext()


def next_logits(prior: Prior, before: Tensor, state: DecodeState, cond: Conditioning) -> Tensor:
    """One step, layer by layer; tokens as in `Step`."""
    logits: Tensor = prior.net.out(prior.net.extend(before, state, cond.x_cond, cond.start)[:, -1])
    return logits


def prefill(
    prior: Prior, tokens: Tensor, cond: Conditioning, state: DecodeState, chunk_size: int | None = None
) -> Tensor:  # fmt: skip
    """All given tokens `[B, m]` in passes of chunk_size positions: rows and columns in parallel.

    -> hidden states of the last pass, the last of which scores the first token to draw; the start vector makes one
    position more than there are tokens.
    """
    net, whole = prior.net, tokens.shape[1] + 1
    step = chunk_size or whole
    hidden = net.extend(tokens[:, : step - 1], state, cond.x_cond, cond.start)
    for start in range(step, whole, step):
        hidden = net.extend(tokens[:, start - 1 : start - 1 + step], state, cond.x_cond, cond.start)
    return hidden
