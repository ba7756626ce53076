"""Autoencoders as codecs: pieces join to one pass, the stream's order, windows, and what cannot be."""

import json

import numpy as np
import pytest
import torch

from jukebox import settings
from jukebox.autoencoder.config import ModelConfig
from jukebox.autoencoder.hps import UnwrapHps
from jukebox.codestore.store import CodeStore
from jukebox.encoding import choice
from jukebox.encoding.hps import EncodeHps
from jukebox.encoding.run import encode_all
from jukebox.errors import CheckpointError, UsageError
from jukebox.models.autoencoder_codec import AutoencoderCodec, load_codec
from jukebox.models.autoencoder_files import read_weights
from jukebox.models.model_set import Part
from jukebox.models.unwrap import unwrap
from jukebox.parallel.comm import SoloComm

SR = 8000
DAC = {"type": "dac_rvq", "config": {"input_dim": 8, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4}}
RVQ = {"type": "rvq", "config": {"dim": 8, "num_quantizers": 2, "codebook_size": 16, "kmeans_init": False}}
SCALAR = {
    "type": "fsq", "config": {"levels": [4, 3], "num_codebooks": 4, "keep_num_codebooks_dim": True},
}  # fmt: skip


def codec_of(build, kind="stream", bottleneck=DAC, *, encoder="oobleck", decoder="oobleck", channels=1, **how):
    model = build(encoder, decoder, channels=channels, bottleneck=bottleneck)
    config = ModelConfig(model_type="autoencoder", sample_rate=SR, model=model.config, audio_channels=channels)
    return AutoencoderCodec(model, config, kind, **how)


def sound(length, channels=1):
    return (np.random.default_rng(0).standard_normal((length, channels)) * 0.3).astype(np.float32)


def in_pieces(codec, audio):
    axis = 0 if codec.kind == "stream" else codec.arrays([0], False)[0].axes.index("N")
    parts = [codec.encode_piece(audio[p.start : p.stop], p, [0])[0] for p in codec.pieces(len(audio))]
    return np.concatenate(parts, axis), len(parts)


@pytest.mark.parametrize("bottleneck", [DAC, RVQ, SCALAR], ids=lambda b: b["type"])
@pytest.mark.parametrize("encoder", ["oobleck", "dac", "seanet", "taae"])
def test_pieces_join_to_one_pass(build, encoder, bottleneck):
    """Small pieces, a whole song, and the model itself agree; the LSTM's song is one piece."""
    small = codec_of(build, "tokens", bottleneck, encoder=encoder, chunk_samples=64)
    audio = sound(4001)
    found, pieces = in_pieces(small, audio)
    x = torch.zeros(1, 1, 4008)
    x[0, 0, :4001] = torch.from_numpy(audio[:, 0])
    with torch.inference_mode():
        tokens = small.model.tokens(small.model.encode(x)[1])[0].numpy()
    time_first = small.arrays([0], False)[0].axes == "NQ"
    assert pieces == (1 if encoder == "seanet" else pieces) and found.shape == small.arrays([0], False)[0].shape(501)
    assert ((found if time_first else found.T) != tokens).mean() < 0.002
    assert encoder == "seanet" or pieces > 1


def test_the_stream_has_the_codes_of_a_frame_in_order(build):
    stream, tokens = codec_of(build, "stream"), codec_of(build, "tokens")
    audio = sound(800)
    codes, frames = in_pieces(stream, audio)[0], in_pieces(tokens, audio)[0]
    assert np.array_equal(codes, frames.T.flatten())  # (Q, N) -> (N Q)
    assert stream.geometry.hops == (4,) and stream.geometry.top_hop == 8 and stream.geometry.bins == 16
    assert stream.geometry.codes_for(0, 801) == 202 and len(codes) == 200
    assert np.array_equal(stream.encode(audio[:, 0])[0], codes)


DITHERED = {"type": "dithered_fsq", "config": {"dim": 4, "levels": [3, 5, 4, 6], "num_codebooks": 2}}


@pytest.mark.parametrize("bottleneck", [DAC, RVQ, SCALAR, DITHERED], ids=lambda b: b["type"])
@pytest.mark.parametrize("encoder", ["oobleck", "seanet", "taae"])
def test_half_precision_is_kept(build, encoder, bottleneck):
    """With --model-half latents are float16, and tokens of every kind go both ways; the LSTM too runs in it."""
    audio = sound(801)
    latents = codec_of(build, "latents", bottleneck, encoder=encoder, half=True)
    found, _ = in_pieces(latents, audio)
    assert found.dtype == np.float16 == np.dtype(latents.arrays([0], False)[0].dtype) and found.shape == (8, 101)
    assert latents.decode_latents(torch.from_numpy(found)).shape == (808,)
    stream = codec_of(build, "stream", bottleneck, encoder=encoder, half=True)
    assert np.isfinite(stream.decode(in_pieces(stream, audio)[0], 0)).all()
    model, x = stream.model, torch.randn(1, 1, 160).half()
    with torch.no_grad():
        z, info = model.encode(x)
        torch.testing.assert_close(
            model.decode_tokens(info[model.discrete.tokens_id]), model.decode(z), atol=1e-2, rtol=1e-2
        )


@pytest.mark.parametrize(("decoder", "channels"), [("oobleck", 2), ("dac", 1), ("seanet", 1), ("taae", 1)])
def test_sound_of_ranges_is_that_of_the_whole(build, decoder, channels):
    codec = codec_of(build, decoder=decoder, channels=channels)
    codes = np.random.default_rng(1).integers(0, 16, 2 * 400)
    whole = codec.decode(codes, 0)
    assert whole.shape == ((3200,) if channels == 1 else (3200, 2))
    for start, stop in ((0, 100), (302, 500), (799, 800)):
        np.testing.assert_allclose(codec.decode(codes, 0, start, stop), whole[start * 4 : stop * 4], atol=1e-5)


def test_windows_are_the_definition_where_nets_look_at_all(build):
    whole = build.encoder("taae", 1, 8, sliding_window=None)
    with pytest.raises(UsageError, match="sample-size"):
        codec_of(build, encoder=whole)
    codec = codec_of(build, "latents", None, encoder=whole, window_samples=512)
    audio = sound(700)
    (piece,) = codec.pieces(188)
    found = codec.encode_piece(audio[512:], piece, [0])[0]
    assert found.shape == (8, 64) and found.dtype == np.float32


def test_latents_drawn_again_are_the_same(build):
    model = build(bottleneck={"type": "vae"}, encoded=16)
    config = ModelConfig(model_type="autoencoder", sample_rate=SR, model=model.config, audio_channels=1)
    codec = AutoencoderCodec(model, config, "latents", chunk_samples=64)
    audio = sound(2000)
    assert np.array_equal(in_pieces(codec, audio)[0], in_pieces(codec, audio)[0])
    assert codec.geometry.bins == 0 and codec.arrays([0], False)[0].dtype == "<f4"


def test_what_cannot_be_is_said(build):
    three = {"type": "dac_rvq", "config": {**DAC["config"], "n_codebooks": 3}}
    with pytest.raises(UsageError, match="3 codebooks"):
        codec_of(build, bottleneck=three)
    assert codec_of(build, "tokens", three).geometry.hops == (8,)
    with pytest.raises(UsageError, match="no tokens"):
        codec_of(build, bottleneck=None)


def published_files(model, folder):
    """`vae_model.ckpt` with `vae_config.json`, and a song."""
    from jukebox.audio import io

    channels = model.config.channels_in
    tree = {
        "model_type": "autoencoder", "sample_rate": SR, "sample_size": 2048, "audio_channels": channels,
        "model": model.config.model_dump(mode="json", exclude_unset=True),
    }  # fmt: skip
    (folder / "vae_config.json").write_text(json.dumps(tree))
    torch.save({"state_dict": model.state_dict()}, folder / "vae_model.ckpt")
    (folder / "music").mkdir()
    io.write(folder / "music" / "a.wav", sound(5000, channels), SR)


def pre_encoded(folder, *words):
    hps = settings.parse("pre_encode", [
        f"--model-config={folder / 'vae_config.json'}", f"--ckpt-path={folder / 'vae_model.ckpt'}",
        f"--audio_files_dir={folder / 'music'}", f"--output-path={folder / 'store'}", *words,
    ])  # fmt: skip
    codec, about = choice.load(choice.choose(hps), hps, "cpu")
    return encode_all(hps.section(EncodeHps), codec, about, SoloComm())


def test_a_published_file_and_its_config(build, tmp_path):
    """They load, encode to a store, and the wrong file is refused."""
    published_files(build(channels=2, bottleneck=DAC), tmp_path)
    store = pre_encoded(tmp_path, "--is-discrete", "--stream")
    assert store.codes(0, 0).shape == (2 * 625,) and store.geometry.frame == 2
    assert "codebook 0 first" in store.details[0]["model"]["order"]
    again, keys = load_codec(Part(str(tmp_path / "vae_model.ckpt"), str(tmp_path / "vae_config.json")))
    assert CodeStore.open(tmp_path / "store", expect_fingerprint=again.fingerprint, expect_geometry=again.geometry)
    assert keys.values["l_bins"] == 16 and keys.values["levels"] == 1
    torch.save({"state_dict": {"other": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this model config"):
        load_codec(Part(str(tmp_path / "other.ckpt"), str(tmp_path / "vae_config.json")))


@pytest.mark.parametrize(
    ("bottleneck", "dtype", "shape"),
    [(DAC, "int64", (2, 625)), (RVQ, "int64", (625, 2)), (SCALAR, "int32", (4, 625)), (DITHERED, "int64", (625, 2))],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("flags", [[], ["--compat"]], ids=["plain", "compat"])
def test_tokens_lie_in_the_published_layout(build, tmp_path, bottleneck, dtype, shape, flags):
    published_files(build(bottleneck=bottleneck), tmp_path)
    pre_encoded(tmp_path, "--is-discrete", *flags)
    (file,) = (tmp_path / "store").rglob("*.npy")
    tokens = np.load(file)
    assert (tokens.dtype, tokens.shape) == (np.dtype(dtype), shape) and tokens.max() > 1


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [("taae", {"sliding_window": None}, "full attention"), ("seanet", {"norm": "time_group_norm"}, "GroupNorm")],
)
def test_a_store_says_that_its_window_is_the_definition(build, tmp_path, kind, more, why):
    """Without --sample-size that of the config, 2048 samples: a song of 5,000 is three windows."""
    published_files(build(build.encoder(kind, 1, 8, **more)), tmp_path)
    store = pre_encoded(tmp_path)
    assert store.details[0]["model"]["window"].startswith(
        f"{why} looks at a whole window at once: what 2048 samples give"
    )
    assert store.lengths.tolist() == [2048, 2048, 904] and store.item(2).offset_samples == 4096


def test_unwrapping(build, tmp_path, monkeypatch):
    """A wrapped checkpoint gives its averaged weights, which load as they are."""
    monkeypatch.chdir(tmp_path)
    model, raw = build(channels=2), build(channels=2)
    tree = {
        "model_type": "autoencoder", "sample_rate": SR, "audio_channels": 2,
        "model": model.config.model_dump(mode="json", exclude_unset=True),
    }  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(tree))
    wrapped = {f"autoencoder.{name}": torch.zeros_like(tensor) for name, tensor in raw.state_dict().items()}
    wrapped |= {f"autoencoder_ema.ema_model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3, "discriminator.x": torch.zeros(1)}, tmp_path / "w.ckpt")
    for switch, ending in (("--use-safetensors", "safetensors"), ("--no-use-safetensors", "ckpt")):
        hps = settings.parse("unwrap", ["--model-config=m.json", "--ckpt-path=w.ckpt", "--name=out", switch])
        assert unwrap(hps.section(UnwrapHps)).name == f"out.{ending}"
        state = read_weights(f"out.{ending}")
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    alone = settings.parse("unwrap", ["--ckpt-path=w.ckpt", "--name=out"]).section(UnwrapHps)
    with pytest.raises(CheckpointError, match="w.ckpt: weights of an autoencoder .* name it with --model-config"):
        unwrap(alone)
