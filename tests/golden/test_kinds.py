"""Every golden file is replayed by some test, and what nobody can replay fails."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def harness(pytestconfig):
    """The conftest beside this file."""
    return pytestconfig.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))


def test_is_replayed(golden):
    assert golden.kind, f"{golden.path}: no test replays this kind of golden file"


def test_the_folder_is_not_empty(harness, pytestconfig):
    assert harness.find(harness.folder_of(pytestconfig)), "no golden file at all"


def test_rules(harness, tmp_path):
    family = tmp_path / "jukebox"
    family.mkdir()
    skipped = ("facts_2", "dataset_facts", "ids_v9_artist", "README", "sampling_weights", "sampling_2_weights")
    for name in ("vqvae_9level", "nonsense", "opsy", "dataset_z", "sampling_2", *skipped):
        (family / f"{name}.json").write_text("{}")
    (family / "vqvae_9level.safetensors").touch()
    (family / "stray.safetensors").touch()
    (family / "ckpt_x.json").write_text('{"file": "ckpt_x.pth.tar", "module_variant": "ckpt_x_module.pth.tar"}')
    for name in ("ckpt_x.pth.tar", "ckpt_x_module.pth.tar"):
        (family / name).touch()
    (tmp_path / "get_starts_2.json").write_text("{}")
    found = {golden.path.name: golden.kind for golden in harness.find(tmp_path)}
    assert found == {
        "ckpt_x.json": "ckpt",
        "dataset_z.json": "dataset",
        "get_starts_2.json": "get_starts",
        "nonsense.json": None,
        "opsy.json": None,
        "sampling_2.json": "sampling",
        "stray.safetensors": None,
        "vqvae_9level.json": "vqvae",
    }


def test_direct_and_nested_folders_are_the_same(harness, tmp_path):
    folder = harness.DEFAULT / "jukebox"
    shutil.copy(folder / "ops.json", tmp_path)
    assert [golden.kind for golden in harness.find(tmp_path)] == ["ops"]
    assert {g.name for g in harness.find(folder)} <= {g.name for g in harness.find(harness.DEFAULT)}
