"""Flags from files, and the model named in exactly one way: mistakes are named before anything is loaded."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from jukebox import settings
from jukebox.encoding import choice
from jukebox.encoding.hps import EncodeHps
from jukebox.errors import HparamsError, UsageError, UserError

# As the public documents print it.
BASE = """\
# config/pre_encode/base.yaml
defaults:
  - _self_
  - model: ???
  - dataset: ???

# Model configuration
model_config_path: null
ckpt_path: null

# Dataset configuration
dataset_config_path: ???
output_path: ???

# Processing parameters
batch_size: 1
sample_size: 1320960
num_workers: 4
shuffle: false

# Model options
model_half: false
is_discrete: false

# Distributed processing
num_nodes: 1
strategy: "auto"
limit_batches: null
"""


def parsed(*argv: object) -> EncodeHps:
    return settings.parse("pre_encode", [str(word) for word in argv]).section(EncodeHps)


def test_defaults_are_the_published_ones():
    found = parsed()
    assert (found.batch_size, found.sample_size, found.num_workers, found.num_nodes) == (1, 1320960, 4, 1)
    assert (found.strategy, found.limit_batches, found.shuffle) == ("auto", None, False)
    assert not (found.model_half or found.is_discrete or found.model_config or found.dataset_config)


@pytest.mark.parametrize("flag", ["--batch-size=0", "--sample-size=999", "--sample-size=13230001", "--num-workers=-1",
                                  "--num_nodes=0", "--limit-batches=0", "--batch_sise=3"])  # fmt: skip
def test_bounds_and_unknown_flags(flag):
    with pytest.raises(HparamsError, match=flag.split("=")[0].strip("-").replace("-", "_")):
        parsed(flag)


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".json"])
def test_flags_from_a_file_and_flags_win(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    values = {"batch-size": 3, "output_path": "codes", "limit_batches": 2}
    path.write_text(
        json.dumps(values) if suffix != ".toml" else 'batch-size = 3\noutput_path = "codes"\nlimit_batches = 2'
    )
    found = parsed("--config", path, "--batch_size=5", "num_workers=1")
    assert (found.batch_size, found.output_path, found.limit_batches, found.num_workers) == (5, "codes", 2, 1)
    assert settings.parse("pre_encode", [f"--config={path}"]).origins["batch_size"] == f"config {path}"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("c.yaml", "batch_sise: 3", "no flag batch_sise.*batch_size"),
        ("c.yaml", "batch_size: [", "c.yaml"),
        ("c.yaml", "- 1", "one value per flag"),
        ("c.json", "{", "c.json"),
        ("c.toml", "a =", "c.toml"),
        ("c.ini", "", "must end with"),
        ("c.json", '{"batch_size": "many"}', "batch_size = 'many'"),
        ("c.json", '{"batch_size": 0}', "batch_size"),
        (None, "", "cannot be read"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, name, text, reason):
    path = tmp_path / (name or "gone.toml")
    if name:
        path.write_text(text)
    with pytest.raises(HparamsError, match=reason):
        parsed(f"--config={path}")


@pytest.fixture
def composed(tmp_path: Path) -> Path:
    base = tmp_path / "base.yaml"
    base.write_text(BASE)
    for group in ("model", "dataset"):
        (tmp_path / group).mkdir()
    (tmp_path / "model" / "vae.yaml").write_text("model_config_path: m.json\nckpt_path: m.ckpt\n")
    (tmp_path / "model" / "other.yaml").write_text(
        "# @package _global_\nmodel_config_path: o.json\nckpt_path: o.ckpt\n"
    )
    (tmp_path / "dataset" / "local.yaml").write_text("dataset_config_path: d.json\n")
    return base


@pytest.mark.parametrize(("model", "config"), [("vae", "m.json"), ("other", "o.json")])
def test_the_base_file_composes_its_groups(composed, model, config):
    pytest.importorskip("hydra")
    found = parsed(f"--config={composed}", f"model={model}", "dataset=local", "output_path=out", "--batch-size=2")
    assert (found.model_config, found.dataset_config, found.output_path, found.batch_size) == (
        config,
        "d.json",
        "out",
        2,
    )


def test_a_group_left_open_is_named_with_its_choices(composed):
    pytest.importorskip("hydra")
    with pytest.raises(HparamsError, match=r"(?s)model.*vae"):
        parsed(f"--config={composed}", "dataset=local")


def test_groups_without_hydra_say_what_to_install(composed, monkeypatch):
    monkeypatch.setitem(sys.modules, "hydra", None)
    with pytest.raises(HparamsError, match="pip install hydra-core"):
        parsed(f"--config={composed}", "model=vae", "dataset=local")


# ---- the model -------------------------------------------------------------------------------------------------------


def chosen(*argv: object) -> choice.Choice:
    return choice.choose(settings.parse("pre_encode", [str(word) for word in argv]))


def test_exactly_one_way_to_name_the_model(tmp_path):
    assert chosen("--restore_vqvae=logs/a") == choice.Choice("logs/a", run=True)
    assert chosen("--restore_vqvae=logs/a", "--hps=vqvae") == choice.Choice("logs/a", run=True)
    assert chosen("--hps=vqvae").checkpoint.startswith("https://")
    config = tmp_path / "m.json"
    config.write_text('{"model_type": "jukebox_vqvae", "hps": "small_vqvae"}')
    assert chosen(f"--model-config={config}", "--ckpt-path=x.ckpt") == choice.Choice("x.ckpt", "small_vqvae")
    for argv, reason in (
        ([], "no model is named"),
        (["--restore_vqvae=a", f"--model-config={config}", "--ckpt-path=x"], "are given"),
        (["--restore_vqvae=a", "--pretrained-name=b"], "are given"),
        ([f"--model-config={config}"], "needs --ckpt-path"),
        (["--ckpt-path=x"], "needs --model-config"),
        (["--pretrained-name=nobody"], "no such folder"),
        (["--pretrained-name=../nobody/nothing"], "no such folder"),
    ):
        with pytest.raises(UsageError, match=reason):
            chosen(*argv)


def test_other_model_types_are_refused_by_name(tmp_path):
    config = tmp_path / "m.json"
    config.write_text('{"model_type": "diffusion_cond"}')
    with pytest.raises(HparamsError, match="'diffusion_cond' cannot be encoded with"):
        chosen(f"--model-config={config}", "--ckpt-path=x.ckpt")


def test_a_folder_by_name(tmp_path):
    assert chosen(f"--pretrained-name={tmp_path}") == choice.Choice(str(tmp_path))
    (tmp_path / "model_config.json").write_text('{"model_type": "jukebox_vqvae"}')
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        chosen(f"--pretrained-name={tmp_path}")
    (tmp_path / "model.ckpt").write_bytes(b"")
    assert chosen(f"--pretrained-name={tmp_path}").checkpoint == str(tmp_path / "model.ckpt")


def test_a_model_by_its_name_on_a_hub(tmp_path, monkeypatch):
    """What cannot be encoded with is refused before its weights are fetched; what can is fetched once."""
    there = tmp_path / "hub" / "someone" / "vqvae" / "resolve" / "main"
    there.mkdir(parents=True)
    monkeypatch.setenv("HF_ENDPOINT", (tmp_path / "hub").as_uri())
    monkeypatch.setenv("JUKEBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jukebox.weights.download.PAUSE_SEC", 0.0)
    (there / "model_config.json").write_text('{"model_type": "diffusion_cond"}')
    with pytest.raises(HparamsError, match="'diffusion_cond' cannot be encoded with"):
        chosen("--pretrained-name=someone/vqvae")
    kept = tmp_path / "cache" / "jukebox" / "huggingface" / "someone" / "vqvae"
    assert [path.name for path in kept.glob("m*")] == ["model_config.json", "model_config.json.sha256"]
    shutil.rmtree(kept)
    (there / "model_config.json").write_text('{"model_type": "jukebox_vqvae"}')
    (there / "model.ckpt").write_bytes(b"weights")
    assert chosen("--pretrained-name=someone/vqvae") == choice.Choice(str(kept / "model.ckpt"))
    shutil.rmtree(there)
    assert chosen("--pretrained-name=someone/vqvae") == choice.Choice(str(kept / "model.ckpt"))
    with pytest.raises(UserError, match=r"(?s)model_config\.json: .*by hand"):
        chosen("--pretrained-name=someone/else")
