"""The VQ-VAE and its loss beyond the golden files: lengths, edges, what must be refused."""

import dataclasses

import pytest
import torch

from jukebox import settings
from jukebox.audio.spectral import STFT
from jukebox.errors import HparamsError
from jukebox.models import build
from jukebox.vqvae.losses import Bandwidth, LossShape, SpectralLosses, sample_loss, vqvae_loss

TINY = {"levels": 2, "downs_t": (2, 1), "strides_t": (2, 2), "width": 4, "depth": 2, "emb_width": 4, "l_bins": 8}
SHAPE = LossShape(linf_k=16, multispec=(STFT(64, 16, 48), STFT(32, 8, 20)))


def net(**changes):
    torch.manual_seed(0)
    vqvae = build.build_vqvae(settings.from_values(TINY | changes, "test"))
    for level in range(vqvae.levels if vqvae.use_bottleneck else 0):
        vqvae.codebook(level).start(torch.randn(8, 4) * 0.1)
    return vqvae


@pytest.mark.parametrize("length", [8, 9, 15, 63, 64])
def test_codes_of_any_length(length):
    codes = net().encode(torch.randn(2, length, 1))
    assert [tuple(level.shape) for level in codes] == [(2, length // 4), (2, length // 8)]
    assert all(level.dtype == torch.int64 for level in codes)


def test_levels_and_batches_apart():
    vqvae, x = net(), torch.randn(3, 64, 1)
    both = vqvae.encode(x)
    assert torch.equal(vqvae.encode(x, 1)[0], both[1]) and torch.equal(vqvae.encode(x, 0, 1, bs_chunks=3)[0], both[0])
    audio = vqvae.decode(both)
    torch.testing.assert_close(vqvae.decode([both[0], both[1] * 0], bs_chunks=2), audio)  # the lowest alone counts
    torch.testing.assert_close(vqvae.decode(both[:1], 0, 1), audio)
    assert audio.shape == (3, 64, 1) and audio.dtype == torch.float32
    with pytest.raises(ValueError, match="levels of codes given"):
        vqvae.decode(both[:1])
    with pytest.raises(ValueError, match="multiple of the top hop"):
        vqvae(x[:, :60])


def test_without_bottleneck():
    vqvae, x = net(use_bottleneck=False), torch.randn(2, 2048, 1)
    loss, metrics = vqvae_loss(x, [o.estimate for o in vqvae(x)], [o.commit for o in vqvae(x)], SHAPE, Bandwidth())
    loss.backward()
    assert float(metrics["commit_loss"]) == 0 and all(p.grad is not None for p in vqvae.parameters())


def test_the_gradient_passes_straight_through():
    """The decoder's gradient at the vectors reaches the encoder as if nothing had been quantised."""
    vqvae, x = net(), torch.randn(1, 32, 1)
    embedded = []
    hook = vqvae.encoders[0].register_forward_hook(lambda _, __, y: (y.retain_grad(), embedded.append(y))[1])
    out = vqvae(x)[0]
    hook.remove()
    out.estimate.square().sum().backward()
    vectors = vqvae.codebook(0).lookup(out.codes).transpose(1, 2).requires_grad_()
    (expected,) = torch.autograd.grad(vqvae.decoders[0](vectors).square().sum(), vectors)
    torch.testing.assert_close(embedded[0].grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"downs_t": (2,)}, {"strides_t": (2, 3)}, {"hvqvae_multipliers": (1, 1, 1)}],
    ids=lambda c: next(iter(c)),
)
def test_keys_that_do_not_fit(changes):
    with pytest.raises(HparamsError, match=next(iter(changes))):
        net(**changes)


# ---------------------------------------------------------------------------------------------------------------- losses


def test_equal_signals_have_a_gradient_of_zero():
    x = torch.randn(2, 2048, 1)
    estimate = x.clone().requires_grad_()
    loss, metrics = vqvae_loss(x, [estimate], [torch.zeros(())], dataclasses.replace(SHAPE, spectral=1.0), Bandwidth())
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(estimate.grad, torch.zeros_like(x))
    assert all(bool(torch.isfinite(value)) for value in metrics.values())


def test_silence_is_no_danger():
    x = torch.zeros(2, 2048, 1)
    estimate = torch.zeros(2, 2048, 1, requires_grad=True)
    loss, metrics = vqvae_loss(
        x, [estimate], [torch.zeros(())], dataclasses.replace(SHAPE, use_nonrelative_specloss=False), Bandwidth()
    )  # fmt: skip
    loss.backward()
    assert float(metrics["spectral_convergence"]) == 0 and bool(torch.isfinite(estimate.grad).all())


@pytest.mark.parametrize("term", ["spectral", "multispectral"])
def test_a_term_of_weight_zero_is_measured_without_gradient(term):
    x, estimate = torch.randn(1, 2048, 1), torch.randn(1, 2048, 1, requires_grad=True)

    def gradient(**weights):
        shape = dataclasses.replace(SHAPE, loss_fn="l1", spectral=0.0, multispectral=0.0, commit=0.0)
        loss, metrics = vqvae_loss(x, [estimate], [torch.zeros(())], dataclasses.replace(shape, **weights), Bandwidth())
        return torch.autograd.grad(loss, estimate)[0], metrics[f"{term}_loss"]

    without, measured = gradient()
    with_it, again = gradient(**{term: 1.0})
    torch.testing.assert_close(without, (estimate - x).sign() / x.numel())
    assert float(measured) > 0 and torch.equal(measured, again) and not torch.allclose(without, with_it)


def test_linf_takes_the_largest_errors():
    x, estimate = torch.zeros(2, 100, 1), torch.zeros(2, 100, 1)
    estimate[0, ::5] = 3.0
    found = sample_loss("linf", x, estimate, Bandwidth(l2=2.0), dataclasses.replace(SHAPE, linf_k=10))
    assert float(found) == pytest.approx((9 + 0) / 2 / 2)
    with pytest.raises(ValueError, match="linf_k"):
        sample_loss("linf", x, estimate, Bandwidth(), dataclasses.replace(SHAPE, linf_k=101))
    with pytest.raises(ValueError, match="loss_fn"):
        sample_loss("l3", x, estimate, Bandwidth(), SHAPE)


def test_normalisers_divide():
    x, estimate = torch.randn(2, 2048, 1), torch.randn(2, 2048, 1)
    for kind, field in (("l1", "l1"), ("l2", "l2"), ("linf", "l2")):
        plain, half = (sample_loss(kind, x, estimate, Bandwidth(**{field: n}), SHAPE) for n in (1.0, 2.0))
        torch.testing.assert_close(plain, half * 2)
    plain, half = (SpectralLosses(x, SHAPE, Bandwidth(spec=n)).multispectral(estimate) for n in (1.0, 2.0))
    torch.testing.assert_close(plain, half * 2)


def test_losses_of_levels_are_summed():
    x, estimates = torch.randn(2, 2048, 1), [torch.randn(2, 2048, 1) for _ in range(3)]
    commits = [torch.tensor(float(i)) for i in range(3)]
    shape = dataclasses.replace(SHAPE, spectral=0.3, commit=0.5)
    loss, metrics = vqvae_loss(x, estimates, commits, shape, Bandwidth())
    alone = [vqvae_loss(x, [e], [c], shape, Bandwidth())[0] for e, c in zip(estimates, commits, strict=True)]
    torch.testing.assert_close(loss, torch.stack(alone).sum())
    assert float(metrics["recons_loss"]) == pytest.approx(sum(float(metrics[f"recons_loss_l{i}"]) for i in (1, 2, 3)))
    torch.testing.assert_close(metrics["l2_loss"], ((estimates[0] - x) ** 2).mean())
