"""Filters and counted noise as pure functions."""

import math

import pytest
import torch

from jukebox.sampling.logits import Knobs, draw, filter_logits, gumbel, noise_keys

K = 64


@pytest.fixture
def logits() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(50, K) * 3


def keys(n: int, seed: int = 5, level: int = 0) -> torch.Tensor:
    return noise_keys(torch.full((n,), seed), torch.arange(n), level)


# --------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize("knob", [{"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.1}, {"top_k": 7, "min_p": 0.1}])
def test_what_stays_is_unchanged_and_likelier_than_what_goes(logits, knob):
    found = filter_logits(logits, **knob)
    kept = found > -torch.inf
    assert torch.equal(found[kept], logits[kept]) and bool(kept.any(-1).all()) and not bool(kept.all())
    assert bool(kept.gather(-1, logits.argmax(-1, keepdim=True)).all())
    for row, mask in zip(logits, kept, strict=True):
        assert row[mask].min() >= row[~mask].max()


@pytest.mark.parametrize("k", [1, 5, K, K + 9])
def test_top_k_counts(logits, k):
    assert ((filter_logits(logits, top_k=k) > -torch.inf).sum(-1) == min(k, K)).all()


@pytest.mark.parametrize("p", [0.01, 0.5, 0.95])
def test_top_p_is_the_smallest_set_that_crosses_p(logits, p):
    kept = filter_logits(logits, top_p=p) > -torch.inf
    for row, mask in zip(logits.softmax(-1), kept, strict=True):
        mass = row[mask].sort().values
        assert mass.sum() > p - 1e-6 and mass[1:].sum() <= p + 1e-6


def test_min_p_is_a_share_of_the_likeliest(logits):
    p = logits.softmax(-1)
    kept = filter_logits(logits, min_p=0.2) > -torch.inf
    assert torch.equal(kept, p >= 0.2 * p.amax(-1, keepdim=True))


def test_edges(logits):
    assert torch.equal(filter_logits(logits), logits)
    tied = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert (filter_logits(tied, top_k=1) > -torch.inf).tolist() == [[False, True, True, False]]
    with pytest.raises(ValueError, match="not both"):
        filter_logits(logits, top_k=1, top_p=0.5)


def test_greedy_drawing_needs_no_noise(logits):
    noise = gumbel(keys(50), 3, K)
    assert torch.equal(draw(logits, Knobs(temp=0.7, top_k=1), noise), logits.argmax(-1))
    assert torch.equal(draw(logits, Knobs(temp=1e-4), noise), logits.argmax(-1))


# ---------------------------------------------------------------------------------------------------------------- noise


def test_noise_is_gumbel():
    x = gumbel(keys(400), 17, 500).flatten().double()
    euler = 0.5772156649
    assert float(x.mean()) == pytest.approx(euler, abs=0.01)
    assert float(x.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert bool(torch.isfinite(x).all())
    for q in (0.01, 0.25, 0.5, 0.75, 0.99):
        assert float((x < -math.log(-math.log(q))).double().mean()) == pytest.approx(q, abs=0.004)


def test_drawn_codes_are_as_likely_as_the_model_says():
    torch.manual_seed(1)
    logits = torch.randn(1, 12) * 1.5
    knobs = Knobs(temp=0.8, top_k=9)
    n = 40_000
    found = draw(logits.expand(n, -1), knobs, gumbel(keys(n), 5, 12)).bincount(minlength=12).double()
    p = filter_logits(logits / 0.8, top_k=9).softmax(-1)[0].double()
    assert not found[p == 0].any()
    chi = ((found - n * p)[p > 0] ** 2 / (n * p)[p > 0]).sum()
    assert float(chi) < 26.1  # one in a thousand with 8 degrees of freedom


def test_noise_knows_no_batch():
    whole = gumbel(keys(9), 4, K)
    assert torch.equal(gumbel(keys(9)[3:5], 4, K), whole[3:5])
    assert torch.equal(gumbel(keys(9).flip(0), torch.tensor(4), K), whole.flip(0))
    alone = noise_keys(torch.tensor([5]), torch.tensor([7]), 0)
    assert torch.equal(gumbel(alone, 4, K)[0], whole[7])


def test_every_seed_item_level_and_position_has_its_own():
    """Uncorrelated along every counter, next neighbours included."""
    base = gumbel(keys(1), 100, 4000)[0]
    others = {
        "position": gumbel(keys(1), 101, 4000)[0],
        "item": gumbel(keys(2), 100, 4000)[1],
        "seed": gumbel(keys(1, seed=6), 100, 4000)[0],
        "level": gumbel(keys(1, level=1), 100, 4000)[0],
        "seed for item": gumbel(noise_keys(torch.tensor([6]), torch.tensor([0]), 0), 100, 4000)[0],
        "bin": base.roll(1),
    }
    for name, other in others.items():
        r = torch.corrcoef(torch.stack([base, other]))[0, 1]
        assert abs(float(r)) < 0.07, name
    swapped = noise_keys(torch.tensor([1, 2]), torch.tensor([2, 1]), 0)
    assert swapped[0] != swapped[1]
    many = noise_keys(torch.arange(100).repeat_interleave(100), torch.arange(100).repeat(100), 2)
    assert len(many.unique()) == 10_000


def test_large_numbers_are_fine():
    noise = gumbel(noise_keys(torch.tensor([2**62]), torch.tensor([10**9]), 2), 10**7, 2048)
    assert bool(torch.isfinite(noise).all()) and len(noise.unique()) > 2000
