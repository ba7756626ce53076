"""Exact chunks: what layers say of their reach is true, and long audio gives what one pass gives."""

import dataclasses

import pytest
import torch

from jukebox.autoencoder import reach
from jukebox.autoencoder.layers import Unbounded, needed
from jukebox.autoencoder.quantisers import Draws
from jukebox.autoencoder.reach import Local, decode_long, encode_long, encoder_stages, why_unbounded
from jukebox.autoencoder.seanet import SkipLSTM
from jukebox.nn.tiles import Span

KINDS = ("oobleck", "dac", "seanet", "taae")
CAUSAL = {"causal": True, "pad_mode": "constant"}
TRANSFORMS = {
    "wavelet": {"type": "wavelet", "config": {"channels": 1, "levels": 2, "wavelet": "bior6.8"}},
    "patched": {"type": "patched", "config": {"channels": 1, "patch_size": 4}},
    "patched at twice the rate": {"type": "patched", "config": {"channels": 1, "patch_size": 4, "oversampling": 2}},
    "pqmf": {"type": "pqmf", "config": {"channels": 1, "num_bands": 4, "attenuation": 70}},
}


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_reach_is_what_gradients_say(build, kind, side):
    """Outputs depend on inputs inside the span, none outside, and at both ends of it where the net is convolutional."""
    model = build(build.encoder(kind, 1, 8, **({"lstm": 0} if kind == "seanet" else {})),
                  build.decoder(kind, 1, 8, **({"lstm": 0} if kind == "seanet" else {}))).double().eval()  # fmt: skip
    net = getattr(model, side)
    x = torch.randn(1, 1 if side == "encoder" else 8, 2048 if side == "encoder" else 512, dtype=torch.float64)
    y = net(x.requires_grad_())
    middle = y.shape[-1] // 2
    for at in (middle, middle + 1, middle + 3):
        (gradient,) = torch.autograd.grad(y[..., at].sum(), x, retain_graph=True)
        touched = gradient.abs().sum((0, 1)).nonzero()[:, 0]
        span = needed(net, Span(at, at))
        assert span.first <= touched.min() and touched.max() <= span.last
        if kind in ("oobleck", "dac"):
            assert span.first >= touched.min() - 2 and touched.max() >= span.last - 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [4096, 4093, 24])
def test_long_audio_is_one_pass(build, kind, length):
    """With the LSTM of SEANet and the windows of TAAE; also a length that is no multiple of the hop, and a short one."""
    model = build(kind, kind).eval()
    audio = torch.randn(2, 1, length)
    with torch.no_grad():
        expected, _ = model.encode(audio)
        latents, info = encode_long(model, audio, chunk_samples=256)
        close(latents, expected)
        assert torch.equal(info["pre_bottleneck_latents"], latents)
        close(decode_long(model, expected, chunk_samples=256), model.decode(expected))


def test_there_really_are_chunks(build):
    """Of equal size but for the last, and around the LSTM of SEANet."""
    before, recurrent, after = encoder_stages(build("seanet"))
    assert isinstance(before, Local) and not isinstance(recurrent, Local) and isinstance(after, Local)
    sizes = []

    def run(x):
        sizes.append(x.shape[-1])
        return before.run(x)

    dataclasses.replace(before, run=run)(torch.randn(1, 1, 4096), 256)
    assert len(sizes) > 10 and len(set(sizes)) == 1


def test_the_lstm_goes_on_from_chunk_to_chunk(build, monkeypatch):
    """Its state is what makes chunks equal to one pass: without it every chunk would begin from silence."""
    monkeypatch.setattr(reach, "CHUNK_FRAMES", 50)
    model = build("seanet", "seanet").eval()
    audio = torch.randn(2, 1, 4096)
    with torch.no_grad():
        latents, _ = model.encode(audio)
        close(encode_long(model, audio, chunk_samples=256)[0], latents)
        close(decode_long(model, latents, chunk_samples=256), model.decode(latents))
        continued = SkipLSTM.continued
        monkeypatch.setattr(SkipLSTM, "continued", lambda self, x, state: continued(self, x, None))
        lost = encode_long(model, audio, chunk_samples=256)[0]
    close(lost[..., :40], latents[..., :40])  # in the first chunk nothing is different
    assert (lost - latents)[..., 55:90].abs().max() > 1e-4


@pytest.mark.parametrize("more", [CAUSAL, {**CAUSAL, "trim_right_ratio": 0.5}, {"pad_mode": "replicate"}])
def test_other_paddings(build, more):
    encoder = {name: value for name, value in more.items() if name != "trim_right_ratio"}
    model = build(build.encoder("seanet", 1, 8, **encoder), build.decoder("seanet", 1, 8, **more)).eval()
    audio = torch.randn(1, 1, 2048)
    with torch.no_grad():
        latents, _ = model.encode(audio)
        close(encode_long(model, audio, chunk_samples=128)[0], latents)
        close(decode_long(model, latents, chunk_samples=128), model.decode(latents))


@pytest.mark.parametrize("strides", [[3, 5], [1, 8], [3, 4]])
def test_odd_strides(build, strides):
    parts = (side("oobleck", 1, 8, strides=strides, use_nearest_upsample=False) if side == build.decoder
             else side("oobleck", 1, 8, strides=strides) for side in (build.encoder, build.decoder))  # fmt: skip
    model = build(*parts, downsampling_ratio=strides[0] * strides[1]).eval()
    audio = torch.randn(1, 1, 1001)
    with torch.no_grad():
        latents, _ = model.encode(audio)
        close(encode_long(model, audio, chunk_samples=128)[0], latents)
        close(decode_long(model, latents, chunk_samples=128), model.decode(latents))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_pretransforms_in_chunks(build, name):
    parts = build.encoder("oobleck", 4, 8), build.decoder("oobleck", 4, 8)
    model = build(*parts, downsampling_ratio=32, pretransform=TRANSFORMS[name]).eval()
    audio = torch.randn(1, 1, 8192)
    with torch.no_grad():
        latents, _ = model.encode(audio)
        assert latents.shape[-1] == 8192 // model.hop
        close(encode_long(model, audio, chunk_samples=512)[0], latents)
        close(decode_long(model, latents, chunk_samples=512), model.decode(latents))


def test_chunks_see_what_a_pretransform_needs(build):
    """No gradient reaches further than the span of a pretransform says, both ways."""
    for transform in TRANSFORMS.values():
        parts = build.encoder("oobleck", 4, 8), build.decoder("oobleck", 4, 8)
        model = build(*parts, downsampling_ratio=32, pretransform=transform).double().eval()
        x = torch.randn(1, 1, 2048, dtype=torch.float64, requires_grad=True)
        for net, span, draws in (
            (model.pretransform.encode, model.pretransform.encode_span, Draws()),
            (model.pretransform.decode, model.pretransform.decode_span, Draws()),
        ):
            y = net(x, draws)
            for at in (y.shape[-1] // 2, y.shape[-1] // 2 + 1):
                (gradient,) = torch.autograd.grad(y[..., at].sum(), x, retain_graph=True)
                touched = gradient.abs().sum((0, 1)).nonzero()[:, 0]
                found = span(Span(at, at))
                assert found.first <= touched.min() and touched.max() <= found.last
            x = y.detach().requires_grad_()


def test_an_inner_autoencoder_in_chunks(build):
    parts = build.encoder("oobleck", 4, 8), build.decoder("dac", 4, 8)
    model = build(
        *parts, downsampling_ratio=64, pretransform={"type": "autoencoder", "scale": 2.0, "config": build.inner()}
    )
    audio = torch.randn(1, 1, 8192)
    with torch.no_grad():
        latents, _ = model.eval().encode(audio)
        close(encode_long(model, audio, chunk_samples=512)[0], latents)
        close(decode_long(model, latents, chunk_samples=512), model.decode(latents))


def test_noise_does_not_depend_on_chunks(build):
    model = build(dim=8, encoded=16, bottleneck={"type": "vae"}).eval()
    audio = torch.randn(1, 1, 2048)
    drawn = [encode_long(model, audio, chunk_samples=size, draws=seeded())[0] for size in (128, 512, 4096)]
    close(drawn[0], drawn[1])
    close(drawn[0], drawn[2])
    with torch.no_grad():
        close(drawn[0], model.encode(audio, draws=seeded())[0])


def seeded() -> Draws:
    return Draws(torch.Generator().manual_seed(7))


def test_what_has_no_exact_chunks_says_so(build):
    assert why_unbounded(build("seanet", "taae")) is None
    assert why_unbounded(build(build.encoder("taae", 1, 8, sliding_window=None))) == "full attention"
    model = build("oobleck", build.decoder("seanet", 1, 8, norm="time_group_norm"))
    assert why_unbounded(model) == "GroupNorm"
    with pytest.raises(Unbounded):
        decode_long(model, torch.randn(1, 8, 100))
