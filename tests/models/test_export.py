"""export.py: every layout into every other and back, the same tensors, hyperparameters and optimiser state."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jukebox import settings
from jukebox.errors import CheckpointError, UsageError, UserError
from jukebox.models import build, checkpoint, export, model_set
from jukebox.models.hps import ExportHps

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden" / "jukebox"
SIZES = dict(
    levels=2, downs_t=(1, 1), strides_t=(2, 2), emb_width=4, width=4, depth=1, l_bins=8, n_ctx=8, prior_width=8,
    prior_depth=2, cond_width=4, cond_depth=1, cond_c_res=1, y_bins=(3, 4), max_bow_genre_size=1, t_bins=4, min_duration=0,
    max_duration=10, labels_v3=True, sr=8000,
)  # fmt: skip
LYRICS = dict(
    use_tokens=True, n_tokens=4, n_vocab=79, attn_order=10, prior_depth=20, blocks=2, prime_width=8, prime_depth=1
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A VQ-VAE, an upsampler and a top prior with a lyric encoder as run folders."""
    root = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for name, level, more in (("vqvae", None, {}), ("up", 0, {}), ("top", 1, LYRICS)):
        prior = {} if level is None else {"prior": True, "level": level, "restore_vqvae": str(root / "vqvae")}
        hps = settings.from_presets("teeny", name=name, **{**SIZES, **more, **prior})
        net = build.build_vqvae(hps) if level is None else build.build_prior(hps)
        table = build.vqvae_names(hps) if level is None else build.prior_names(hps)
        state = checkpoint.published_state(net, table)
        checkpoint.write(root / name, 5, hps=dict(hps.values), model=state, opt=None, extra={})
        (root / name / "hps.toml").write_text(hps.to_toml())
    return root


def convert(source, to, out, **more):
    return export.export(ExportHps(source=str(source), to=to, out=str(out), **more))


def same(a, b):
    assert list(a) == list(b)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


@pytest.mark.parametrize("name", ["vqvae", "up", "top"])
def test_one_net_through_all_layouts(runs, tmp_path, name):
    first = checkpoint.read(runs / name)
    (published,) = convert(runs / name, "published", tmp_path / "a.pth.tar", module=True)
    assert all(key.startswith("module.") for key in torch.load(published, weights_only=True)["model"])
    (plain,) = convert(published, "safetensors", tmp_path / "b.safetensors")
    (run,) = convert(plain, "run", tmp_path / "c")
    last = checkpoint.read(run)
    same(first.model, last.model)
    assert last.step == 5 and last.hps["l_bins"] == 8 and tuple(last.hps["y_bins"]) == (3, 4)


def test_a_set_through_the_port(runs, tmp_path, monkeypatch):
    (whole,) = convert(f"{runs / 'top'},{runs / 'up'}", "huggingface", tmp_path / "hf")
    tensors = load_file(whole)
    assert (
        "priors.0.encoder.embed_tokens.weight" in tensors
        and "priors.1.conditioner_blocks.embed_tokens.weight" in tensors
    )
    assert "priors.1.prior.fc_proj_out.weight" not in tensors  # tied, held once

    own = tmp_path / "own.toml"
    own.write_text(
        f'[vqvae]\nhps = "{runs}/vqvae/hps.toml"\ncheckpoint = "hf"\n'
        + "".join(f'[[priors]]\nhps = "{runs}/{name}/hps.toml"\ncheckpoint = "hf"\n' for name in ("up", "top"))
    )
    back = convert(own, "published", tmp_path / "back")
    assert [path.name for path in back] == ["vqvae.pth.tar", "prior_level_0.pth.tar", "prior_level_1.pth.tar"]
    for name, path in zip(("vqvae", "up", "top"), back, strict=True):
        same(checkpoint.read(runs / name).model, checkpoint.read(path).model)

    monkeypatch.setattr(model_set.presets, "model_sets", lambda: ["5b", "own"])
    monkeypatch.setattr(model_set.presets, "find_model_set", {"own": own, "5b": Path("hparams/models/5b.toml")}.get)
    models = model_set.find(str(tmp_path / "hf"))  # recognised by its shapes
    assert models.name == "own"
    _, vqvae = model_set.load_vqvae(models.vqvae)
    for level in (0, 1):
        prior, _ = model_set.load_prior(models.priors[level], vqvae, level)
        assert not any(tensor.is_meta for tensor in prior.state_dict().values())


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_optimiser_state_is_kept(tmp_path, kind):
    source = GOLDEN / f"ckpt_{kind}.pth.tar"
    (path,) = convert(source, "published", tmp_path / "again.pth.tar")
    before, after = checkpoint.read(source), checkpoint.read(path)
    same(before.model, after.model)
    assert before.step == after.step and before.opt["param_groups"] == after.opt["param_groups"]
    torch.testing.assert_close(before.opt["state"], after.opt["state"], rtol=0, atol=0)


def test_half(runs, tmp_path):
    (path,) = convert(runs / "top", "published", tmp_path / "half.pth.tar", half=True)
    found = checkpoint.read(path)
    assert found.hps["fp16_params"] is True
    kinds = {name.rpartition(".")[2]: tensor.dtype for name, tensor in found.model.items()}
    assert kinds["w"] == torch.float16 and kinds["b"] == torch.float32
    vqvae = settings.from_values(checkpoint.read(runs / "vqvae").hps, "vqvae")
    prior, _ = model_set.load_prior(model_set.Part(str(path)), vqvae, 1)
    kinds = {name: tensor.dtype for name, tensor in prior.state_dict().items()}  # half until they are packed
    assert kinds["net.transformer.layers.0.mlp.fc.weight"] == torch.float16
    assert kinds["net.transformer.layers.0.mlp.fc.bias"] == torch.float32


def test_mistakes(runs, tmp_path):
    with pytest.raises(UsageError, match="prior of level 0 is missing"):
        convert(f"{runs / 'top'},{runs / 'vqvae'}", "huggingface", tmp_path / "x")
    weights = {"prior.x_emb.weight": torch.zeros(2, 2)}
    save_file(weights, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="no hyperparameters"):
        convert(tmp_path / "bare.safetensors", "published", tmp_path / "x.pth.tar")
    with pytest.raises(CheckpointError, match="are these its hyperparameters"):
        convert(tmp_path / "bare.safetensors", "published", tmp_path / "x.pth.tar", presets="vqvae,prior_5b")
    with pytest.raises(UserError):
        convert(tmp_path / "nothing", "published", tmp_path / "x.pth.tar")


def test_published_names_of_a_missing_set(tmp_path, monkeypatch):
    monkeypatch.setenv("JUKEBOX_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as raised:
        model_set.find("1b_lyrics")
    text = str(raised.value)
    assert "fetch.py 1b_lyrics" in text and str(tmp_path / "jukebox/models/5b/vqvae.pth.tar") in text
    assert re.search(r"1b_lyrics/prior_level_2.pth.tar, about 3.8 GB", text) and "non-commercial" in text


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_weights_in_8_bits_are_small_and_close(tmp_path):
    hps = settings.from_presets("teeny", name="small", **{**SIZES, "width": 64, "emb_width": 32})
    torch.manual_seed(0)
    net, table = build.build_vqvae(hps), build.vqvae_names(hps)
    checkpoint.write(
        tmp_path / "run", 5, hps=dict(hps.values), model=checkpoint.published_state(net, table), opt=None, extra={}
    )
    (whole,) = convert(tmp_path / "run", "safetensors", tmp_path / "a.safetensors")
    (small,) = convert(tmp_path / "run", "safetensors", tmp_path / "b.safetensors", float8=True)
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    assert small.stat().st_mode & 0o777 == 0o666 & ~umask()  # others may read what is handed on
    with safe_open(small, "pt") as file:
        told = json.loads(file.metadata()["jukebox"])
    assert told["hps"]["levels"] == 2 and told["step"] == 5
    assert not {"name", "local_logdir", "audio_files_dir", "codes", "restore_vqvae"} & told["hps"].keys()
    model_set.load_vqvae(model_set.Part(str(small)))
    before, after = load_file(whole), load_file(small)
    assert {tensor.dtype for tensor in after.values()} == {torch.float16, torch.float8_e4m3fn}
    for name, tensor in after.items():
        if tensor.dtype == torch.float8_e4m3fn:
            assert (tensor.float() - before[name]).norm() < 0.05 * before[name].norm()
