"""Model configs: what is accepted as it stands, and how a bad one is refused."""

import copy
import gzip
import json
import logging
from pathlib import Path

import pytest
import torch

from jukebox.autoencoder.config import ModelConfig, read_config
from jukebox.autoencoder.discriminators import build_discriminator
from jukebox.autoencoder.losses import GeneratorLosses
from jukebox.autoencoder.model import Autoencoder
from jukebox.autoencoder.parts import decoder_channels, encoder_channels
from jukebox.autoencoder.recipe import TrainingConfig, default_losses
from jukebox.autoencoder.schema import check, parse_json, read_json
from jukebox.errors import HparamsError

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "hparams" / "autoencoders").glob("*.json"))
FRAGMENTS = sorted((ROOT / "tests" / "fixtures" / "autoencoders").glob("*.json.txt"))
MANIFESTS = json.loads(
    gzip.decompress((ROOT / "tests" / "fixtures" / "manifests" / "autoencoders.json.gz").read_bytes())
)


def small(**model):
    """A mono Oobleck pair with 8 latent channels at ratio 8."""
    part = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 8}
    return {
        "model_type": "autoencoder", "sample_rate": 16000, "audio_channels": 1,
        "model": {
            "encoder": {"type": "oobleck", "config": {"in_channels": 1, **part}},
            "decoder": {"type": "oobleck", "config": {"out_channels": 1, **part}},
            "latent_dim": 8, "downsampling_ratio": 8, "io_channels": 1, **model,
        },
    }  # fmt: skip


def changed(path: str, value):
    """The small config with one entry replaced, or removed by None."""
    tree = small()
    *parents, last = path.split(".")
    at = tree
    for name in parents:
        at = at.setdefault(name, {})
    if value is None:
        del at[last]
    else:
        at[last] = value
    return tree


def message(tree) -> str:
    with pytest.raises(HparamsError) as error:
        check(ModelConfig, tree, "m.json")
    return str(error.value)


def seanet(**config):
    return {"type": "seanet", "config": {"dimension": 8, "ratios": [2, 4], **config}}


def wide(side):
    """A part of the small config with four channels of audio."""
    part = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 8}
    return {"type": "oobleck", "config": {f"{side}_channels": 4, **part}}


def of_a_loss():
    """What is wrong in loss_configs: (path of the config, value, message)."""
    judge = "loss_configs.discriminator.config"
    oobleck, dac, encodec = {"in_channels": 2}, {"periods": [2], "fft_sizes": [64]}, {"filters": 2}
    faults = [
        ({"spectral": {"config": {"window": "hat"}, "weights": {"mrstft": 1.0}}}, "loss_configs.spectral.config.window: unknown window hat; allowed: hann_window"),
        ({"mrmel": {"config": {"n_mels": [4], "window_lengths": [2], "pow": 1.0, "log_weight": 1.0, "mag_weight": 1.0}, "weights": {"mrmel": 1.0}}}, "loss_configs.mrmel.config.window_lengths[0]: Input should be greater than or equal to 4"),
        ({"discriminator": ("encodec", {**encodec, "n_ffts": [64], "hop_lengths": [16], "win_lengths": [128]})}, f"{judge}.win_lengths: a window of 128 does not fit into an fft of 64"),
        ({"discriminator": ("encodec", {**encodec, "activation_params": {"slope": 0.1}})}, f"{judge}.activation_params: LeakyReLU has no slope; allowed: negative_slope"),
        ({"discriminator": {"type": "oobleck", "requires_grad": False, "weights": {"adversarial": 1.0, "feature_matching": 1.0}}}, "loss_configs.discriminator.requires_grad: a discriminator is trained in any case"),
        ({"discriminator": ("oobleck", oobleck)}, f"{judge}.in_channels: the discriminator listens to 2 channels, but the model gives 1"),
        ({"discriminator": ("dac", {"periods": [], "fft_sizes": []})}, f"{judge}.periods: periods and fft_sizes are both empty"),
        ({"discriminator": ("dac", {**dac, "rates": [2]})}, f"{judge}.rates: nets at other sample rates never worked"),
        ({"discriminator": ("dac", {**dac, "bands": [[0.5, 0.2]]})}, f"{judge}.bands[0]: a band goes from a smaller to a larger fraction"),
        ({"discriminator": ("dac", {**dac, "bands": []})}, f"{judge}.bands: fft_sizes need at least one band"),
        ({"discriminator": ("dac", {"fft_sizes": [8]})}, f"{judge}.fft_sizes: an fft of 8 has no bin from 0 to 0.1 of its spectrum"),
    ]  # fmt: skip
    for losses, said in faults:
        if isinstance(losses.get("discriminator"), tuple):
            kind, config = losses["discriminator"]
            weights = {"adversarial": 1.0, "feature_matching": 1.0}
            losses = {"discriminator": {"type": kind, "config": config, "weights": weights}}
        yield "training", {"learning_rate": 1.0, "loss_configs": losses}, f"training.{said}"
    win = {"fft_size": 64, "hop_size": 16, "win_length": 128}
    yield (
        "training", {"learning_rate": 1.0, "eval_loss_configs": {"stft": win}},
        "training.eval_loss_configs.stft.win_length: a window of 128 does not fit into an fft of 64",
    )  # fmt: skip


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem in MANIFESTS], ids=lambda path: path.stem)
def test_shipped_configs_have_the_published_tensors(path):
    config = read_config(path)
    manifest = MANIFESTS[path.stem]
    with torch.device("meta"):
        model = Autoencoder(config.model)
        discriminator = build_discriminator(config.training.losses.discriminator, config.model.channels_out)
    for net, name in (model, "autoencoder"), (discriminator, "discriminator"):
        assert [[key, list(value.shape)] for key, value in net.state_dict().items()] == manifest[name]


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.stem)
def test_fragments_of_the_documents(path, caplog):
    """Each printed fragment, pasted into a config, is built as it stands; a trailing comma is warned about."""
    text = path.read_text()
    name = path.name.split(".")[0]
    with caplog.at_level(logging.WARNING):
        fragment = parse_json("{" + text + "}", path.name)
    if name == "bottleneck_rvq":
        assert "bottleneck_rvq.json.txt: line 7 column 22: trailing comma" in caplog.text
    tree = small()
    if name.startswith("loss_"):
        tree["training"] = {"learning_rate": 1e-4, "loss_configs": fragment}
    elif name == "demo":
        tree["training"] = {"learning_rate": 1e-4, **fragment}
    else:
        tree["model"] = fitted(fragment)
        tree["audio_channels"] = 2
    config = check(ModelConfig, tree, path.name)
    with torch.device("meta"):
        assert Autoencoder(config.model).latent_dim == tree["model"]["latent_dim"]
    if config.training is not None and name != "demo":
        asked = config.training.losses.model_dump(exclude_unset=True)
        assert set(asked) == set(fragment)
        if (part := config.training.losses.discriminator) is not None:
            assert len(build_discriminator(part, 1).discriminators.discriminators) == 5
        stft = GeneratorLosses(config).stft
        assert (stft is not None and len(stft.losses) == 7) == (name == "loss_spectral")


def fitted(fragment: dict) -> dict:
    """A model around a fragment: the missing parts, with the widths that the given ones ask for."""
    model = {"io_channels": 2, **copy.deepcopy(fragment)}
    if "encoder" in model:
        encoder, decoder = model["encoder"]["config"], model["decoder"]["config"]
        wide, narrow = (c.get("latent_dim", c.get("dimension")) for c in (encoder, decoder))
        strides = encoder.get("strides", encoder.get("ratios"))
        if wide == 2 * narrow:
            model["bottleneck"] = {"type": "vae"}
        return {**model, "latent_dim": narrow, "downsampling_ratio": int(torch.tensor(strides).prod())}
    args = model["bottleneck"].get("config", {})
    width = args.get("dim", args.get("input_dim", 8))
    encoded = width * (2 if model["bottleneck"]["type"] == "vae" else 1)
    encoder, decoder = ({"type": "oobleck", "config": {"latent_dim": dim}} for dim in (encoded, width))
    return {**model, "encoder": encoder, "decoder": decoder, "latent_dim": width, "downsampling_ratio": 512}


def test_trailing_commas_in_strings_stay(caplog):
    with caplog.at_level(logging.WARNING):
        assert parse_json('{"a": "x,]", "b": [1, 2,\n ],\n}', "f") == {"a": "x,]", "b": [1, 2]}
    assert [r.message.split(": trailing")[0] for r in caplog.records] == ["f: line 1 column 24", "f: line 2 column 3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1', "c.json: line 1 column 8: not valid JSON"),
        ('{"a": 1, "a": 2}', "c.json: the key a stands twice"),
        ('{"a": NaN}', "c.json: NaN is not a JSON number"),
        ("[1]", "c.json: a config is a JSON object"),
        ("[" * 100_000, "c.json: nested too deeply"),
    ],
)
def test_bad_json(text, said):
    with pytest.raises(HparamsError, match="^" + said.replace("{", r"\{")):
        parse_json(text, "c.json")


def test_missing_file(tmp_path):
    with pytest.raises(HparamsError, match="absent.json: cannot be read: No such file"):
        read_json(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model.encoder.type", "ooblek", "model.encoder: unknown type 'ooblek'; allowed: 'oobleck', 'dac', 'seanet', 'taae'"),
        ("model.encoder.type", None, "model.encoder: the key type is missing"),
        ("model.encoder.type", "local_attn", "model.encoder: encoder type local_attn is not offered: "),
        ("model.encoder.config.chanels", 4, "model.encoder.config: unknown key chanels; did you mean channels? allowed here: "),
        ("model.encoder.config.channels", "4", "model.encoder.config.channels: Input should be a valid integer (given: '4')"),
        ("model.encoder.config.channels", True, "model.encoder.config.channels: Input should be a valid integer"),
        ("model.encoder.config.channels", 0, "model.encoder.config.channels: Input should be greater than 0 (given: 0)"),
        ("model.encoder.config.strides", [2, "4"], "model.encoder.config.strides[1]: Input should be a valid integer"),
        ("model.encoder.config.strides", [2], "model.encoder.config.strides: 1 strides need 1 c_mults, got 2"),
        ("model.encoder.config.strides", [2, 2], "model.downsampling_ratio: downsampling_ratio is 8, but the encoder's strides multiply to 4"),
        ("model.decoder.config.strides", [2, 2], "model.downsampling_ratio: downsampling_ratio is 8, but the decoder's strides multiply to 4"),
        ("model.decoder.config.latent_dim", 4, "model.decoder: the decoder takes 4 channels, but it gets latent_dim 8"),
        ("model.bottleneck", {"type": "skip"}, "model.bottleneck: bottleneck type skip is not offered: leave"),
        ("model.bottleneck", {"type": "vae"}, "model.latent_dim: latent_dim is 8, but the encoder gives 8 channels and the vae bottleneck halves them into mean and scale: write 4, or let the encoder give 16"),
        ("model.bottleneck", {"type": "vae", "config": {"beta": 1}}, "model.bottleneck.config: unknown key beta; this type has no settings"),
        ("model.bottleneck", {"type": "rvq", "config": {"dim": 16}}, "model.bottleneck: the rvq bottleneck is set up for 16 channels, but the encoder gives 8 channels"),
        ("model.bottleneck", {"type": "dac_rvq"}, "model.bottleneck.config.n_codebooks: this key is missing"),
        ("model.bottleneck", {"type": "wasserstein", "config": {"noise_augment_dim": 2}}, "model.decoder: the decoder takes 8 channels, but it gets latent_dim 8 plus 2 of noise"),
        ("model.bottleneck", {"type": "dithered_fsq", "config": {"dim": 8, "levels": [3, 3]}}, "model.bottleneck.config.levels: dim 8 needs one number of levels or 8 of them, got 2"),
        ("model.bottleneck", {"type": "fsq", "config": {"levels": [8, 1]}}, "model.bottleneck.config.levels[1]: Input should be greater than or equal to 2"),
        ("model.bottleneck", {"type": "dithered_fsq", "config": {"dim": 8, "levels": "many"}}, "model.bottleneck.config.levels: Input should be"),
        ("model.pretransform", {"type": "patched", "config": {"channels": 1, "patch_size": 4}}, "model.encoder: the patched pretransform turns 1 channels into 4, but the encoder has 1"),
        ("model", {**small()["model"], "encoder": wide("in"), "decoder": wide("out"), "downsampling_ratio": 32, "pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": 4, "oversampling": 3}}}, "model.pretransform: at 3 times the rate a downsampling_ratio of 32 puts frames between samples: oversampling must divide it"),
        ("model.pretransform", {"type": "dac_pretrained"}, "model.pretransform: pretransform type dac_pretrained is not offered: it downloads"),
        ("model.pretransform", {"type": "audiocraft_pretrained"}, "model.pretransform: pretransform type audiocraft_pretrained is not offered: it downloads"),
        ("model.io_channels", 2, "model.encoder: the encoder takes 1 channels, but the model gets 2"),
        ("model_type", "diffusion_autoencoder", "model_type: diffusion_autoencoder is not offered: "),
        ("model_type", "lm", "model_type: a language model over stored tokens is a prior here: leave --model-config out"),
        ("sample_rate", None, "sample_rate: this key is missing"),
        ("training", {"learning_rate": 1.0, "use_emma": True}, "training: unknown key use_emma; did you mean use_ema?"),
        ("training", {}, "training.learning_rate: give learning_rate, or optimizer_configs"),
        ("training", {"learning_rate": 1.0, "force_input_mono": True, "loss_configs": {"hubert": {}}}, "training.loss_configs.hubert: the hubert loss is not offered: it downloads"),
        ("training", {"learning_rate": 1.0, "loss_configs": {"discriminator": {"type": "big_vgan"}}}, "training.loss_configs.discriminator: discriminator type big_vgan is not offered"),
        ("training", {"learning_rate": 1.0, "eval_loss_configs": {"pesq": {}}}, "training.eval_loss_configs.pesq: the pesq figure is not offered"),
        ("training", {"learning_rate": 1.0, "pre_encoded": True}, "training.pre_encoded: pre_encoded is for priors"),
        ("training", {"learning_rate": 1.0, "teacher_model": small()}, "training.teacher_model: teacher_model and teacher_model_ckpt come together"),
        *of_a_loss(),
        ("model.bottleneck", {"type": "rvq", "config": {"use_cosine_sim": True}}, "model.bottleneck.config.use_cosine_sim: codebooks compared by direction"),
        ("model.bottleneck", {"type": "rvq", "config": {"num_quantizers": 2, "quantize_dropout_cutoff_index": 2}}, "model.bottleneck.config.quantize_dropout_cutoff_index: must be below num_quantizers 2"),
        ("model.bottleneck", {"type": "fsq", "config": {"levels": [65536, 65536]}}, "model.bottleneck.config.levels: the levels of one codebook multiply to 4294967296 codes"),
        ("model.bottleneck", {"type": "dithered_fsq", "config": {"dim": 8, "levels": 17}}, "model.bottleneck.config.levels: the levels of one codebook multiply to 6975757441 codes"),
        ("model.encoder", seanet(activation_params={"alfa": 1.0}), "model.encoder.config.activation_params: ELU has no parameter alfa; allowed: alpha"),
        ("model.encoder", seanet(norm="time_group_norm", norm_params={"epsi": 1.0}), "model.encoder.config.norm_params: norm time_group_norm has no parameter epsi; allowed: affine, eps"),
        ("model.encoder", seanet(norm_params={"dim": 0}), "model.encoder.config.norm_params: norm weight_norm has no parameter dim; it has none"),
        ("model.decoder", seanet(final_activation="Tanh", final_activation_params={"x": 1.0}), "model.decoder.config.final_activation_params: Tanh has no parameter x"),
        ("training", {"learning_rate": 1.0, "loss_configs": {"spectral": {"config": {"fft_sizes": [64]}, "weights": {"mrstft": 1.0}}}}, "training.loss_configs.spectral.config.fft_sizes: fft_sizes, hop_sizes and win_lengths need the same number"),
    ],
)  # fmt: skip
def test_refusals_name_file_place_and_cure(path, value, said):
    found = message(changed(path, value))
    assert found.startswith(f"m.json: {said}"), found


def test_every_fault_is_told():
    tree = changed("model.encoder.config.channels", "4")
    tree["model"]["decoder"]["config"]["use_snake"] = 1
    assert message(tree).count("m.json: ") == 2


def test_odd_channels_before_a_vae():
    tree = small(bottleneck={"type": "vae"})
    tree["model"]["encoder"]["config"]["latent_dim"] = 9
    assert (
        "the vae bottleneck splits the encoder's channels into mean and scale, so their number must be even, not 9"
        in message(tree)
    )


def test_audio_channels_and_training():
    tree = small() | {"audio_channels": 2, "training": {"learning_rate": 1e-4}}
    assert "the encoder gets 2 audio_channels, but the model takes 1" in message(tree)
    tree["training"]["force_input_mono"] = True
    assert "the model gives 1 channels, to be compared with 2 audio_channels" in message(tree)
    tree["model"] |= {"in_channels": 1, "out_channels": 2}
    tree["model"]["decoder"]["config"]["out_channels"] = 2
    assert check(ModelConfig, tree, "m.json").model.channels_out == 2


def test_what_leaves_nothing_to_learn():
    judge = {"type": "encodec", "config": {"filters": 2}, "weights": {"adversarial": 1.0, "feature_matching": 1.0}}

    def why(losses, model=None, **training):
        tree = (model or small()) | {"training": {"learning_rate": 1e-4, "loss_configs": losses, **training}}
        return check(ModelConfig, tree, "m.json").why_nothing_to_learn() or ""

    assert why({"time": {"weights": {"l1": 0.0}}}).startswith("training.loss_configs: nothing to train on")
    assert not why({"time": {"weights": {"l2": 1.0}}}) and not why({"discriminator": judge})
    alone = why({"discriminator": judge}, warmup_steps=5)
    assert alone.startswith("training.warmup_steps: for 5 steps there is nothing to train on")
    halved = small(bottleneck={"type": "vae"}, latent_dim=4)
    halved["model"]["decoder"]["config"]["latent_dim"] = 4
    assert not why({"discriminator": judge}, halved, warmup_steps=5)  # it has its kl
    assert why({}, small(bottleneck={"type": "wasserstein", "config": {"bypass_mmd": True}}))


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"sample_rate": 8000}, "training.teacher_model.sample_rate: the teacher hears 8000 Hz, the model 16000"),
        ({"model": changed("model.latent_dim", 4)["model"]}, "training.teacher_model.model.latent_dim: latent_dim is 4"),
        ({"model": small(bottleneck={"type": "vae"})["model"]}, "training.teacher_model.model: latent_dim of the teacher is 4, of the model 8"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit(teacher, said):
    if "bottleneck" in teacher.get("model", {}):
        teacher["model"]["latent_dim"] = teacher["model"]["decoder"]["config"]["latent_dim"] = 4
    training = {"learning_rate": 1e-4, "teacher_model": small() | teacher, "teacher_model_ckpt": "t.ckpt"}
    assert message(small() | {"sample_size": 65536, "training": training}).startswith(f"m.json: {said}")


@pytest.mark.parametrize(
    ("training", "place", "least"),
    [
        ({}, "loss_configs.spectral.config.fft_sizes", 1025),
        ({"loss_configs": {"discriminator": {
            "type": "encodec", "config": {"filters": 2}, "weights": {"adversarial": 1.0, "feature_matching": 1.0},
        }}}, "loss_configs.discriminator.config.n_ffts", 2048),
        ({"loss_configs": {}, "eval_loss_configs": {"mel": {"fft_size": 4096}}}, "eval_loss_configs.mel.fft_size", 2049),
    ],
)  # fmt: skip
def test_windows_too_short_for_a_spectrum(training, place, least):
    tree = small() | {"sample_size": 1021, "training": {"learning_rate": 1e-4, **training}}
    said = f"m.json: sample_size: sample_size 1021 makes 1016 samples in whole frames of 8: too few for training.{place}, which needs {least}"
    assert message(tree) == said
    assert check(ModelConfig, tree | {"sample_size": 4096}, "m.json")


def test_nested_pretransform_errors_have_their_path():
    inner = small()["model"]
    inner["latent_dim"] = 3
    tree = small(pretransform={"type": "autoencoder", "config": inner})
    assert message(tree).startswith("m.json: model.pretransform.config.latent_dim: latent_dim is 3")


def test_default_losses_are_the_published_ones():
    losses = default_losses()
    assert losses.discriminator.config.n_ffts == losses.spectral.config.fft_sizes == (2048, 1024, 512, 256, 128, 64, 32)
    assert losses.discriminator.config.filters == 32 and losses.spectral.config.perceptual_weighting
    assert losses.bottleneck.weights.kl == 1e-6 and losses.bottleneck.weights.mmd == 100
    assert check(TrainingConfig, {"learning_rate": 1e-4}, "m.json").losses == losses


def test_a_config_without_a_config_key():
    tree = changed("model.encoder", {"type": "dac"})
    assert "m.json: model.encoder.config.d_model: this key is missing" in message(tree)


def test_stored_configs_come_back():
    """`model_dump` of a config is a config: that is what checkpoints keep."""
    for path in SHIPPED:
        config = read_config(path)
        assert check(ModelConfig, json.loads(config.model_dump_json()), "again") == config


def test_facts_of_a_config():
    dac = {"type": "dac", "config": {"d_model": 4, "strides": [2, 4]}}
    tree = changed("model.encoder", dac)
    tree["model"]["latent_dim"] = tree["model"]["decoder"]["config"]["latent_dim"] = 16
    model = check(ModelConfig, tree, "m.json").model
    assert encoder_channels(model.encoder) == (1, 16) and decoder_channels(model.decoder) == (16, 1)
