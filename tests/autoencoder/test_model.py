"""Autoencoders of any mixture: shapes, freezing, chunks, tokens, published weights."""

import gzip
import itertools
import json
import logging
from pathlib import Path

import pytest
import torch

from jukebox.autoencoder.layers import set_recompute
from jukebox.autoencoder.model import Chunks, load_weights
from jukebox.autoencoder.quantisers import Draws
from jukebox.autoencoder.taae import windowed_attention
from jukebox.errors import CheckpointError

MANIFESTS = Path(__file__).parents[1] / "fixtures" / "manifests" / "autoencoders.json.gz"
KINDS = ("oobleck", "dac", "seanet", "taae")


@pytest.mark.parametrize(("encoder", "decoder"), list(itertools.product(KINDS, KINDS)))
def test_any_mixture_trains_from_mono_to_stereo(build, encoder, decoder):
    model = build(encoder, decoder, channels=1, out=2)
    latents, info = model.encode(torch.randn(2, 1, 96))
    audio = model.decode(latents)
    assert latents.shape == (2, 8, 12) and audio.shape == (2, 2, 96)
    assert torch.equal(info["pre_bottleneck_latents"], latents)
    audio.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("norm", ["none", "weight_norm", "spectral_norm", "time_group_norm", "time_layer_norm"])
def test_seanet_norms_and_short_inputs(build, norm):
    config = {"channels": 1, "dimension": 8, "ratios": [2, 4], "norm": norm, "lstm": 0, "n_filters": 4}
    model = build({"type": "seanet", "config": config}, "seanet")
    for length in (1, 3, 8, 41):  # shorter than the reflected padding, and not a multiple of the ratio
        assert model.encode(torch.randn(1, 1, length))[0].shape[-1] == -(-length // 8)


def test_causal_seanet_does_not_look_ahead(build):
    config = {"channels": 1, "dimension": 8, "ratios": [2, 4], "causal": True, "pad_mode": "constant", "n_filters": 4}
    model = build({"type": "seanet", "config": config}, "seanet").eval()
    audio = torch.randn(1, 1, 128)
    later = audio.clone()
    later[..., 80:] += 1
    a, b = model.encode(audio)[0], model.encode(later)[0]
    assert torch.equal(a[..., :10], b[..., :10]) and not torch.equal(a[..., 10], b[..., 10])


def test_lstm_state_can_be_carried(build):
    model = build("seanet", "seanet").eval()
    lstm = next(layer for layer in model.encoder.model if hasattr(layer, "lstm"))
    x = torch.randn(2, 16, 20)
    first, state = lstm.continued(x[..., :7], None)
    second, _ = lstm.continued(x[..., 7:], state)
    torch.testing.assert_close(torch.cat([first, second], -1), lstm(x))


@pytest.mark.parametrize("kind", ["oobleck", "taae"])
def test_recomputation_gives_the_same_gradients(build, kind):
    audio = torch.randn(1, 1, 64)
    gradients = []
    for on in (False, True):
        model = build(kind, kind)
        set_recompute(model, on)
        model.decode(model.encode(audio)[0]).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("left", "right", "length"), [(3, 4, 29), (0, 2, 9), (5, 0, 31), (7, 8, 10)])
def test_windowed_attention_is_banded_attention(left, right, length):
    q, k, v = torch.randn(3, 2, 3, length, 4).unbind(0)
    distance = torch.arange(length) - torch.arange(length)[:, None]
    seen = (distance >= -left) & (distance <= right)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(windowed_attention(q, k, v, left, right), expected)


def test_frozen_parts(build):
    encoder = {**build.encoder("oobleck", 1, 8), "requires_grad": False}
    quantiser = {"input_dim": 8, "n_codebooks": 2, "codebook_size": 4}
    model = build(encoder, bottleneck={"type": "dac_rvq", "config": quantiser, "requires_grad": False})
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"decoder"}


def test_soft_clip_bounds_the_audio(build):
    decoder = build.decoder("oobleck", 1, 8, final_tanh=False)
    plain, clipped = (build(decoder={**decoder, "soft_clip": on}) for on in (False, True))
    latents = torch.randn(1, 8, 4)
    torch.testing.assert_close(clipped.decode(latents), plain.decode(latents).tanh())


def test_chunks(build):
    model = build().eval()
    audio, short = torch.randn(2, 1, 800), torch.randn(1, 1, 40)
    with torch.no_grad():
        whole = model.encode_audio(audio)
        chunked = model.encode_audio(audio, Chunks(40, 20))
        assert chunked.shape == whole.shape
        torch.testing.assert_close(chunked[..., :20], whole[..., :20])  # far from its cut
        # Shorter than a chunk: one pass.
        assert torch.equal(model.encode_audio(short, Chunks()), model.encode_audio(short))
        latents = model.encode_audio(short)
        assert torch.equal(model.decode_audio(latents, Chunks()), model.decode_audio(latents))


def test_items_one_by_one_are_the_batch(build):
    model = build(
        bottleneck={"type": "tanh"}, pretransform={"type": "patched", "config": {"channels": 1, "patch_size": 1}}
    ).eval()
    audio = torch.randn(3, 1, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(audio, iterate_batch=True)[0], model.encode(audio)[0])
        latents = model.encode(audio)[0]
        torch.testing.assert_close(model.decode(latents, iterate_batch=True), model.decode(latents))


# ----------------------------------------------------------------------------------------------------- pretransforms


@pytest.mark.parametrize(
    ("pretransform", "inside", "ratio"),
    [
        ({"type": "wavelet", "config": {"channels": 2, "levels": 2}}, 8, 4),
        ({"type": "patched", "config": {"channels": 2, "patch_size": 4}}, 8, 4),
        ({"type": "pqmf", "config": {"channels": 2, "num_bands": 4, "attenuation": 70}}, 8, 4),
        ({"type": "autoencoder", "scale": 2.0}, 4, 8),
    ],
)
def test_pretransforms(build, pretransform, inside, ratio):
    if pretransform["type"] == "autoencoder":
        pretransform = {**pretransform, "config": build.inner(channels=2)}
    model = build(
        channels=2,
        encoder=build.encoder("oobleck", inside, 8),
        decoder=build.decoder("oobleck", inside, 8),
        downsampling_ratio=8 * ratio,
        pretransform=pretransform,
    )
    model.train()
    assert not model.pretransform.training
    latents, _ = model.encode(torch.randn(1, 2, 512))
    audio = model.decode(latents)
    assert latents.shape == (1, 8, 512 // (8 * ratio)) and audio.shape == (1, 2, 512)
    audio.square().mean().backward()
    assert all(p.grad is not None for net in (model.encoder, model.decoder) for p in net.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.pretransform.parameters())


@pytest.mark.parametrize("name", ["wavelet", "pqmf"])
def test_pretransforms_reconstruct(build, name):
    config = {"wavelet": {"channels": 1, "levels": 3, "wavelet": "bior6.8"}, "pqmf": {"num_bands": 8}}[name]
    model = build(
        encoder=build.encoder("oobleck", 8, 8),
        decoder=build.decoder("oobleck", 8, 8),
        downsampling_ratio=64,
        pretransform={"type": name, "config": config},
    )
    audio = torch.randn(1, 1, 4096)
    again = model.pretransform.decode(model.pretransform.encode(audio, Draws()), Draws())
    inside = slice(1024, -1024)
    assert (again - audio)[..., inside].square().mean() < 1e-5


# ----------------------------------------------------------------------------------------------------- published weights


def test_loading_reports_and_refuses(build, caplog):
    model, other = build(), build("dac")
    state = model.state_dict()
    report = load_weights(build(), state, "a.ckpt", strict=True)
    assert report.complete and report.matched == list(state)
    spoilt = dict(state, extra=torch.zeros(1), **{"encoder.layers.0.bias": torch.zeros(99)})
    del spoilt["decoder.layers.0.bias"]
    with caplog.at_level(logging.WARNING):
        report = load_weights(build(), spoilt, "a.ckpt")
    assert (report.missing, report.unexpected) == (["decoder.layers.0.bias"], ["extra"])
    assert report.misshapen == [("encoder.layers.0.bias", (99,), (4,))]
    assert "1 missing, 1 unexpected, 1 of another shape" in caplog.text
    with pytest.raises(
        CheckpointError, match="a.ckpt: does not fit this model config; (?s:.*)missing: decoder.layers.0.bias"
    ):
        load_weights(build(), spoilt, "a.ckpt", strict=True)
    with pytest.raises(CheckpointError, match="b.ckpt: not a checkpoint of this model config"):
        load_weights(other, {"x": torch.zeros(1)}, "b.ckpt")


def test_wrapped_checkpoints_are_recognised(build):
    model = build()
    plain = {name: value + 1 for name, value in model.state_dict().items()}
    average = {name: value + 2 for name, value in model.state_dict().items()}
    wrapped = {
        **{f"autoencoder.{name}": value for name, value in plain.items()},
        "discriminator.x": torch.zeros(1),
        "losses_gen.losses.0.weight": torch.zeros(()),
    }
    diffusion = {"model.x": torch.zeros(1), **{f"pretransform.model.{name}": value for name, value in plain.items()}}
    both = wrapped | {f"autoencoder_ema.ema_model.{name}": value for name, value in average.items()}
    for state, expected in (wrapped, plain), (diffusion, plain), (both, average):
        fresh = build()
        assert load_weights(fresh, state, "w.ckpt").complete
        assert all(torch.equal(value, expected[name]) for name, value in fresh.state_dict().items())


def test_published_training_wrappers_are_recognised():
    from jukebox.autoencoder.model import unwrapped

    for manifest in json.loads(gzip.decompress(MANIFESTS.read_bytes())).values():
        names = unwrapped({name: torch.zeros(()) for name in manifest["wrapped"]})
        assert sorted(names) == sorted(name for name, _ in manifest["autoencoder"])


def test_a_model_with_an_inner_autoencoder_is_not_taken_for_diffusion(build):
    model = build(
        encoder=build.encoder("oobleck", 4, 8),
        decoder=build.decoder("oobleck", 4, 8),
        downsampling_ratio=64,
        pretransform={"type": "autoencoder", "config": build.inner()},
    )
    assert load_weights(model, model.state_dict(), "m.ckpt", strict=True).complete


def test_filters_of_a_resampler_in_a_file_are_no_weights(build):
    """Published files of an oversampling patched model hold them; other names there are still unexpected."""
    transform = {"type": "patched", "config": {"channels": 1, "patch_size": 4, "oversampling": 2}}
    parts = build.encoder("oobleck", 4, 8), build.decoder("oobleck", 4, 8)
    model = build(*parts, downsampling_ratio=32, pretransform=transform)
    state = model.state_dict() | {"pretransform.upsampler.kernel": torch.zeros(2, 1, 13)}
    assert load_weights(model, state, "m.ckpt", strict=True).complete
    state["pretransform.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="unexpected: pretransform.weight"):
        load_weights(model, state, "m.ckpt", strict=True)
