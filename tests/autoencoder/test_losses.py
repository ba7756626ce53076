"""Generator losses, figures and discriminators beside their golden files."""

import math

import pytest
import torch

from jukebox.autoencoder.config import ModelConfig
from jukebox.autoencoder.discriminators import build_discriminator
from jukebox.autoencoder.losses import EvalFigures, GeneratorLosses, Teaching, si_sdr_db
from jukebox.autoencoder.model import Autoencoder
from jukebox.autoencoder.recipe import EvalLossConfigs, LossConfigs
from jukebox.autoencoder.schema import check

SPECTRAL = {
    "config": {"fft_sizes": [64, 32], "hop_sizes": [16, 8], "win_lengths": [64, 32]},
    "weights": {"mrstft": 2.0},
}


def config(channels=1, bottleneck=None, encoded=6, **losses) -> ModelConfig:
    part = {"channels": 4, "c_mults": [1], "strides": [4]}
    model = {
        "encoder": {"type": "oobleck", "config": {"in_channels": channels, "latent_dim": encoded, **part}},
        "decoder": {"type": "oobleck", "config": {"out_channels": channels, "latent_dim": 6, **part}},
        "latent_dim": 6, "downsampling_ratio": 4, "io_channels": channels,
    }  # fmt: skip
    if bottleneck:
        model["bottleneck"] = bottleneck
    tree = {"model_type": "autoencoder", "sample_rate": 8000, "audio_channels": channels, "model": model}
    return check(ModelConfig, tree | {"training": {"learning_rate": 1e-4, "loss_configs": losses}}, "m.json")


QUANTISER = {"input_dim": 6, "n_codebooks": 2, "codebook_size": 4}


@pytest.mark.parametrize(
    ("bottleneck", "names"),
    [
        (None, []),
        ({"type": "tanh"}, []),
        ({"type": "vae"}, ["kl_loss"]),
        ({"type": "wasserstein"}, ["mmd_loss"]),
        ({"type": "softnorm", "config": {"dim": 6}}, ["softnorm_loss"]),
        ({"type": "rvq", "config": {"dim": 6, "codebook_size": 4}}, ["quantizer_loss"]),
        ({"type": "rvq_vae", "config": {"dim": 6, "codebook_size": 4}}, ["kl_loss", "quantizer_loss"]),
        ({"type": "dac_rvq", "config": QUANTISER}, ["codebook_loss", "commitment_loss"]),
        ({"type": "dac_rvq", "config": {**QUANTISER, "quantize_on_decode": True}}, []),
        ({"type": "dac_rvq_vae", "config": QUANTISER}, ["kl_loss", "codebook_loss", "commitment_loss"]),
        ({"type": "fsq", "config": {"levels": [3] * 6}}, []),
    ],
)
def test_terms_of_each_bottleneck(bottleneck, names):
    """From the model's own info, with gradients to every trainable weight of the bottleneck that a term can reach."""
    halved = bottleneck is not None and "vae" in bottleneck["type"]
    c = config(bottleneck=bottleneck, encoded=12 if halved else 6, spectral=SPECTRAL)
    model = Autoencoder(c.model).train()
    reals = torch.randn(2, 1, 128)
    latents, info = model.encode(reals)
    terms = GeneratorLosses(c)(reals, model.decode(latents), info)
    assert list(terms) == ["mrstft_loss", *names]
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_weights_of_bottleneck_terms():
    c = check_with_weights({"type": "vae"}, {"kl": 0.5})
    x = torch.randn(1, 1, 64)
    assert GeneratorLosses(c)(x, x, {"kl": torch.tensor(3.0)})["kl_loss"] == 1.5
    c = check_with_weights({"type": "wasserstein"}, {})
    assert GeneratorLosses(c)(x, x, {"mmd": torch.tensor(3.0)})["mmd_loss"] == 300


def check_with_weights(bottleneck, weights) -> ModelConfig:
    tree = config(bottleneck=bottleneck, encoded=12 if bottleneck["type"] == "vae" else 6).model_dump(mode="json")
    tree["training"]["loss_configs"] = {"bottleneck": {"weights": weights}}
    return check(ModelConfig, tree, "m.json")


def test_decay_multiplies_before_use():
    c = config(spectral={**SPECTRAL, "decay": 0.5}, time={"weights": {"l1": 1.0, "l2": 1.0}, "decay": 0.9})
    losses, x, y = GeneratorLosses(c), torch.randn(1, 1, 128), torch.randn(1, 1, 128)
    first, third = losses(x, y, {}), losses(x, y, {}, evaluation=3)
    torch.testing.assert_close(first["l1_time_loss"], 0.9 * (x - y).abs().mean())
    torch.testing.assert_close(first["l2_time_loss"], 0.9 * (x - y).square().mean())
    torch.testing.assert_close(third["mrstft_loss"], first["mrstft_loss"] / 4)
    torch.testing.assert_close(third["l1_time_loss"], first["l1_time_loss"] * 0.81)


def test_zero_weights_leave_terms_out_and_mel_is_added():
    mel = {"config": {"n_mels": [8], "window_lengths": [64], "pow": 1.0, "log_weight": 1.0, "mag_weight": 0.0}}
    c = config(time={"weights": {"l1": 0.0}}, mrmel={**mel, "weights": {"mrmel": 3.0}})
    x, y = torch.randn(1, 1, 128), torch.randn(1, 1, 128)
    assert list(GeneratorLosses(c)(x, y, {})) == ["mrmel_loss"]
    assert list(GeneratorLosses(config(mrmel={**mel, "weights": {"mrmel": 0.0}}))(x, y, {})) == []


def test_a_teacher_splits_the_spectral_weight():
    losses = GeneratorLosses(config(channels=2, spectral=SPECTRAL))
    x, y, teachers, latents = (
        torch.randn(1, 2, 128),
        torch.randn(1, 2, 128),
        torch.randn(1, 2, 128),
        torch.randn(1, 6, 8),
    )
    teaching = Teaching(latents=latents + 1, decoded=teachers, ours_by_teacher=teachers, teachers_by_us=y)
    terms = losses(x, y, {}, teaching=teaching, latents=latents)
    assert list(terms) == [
        "latent_distill_loss", "mrstft_loss", "mrstft_loss_distill", "mrstft_loss_own_latents_teacher",
        "mrstft_loss_teacher_latents_own",
    ]  # fmt: skip
    torch.testing.assert_close(terms["latent_distill_loss"], torch.tensor(0.5))
    torch.testing.assert_close(terms["mrstft_loss"], losses(x, y, {})["mrstft_loss"] / 4)


def test_perfect_reconstruction_has_finite_gradients():
    c = config(
        spectral={
            **SPECTRAL,
            "config": {**SPECTRAL["config"], "perceptual_weighting": True, "w_lin_mag": 1.0, "w_phs": 1.0},
        }
    )
    for x in (torch.randn(1, 1, 128), torch.zeros(1, 1, 128)):
        y = x.clone().requires_grad_()
        loss = GeneratorLosses(c)(x, y, {})["mrstft_loss"]
        loss.backward()
        assert loss.abs() < 1e-5 and y.grad.isfinite().all()


def test_figures():
    c = check(EvalLossConfigs, {"stft": {}, "mel": {"n_mels": 40}, "sisdr": {}}, "m.json")
    figures = EvalFigures(c, 16000)
    reals = torch.randn(2, 1, 4000)
    noise = torch.randn(2, 1, 4000)
    found = figures(reals + 0.1 * noise, reals)
    assert set(found) == {"stft", "mel", "sisdr"} and abs(found["sisdr"] - 20) < 1
    assert figures(reals, reals)["stft"] < 1e-6
    assert abs(si_sdr_db(3 * reals + 0.3 * noise, reals) - found["sisdr"]) < 0.5  # the level does not matter
    orthogonal = noise - (noise * reals).sum(-1, keepdim=True) / reals.square().sum(-1, keepdim=True) * reals
    ratio = reals.square().sum(-1) / (0.01 * orthogonal.square().sum(-1))
    expected = (10 * ratio.log10()).mean()
    assert math.isclose(si_sdr_db(reals + 0.1 * orthogonal, reals, zero_mean=False), expected, rel_tol=1e-3)


DISCRIMINATORS = {
    "encodec": {"filters": 2, "n_ffts": [64, 32], "hop_lengths": [16, 8], "win_lengths": [64, 32]},
    "oobleck": {},
    "dac": {"periods": [2, 3], "fft_sizes": [128], "use_hinge": True},
}


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_discriminators_in_stereo(kind):
    weights = {"adversarial": 0.1, "feature_matching": 5.0}
    tree = {"discriminator": {"type": kind, "config": DISCRIMINATORS[kind], "weights": weights}}
    torch.manual_seed(0)
    discriminator = build_discriminator(check(LossConfigs, tree, "m.json").discriminator, 2)
    length = 40 if kind == "oobleck" else 600  # its 15 x 15 kernels are slow
    reals, fakes = 0.1 * torch.randn(2, 2, length), (0.1 * torch.randn(2, 2, length)).requires_grad_()
    together = discriminator.losses(reals, fakes)
    own = discriminator.own_loss(reals, fakes)
    adversarial, matching = discriminator.generator_losses(reals, fakes)
    torch.testing.assert_close(own, together.discriminator)
    torch.testing.assert_close(adversarial, together.adversarial)
    torch.testing.assert_close(matching, together.feature_matching)
    assert torch.autograd.grad(own, fakes, retain_graph=True, allow_unused=True) == (None,)
    own.backward()
    assert all(p.grad is not None for p in discriminator.parameters())
    (adversarial + matching).backward()
    assert fakes.grad.abs().sum() > 0
