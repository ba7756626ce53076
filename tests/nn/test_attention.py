"""Attention against a plain implementation made from `Pattern.visible` alone, and step by step against all at once."""

import random

import pytest
import torch

from jukebox.nn.attention import Attention
from jukebox.nn.cache import LayerCache
from jukebox.nn.patterns import ENCODER, LYRICS, NAMES, SUMMARY, SUMMARY_SPREAD, Pattern, layer_kind
from jukebox.nn.transformer import Transformer, TransformerShape

KINDS = range(len(NAMES))
SEEDS = range(3)
B = 2


def make(kind: int, seed: int):
    """A random layer of a kind, its input `[B, n, W]` and, for kind 6, encoder states."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    blocks, width, heads = rng.randint(2, 6), rng.randint(2, 7), rng.randint(1, 3)
    n = blocks * width
    pattern = Pattern(kind, n, blocks, rng.randint(1, width), rng.randint(1, n), rng.randint(1, 9))
    channels, state = rng.randint(3, 8), heads * rng.randint(1, 4)
    layer = Attention(channels, state, heads, pattern, init_scale=40.0)  # logits far from equal
    for parameter in layer.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    encoded = torch.randn(B, pattern.encoder_len, channels) if kind == ENCODER else None
    return layer.eval(), torch.randn(B, n, channels), encoded


def plainly(layer: Attention, x: torch.Tensor, encoded: torch.Tensor | None) -> torch.Tensor:
    """One query and one head after the other: a softmax over the keys it sees and the zero slots."""
    p = layer.pattern
    if encoded is None:
        q, k, v = layer.qkv(x).chunk(3, -1)
    else:
        q, (k, v) = layer.q(x), layer.kv(encoded).chunk(2, -1)
    seen = p.visible(torch.arange(p.n)[:, None], torch.arange(k.shape[1])[None])
    zeros = k.new_zeros(p.zero_slots, layer.state // layer.heads)
    y = torch.zeros_like(q)
    size = layer.state // layer.heads
    for b in range(len(x)):
        for head in range(layer.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(p.n):
                keys = torch.cat([zeros, k[b, seen[i], part]])
                values = torch.cat([zeros, v[b, seen[i], part]])
                if len(keys):  # the first row of the previous-row kind sees nothing: zero
                    y[b, i, part] = (keys @ q[b, i, part] / size**0.5).softmax(0) @ values
    return layer.out(y)


def partition(n: int, seed: int) -> list[int]:
    rng, parts = random.Random(seed), []
    while sum(parts) < n:
        parts.append(min(rng.choice([1, 1, 2, 3, 5, n]), n - sum(parts)))
    return parts


def stepwise(layer, x, encoded, parts, cache=None):
    cache = cache or LayerCache(layer.pattern, len(x), layer.state, x.dtype, "cpu")
    if encoded is not None:
        layer.encode(encoded, cache)
    found, start = [], 0
    for part in x.split(parts, 1):
        found.append(layer.extend(part, start, cache))
        start += part.shape[1]
    return torch.cat(found, 1)


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_all_positions(kind, seed):
    layer, x, encoded = make(kind, seed)
    weights: list[torch.Tensor] = []
    close(layer(x, encoded), plainly(layer, x, encoded))
    close(layer(x, encoded, weights), plainly(layer, x, encoded))
    if kind != LYRICS:  # there the weights are cut to code queries x lyric keys
        torch.testing.assert_close(weights[0].sum(-1), torch.ones(weights[0].shape[:-1]))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_any_partition(kind, seed):
    layer, x, encoded = make(kind, seed)
    expected = layer(x, encoded)
    for parts in ([1] * x.shape[1], [x.shape[1]], partition(x.shape[1], seed), partition(x.shape[1], seed + 100)):
        close(stepwise(layer, x, encoded, parts), expected)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@torch.no_grad()
def test_a_cache_is_used_again_and_items_are_alone(kind):
    layer, x, encoded = make(kind, 7)
    cache = LayerCache(layer.pattern, len(x), layer.state, x.dtype, "cpu")
    parts = partition(x.shape[1], 7)
    stepwise(layer, torch.randn_like(x), encoded, parts, cache)
    cache.reset()
    found = stepwise(layer, x, encoded, parts, cache)
    close(found, layer(x, encoded))
    alone = stepwise(layer, x[1:], None if encoded is None else encoded[1:], parts)
    close(found[1:], alone)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_gradients_flow_along_visible_keys_only(kind):
    layer, x, encoded = make(kind, 11)
    if kind == ENCODER:
        return
    p = layer.pattern
    seen = p.visible(torch.arange(p.n)[:, None], torch.arange(p.n)[None])
    x.requires_grad_()
    y = layer(x, encoded)
    for i in range(p.n):
        (gradient,) = torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)
        touched = gradient.abs().sum((0, 2)) != 0
        allowed = seen[i].clone()
        allowed[i] = True  # its own query
        assert not (touched & ~allowed).any(), i


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="not divisible by blocks"):
        Pattern(1, 10, 3)
    with pytest.raises(ValueError, match="0 < spread"):
        Pattern(SUMMARY_SPREAD, 12, 3, 0)
    with pytest.raises(ValueError, match="not divisible by heads"):
        Attention(8, 6, 4, Pattern(0, 8))
    with pytest.raises(ValueError, match="attn_order"):
        layer_kind(13, 0)


# ------------------------------------------------------------------------------------------------------- the whole stack


@pytest.mark.parametrize("order", range(13))
@torch.no_grad()
def test_every_order_step_by_step(order):
    torch.manual_seed(order)
    shape = TransformerShape(
        n=24, width=8, depth=16, heads=2, attn_order=order, blocks=4, spread=2, lyric_len=5, encoder_len=7,
        m_attn=0.5, init_scale=8.0, res_scale=order % 2 == 1,
    )  # fmt: skip
    net = Transformer(shape).eval()
    x, encoded = torch.randn(2, shape.n, shape.width), torch.randn(2, 7, shape.width)
    expected = net(x, encoded)
    state = net.new_state(2)
    net.encode(encoded, state)
    found = torch.cat([net.extend(part, state) for part in x.split(partition(shape.n, order), 1)], 1)
    close(found, expected, 1e-4)
    assert state.position == shape.n and state.nbytes() > 0
    kinds = {shape.pattern(layer).kind for layer in range(shape.depth)}
    assert not kinds & {SUMMARY, SUMMARY_SPREAD} or order in (3, 4, 5)


@pytest.mark.parametrize("again", ["recompute_block", "recompute_attn", "recompute_mlp"])
def test_recomputation_changes_nothing_not_even_dropout(again):
    def gradients(**changes):
        torch.manual_seed(3)
        shape = TransformerShape(
            n=8, width=8, depth=3, heads=2, attn_order=2, blocks=2, attn_dropout=0.3, resid_dropout=0.3, **changes
        )  # fmt: skip
        net = Transformer(shape).train()
        x = torch.randn(2, 8, 8, requires_grad=True)
        net(x).square().sum().backward()
        return [x.grad, *(p.grad for p in net.parameters())]

    for found, expected in zip(gradients(**{again: True}), gradients(), strict=True):
        torch.testing.assert_close(found, expected)


def test_half_precision_inside_float32_outside():
    shape = TransformerShape(n=8, width=8, depth=2, heads=1, attn_order=2, blocks=2)
    net, x = Transformer(shape).eval(), torch.randn(1, 8, 8)
    with torch.no_grad():
        full, half = net(x), net(x, dtype=torch.bfloat16)
    assert half.dtype == torch.float32 and 0 < (full - half).abs().max() < 0.1
