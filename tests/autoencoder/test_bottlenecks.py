"""Bottlenecks beside their golden files: tokens both ways, codebooks over ranks, noise, memory."""

import logging

import pytest
import torch

from jukebox.autoencoder import bottlenecks as B
from jukebox.autoencoder import parts as P
from jukebox.autoencoder.quantisers import CodebookStatistics, Draws, kmeans
from jukebox.autoencoder.schema import Strict, check
from jukebox.nn.codebook import draw_candidates


class Holder(Strict):
    bottleneck: P.Bottleneck


def make(kind: str, **config) -> B.Bottleneck:
    torch.manual_seed(0)
    made = B.build_bottleneck(check(Holder, {"bottleneck": {"type": kind, "config": config}}, "t").bottleneck)
    for book in made.quantizer.codebooks if isinstance(made, B.RVQMixin) else ():
        book.start(torch.randn(book.bins, book.width))
    return made.eval()


RVQ = {"dim": 6, "codebook_size": 16, "num_quantizers": 3}
DAC = {"input_dim": 6, "codebook_size": 16, "n_codebooks": 3, "codebook_dim": [2, 3, 4]}
DISCRETE = {
    "rvq": RVQ,
    "rvq projected": {**RVQ, "codebook_dim": 4},
    "rvq shared": {**RVQ, "shared_codebook": True},
    "rvq_vae": RVQ,
    "dac_rvq": DAC,
    "dac_rvq_vae": DAC,
    "fsq": {"levels": [8, 5, 5], "num_codebooks": 2},
    "fsq projected": {"levels": [4, 3], "dim": 6},
    "dithered_fsq": {"dim": 3, "levels": [5, 4, 3], "num_codebooks": 2},
}


@pytest.mark.parametrize("name", DISCRETE)
def test_tokens_both_ways(name):
    kind = name.split()[0]
    bottleneck = make(kind, **DISCRETE[name])
    x = torch.randn(2, 12 if kind.endswith("_vae") else 6, 7)
    latents, info = bottleneck.encode(x, Draws())
    tokens = info[bottleneck.tokens_id]
    count = bottleneck.num_quantizers
    assert tokens.shape == ((2, 7, count) if bottleneck.time_first else (2, count, 7))
    assert tokens.min() >= 0 and tokens.max() < bottleneck.codebook_size
    torch.testing.assert_close(bottleneck.decode_tokens(tokens, Draws()), bottleneck.decode(latents, Draws()))


@pytest.mark.parametrize("name", ["rvq", "rvq projected", "dac_rvq"])
def test_fewer_stages(name):
    bottleneck = make(name.split()[0], **DISCRETE[name])
    x = torch.randn(1, 6, 5)
    _, all_info = bottleneck.encode(x, Draws())
    latents, info = bottleneck.encode(x, Draws(), stages=2)
    axis = 2 if bottleneck.time_first else 1
    tokens = info[bottleneck.tokens_id]
    assert torch.equal(tokens, all_info[bottleneck.tokens_id].narrow(axis, 0, 2))
    torch.testing.assert_close(bottleneck.decode_tokens(tokens, Draws()), latents)


def test_quantise_on_decode():
    on_decode = make("dac_rvq", **DAC, quantize_on_decode=True, noise_augment_dim=2)
    at_once = make("dac_rvq", **DAC)
    x = torch.randn(1, 6, 5)
    latents, info = on_decode.encode(x, Draws())
    assert torch.equal(latents, x) and set(info) == {"pre_quantizer"}
    quantised, found = at_once.encode(x, Draws())
    torch.testing.assert_close(on_decode.decode(latents, Draws())[:, :6], quantised)
    assert on_decode.decode(latents, Draws()).shape == (1, 8, 5)
    assert torch.equal(on_decode.tokenize(latents, Draws()), found["codes"])
    torch.testing.assert_close(on_decode.decode_tokens(found["codes"], Draws())[:, :6], quantised)


def test_codebooks_learn_the_same_on_any_number_of_ranks():
    """Statistics summed over halves of a batch move the codebooks as those of the whole batch do."""
    x = torch.randn(4, 6, 10)
    whole, parts = (make("rvq", **RVQ, threshold_ema_dead_code=1.0).train() for _ in range(2))
    _, info = whole.encode(x, Draws())
    everything = whole.statistics(info)
    halves = [parts.statistics(parts.encode(half, Draws())[1]) for half in x.split(2)]
    summed = CodebookStatistics(
        sum(h.sums for h in halves), sum(h.counts for h in halves), torch.cat([h.rows for h in halves], 1)
    )
    torch.testing.assert_close(summed.sums, everything.sums)
    assert torch.equal(summed.rows, everything.rows)
    order, ids = torch.randperm(40), torch.arange(40)
    candidates = torch.stack([draw_candidates(rows, ids, 40, order, 16, None) for rows in everything.rows])
    whole.quantizer.update(everything, candidates)
    metrics = parts.quantizer.update(summed, candidates)
    assert {"entropy", "usage"} <= set(metrics)
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_forward_changes_nothing():
    bottleneck = make("rvq", **RVQ).train()
    before = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    bottleneck.encode(torch.randn(2, 6, 10), Draws())
    assert all(torch.equal(value, before[name]) for name, value in bottleneck.state_dict().items())


def test_dead_codes_come_back_from_the_batch():
    bottleneck = make("rvq", **RVQ, threshold_ema_dead_code=0.5, decay=0.1).train()
    statistics = bottleneck.statistics(bottleneck.encode(torch.randn(1, 6, 4), Draws())[1])
    candidates = torch.randn(3, 16, 6)
    bottleneck.quantizer.update(statistics, candidates)
    first = bottleneck.quantizer.codebooks[0]
    revived = (first.vectors == candidates[0]).all(1)
    assert 12 <= revived.sum() < 16 and (first.counts[revived] == 0.5).all()


def test_first_vectors_come_from_the_data():
    """k-means finds the centres of separate clouds; the second stage codes what the first leaves over."""
    torch.manual_seed(1)
    centres = 20 * torch.randn(4, 6)
    rows = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(200, 6)
    bottleneck = make("rvq", dim=6, codebook_size=4, num_quantizers=2, kmeans_iters=20)
    bottleneck.quantizer.start(rows[None], Draws(torch.Generator().manual_seed(3)))
    assert bottleneck.quantizer.ready
    latents, info = bottleneck.encode(rows.mT[None], Draws())
    assert (latents.mT[0] - rows).square().mean() < (rows - rows.mean(0)).square().mean() / 5
    again = make("rvq", dim=6, codebook_size=4, num_quantizers=2, kmeans_iters=20)
    again.quantizer.start(rows[None], Draws(torch.Generator().manual_seed(3)))
    assert torch.equal(again.quantizer.codebooks[1].vectors, bottleneck.quantizer.codebooks[1].vectors)


def test_kmeans_with_fewer_rows_than_codes():
    means, counts = kmeans(torch.randn(3, 2), 8, 4, Draws())
    assert means.shape == (8, 2) and counts.sum() == 3


def test_quantiser_dropout_marks_unused_stages():
    bottleneck = make("rvq", **RVQ, quantize_dropout=True).train()
    seen = set()
    for seed in range(20):
        latents, info = bottleneck.encode(torch.randn(1, 6, 5), Draws(torch.Generator().manual_seed(seed)))
        tokens = info["quantizer_indices"]
        used = int((tokens[0, 0] >= 0).sum())
        seen.add(used)
        assert tokens.shape == (1, 5, 3) and (tokens[..., used:] == -1).all()
        assert (info["codebook/counts"][used:] == 0).all()
        torch.testing.assert_close(bottleneck.decode_tokens(tokens, Draws()), latents)
        bottleneck.quantizer.update(bottleneck.statistics(info), torch.zeros(3, 16, 6))
    assert seen == {1, 2, 3}


def test_published_names_of_codebooks():
    bottleneck = make("rvq", **RVQ)
    state = bottleneck.state_dict()
    assert list(state)[:4] == [
        f"quantizer.layers.0._codebook.{n}" for n in ("initted", "cluster_size", "embed_avg", "embed")
    ]
    assert state["quantizer.layers.0._codebook.embed"].shape == (1, 16, 6)
    other = make("rvq", **RVQ)
    other.load_state_dict({name: value + 1 for name, value in state.items()})
    assert torch.equal(other.quantizer.codebooks[2].vectors, bottleneck.quantizer.codebooks[2].vectors + 1)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_mmd_in_blocks_is_the_same(block):
    a, b = torch.randn(2, 50, 4).unbind(0)
    a.requires_grad_()
    whole = B.mmd(a, b, block=50)
    (expected,) = torch.autograd.grad(whole, a)
    blocked = B.mmd(a, b, block=block)
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(torch.autograd.grad(blocked, a)[0], expected, atol=1e-7, rtol=1e-4)


def test_mmd_warns_before_it_grows_too_large(monkeypatch, caplog):
    monkeypatch.setattr(B, "MANY_ROWS", 8)
    with caplog.at_level(logging.WARNING):
        make("wasserstein").train().encode(torch.randn(1, 2, 9), Draws())
    assert "compares 9 latent frames with each other" in caplog.text


def test_mmd_only_in_training():
    bottleneck = make("wasserstein", use_tanh=True, noise_augment_dim=3)
    x = 100 * torch.randn(1, 2, 9)
    latents, info = bottleneck.encode(x, Draws())
    assert info == {} and latents.abs().max() <= 5
    assert bottleneck.decode(latents, Draws()).shape == (1, 5, 9)
    assert make("wasserstein", bypass_mmd=True).train().encode(x, Draws())[1]["mmd"] == 0


def test_draws_are_reproducible():
    vae, x = make("vae"), torch.randn(1, 4, 9)
    a, b, c = (vae.encode(x, Draws(torch.Generator().manual_seed(seed)))[0] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_dithering_in_training():
    bottleneck = make("dithered_fsq", dim=2, levels=5, noise_dropout=0.5).train()
    x = torch.randn(64, 2, 3, requires_grad=True)
    latents, _ = bottleneck.encode(x, Draws())
    plain = torch.tanh(x)
    per_item = (latents - plain).abs().flatten(1).amax(1)
    assert (per_item == 0).any() and (per_item > 0).any() and per_item.max() <= 0.25 + 1e-6
    latents.sum().backward()
    torch.testing.assert_close(x.grad, 1 - plain.detach().square())


@pytest.mark.parametrize("name", ["rvq", "dac_rvq"])
def test_tokens_do_not_depend_on_autocast(name):
    bottleneck, x = make(name, **DISCRETE[name]), torch.randn(1, 6, 200)
    _, plain = bottleneck.encode(x, Draws())
    with torch.autocast("cpu", torch.bfloat16):
        _, info = bottleneck.encode(x, Draws(), stages=1)
    axis = 2 if bottleneck.time_first else 1
    same = info[bottleneck.tokens_id] == plain[bottleneck.tokens_id].narrow(axis, 0, 1)
    assert same.float().mean() > (0.999 if name == "rvq" else 0.9)  # the DAC's projection itself is rounded


@pytest.mark.parametrize("name", [*DISCRETE, "tanh", "vae", "l2_norm", "wasserstein", "softnorm"])
def test_half_precision(name):
    """Latents keep the precision they came in, and nearly every token is that of float32."""
    config = {"softnorm": {"dim": 6}}.get(name, DISCRETE.get(name, {}))
    plain, half = make(name.split()[0], **config), make(name.split()[0], **config).half()
    x = torch.randn(2, 12 if name.split()[0].endswith("vae") else 6, 100).half()
    latents, info = half.encode(x, seeded())
    assert latents.dtype == half.decode(latents, Draws()).dtype == torch.float16
    if isinstance(half, B.DiscreteBottleneck) and not name.endswith(
        "_vae"
    ):  # whose samples are drawn in half precision
        tokens, same = info[half.tokens_id], plain.encode(x.float(), Draws())[1][half.tokens_id]
        assert tokens.dtype == same.dtype and (tokens == same).float().mean() > 0.9


def seeded() -> Draws:
    return Draws(torch.Generator().manual_seed(0))
