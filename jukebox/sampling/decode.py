"""One window of one level: prefill what is given, then code by code. Owns the decode state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jukebox.nn.cache import DecodeState
from jukebox.prior.model import Prior

Choose = Callable[[Tensor, int], Tensor]
"""Logits `[B, K]` and the place of the code in the window -> codes `[B]`."""


@torch.inference_mode()
def decode_window(
    prior: Prior, given: Tensor, length: int, choose: Choose, *, upper: Tensor | None = None, y: Tensor | None = None,
    dtype: torch.dtype = torch.float32, chunk_size: int | None = None, mask_lyric_codes: bool = False,
    on_code: Callable[[], None] | None = None,
) -> Tensor:  # fmt: skip
    """Codes `[B, length]` of a window that begins with `given` `[B, m]`, m < length <= n_ctx.

    upper `[B, n_ctx / ratio]` and y as in `Prior.condition`. dtype: of activations and caches. chunk_size: codes per
    prefill pass, None for all at once (the same result). mask_lyric_codes keeps lyric characters from being drawn among
    the codes, which the published one-sequence models can do (arXiv:2005.00341 sec. 4.4). on_code is called after each
    new code.
    """
    B, m = given.shape
    if not m < length <= prior.n_ctx:
        raise ValueError(f"{m} codes given for a window of {length} of at most {prior.n_ctx}")
    cond = prior.condition(upper, y, dtype)
    state = prior.new_state(B, dtype)
    if cond.encoded is not None:
        prior.net.transformer.encode(cond.encoded, state)
    tokens = torch.cat([prior.tokens(given, cond), given.new_zeros(B, length - m)], 1)
    at = prior.prefix + m  # place of the next token in the sequence
    hidden = _prefill(prior, tokens[:, :at], cond.x_cond, cond.start, state, chunk_size)
    while True:
        logits = prior.net.out(hidden[:, -1])
        if mask_lyric_codes and prior.shift:
            logits[:, : prior.shift] = -torch.inf
        tokens[:, at] = choose(logits, at - prior.prefix)
        at += 1
        if on_code:
            on_code()
        if at == tokens.shape[1]:
            return prior.codes(tokens)
        hidden = prior.net.extend(tokens[:, at - 1 : at], state, cond.x_cond, cond.start)


def _prefill(
    prior: Prior,
    tokens: Tensor,
    x_cond: Tensor | None,
    start: Tensor | None,
    state: DecodeState,
    chunk_size: int | None,
) -> Tensor:
    """Hidden states up to the first token to draw; the start vector makes one position more than there are tokens."""
    net = prior.net
    step = chunk_size or tokens.shape[1] + 1
    hidden = net.extend(tokens[:, : step - 1], state, x_cond, start)
    while state.position <= tokens.shape[1]:
        before = tokens[:, state.position - 1 : state.position - 1 + step]
        hidden = net.extend(before, state, x_cond, start)
    return hidden
