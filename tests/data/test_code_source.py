"""What --codes may name: a store, a level of it, or a data-set file that routes there; everything else by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jukebox.codestore.arrays import ArraySpec
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.layout import ItemFacts, Source
from jukebox.codestore.writer import StoreWriter
from jukebox.data.code_dataset import open_codes
from jukebox.errors import DataError, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    geometry = Geometry(8000, (8, 32), 16)
    with StoreWriter.create_or_resume(tmp_path / "s", geometry, "x", [Source("a.wav")]) as writer:
        writer.add(0, {0: np.zeros(40, np.int64), 1: np.zeros(10, np.int64)}, ItemFacts(320, 320))
        writer.finish()
    return tmp_path / "s"


def config(folder: Path, path: Path, **values: object) -> str:
    file = folder / "d.json"
    entry = {"id": "x", "path": str(path), **{k: values.pop(k) for k in ["custom_metadata_module"] if k in values}}
    file.write_text(json.dumps({"dataset_type": "pre_encoded", "datasets": [entry], **values}))
    return str(file)


def test_a_store_its_level_and_a_data_set_file_are_one(store, tmp_path):
    for where in (str(store), str(store / "level_1"), config(tmp_path, store), config(tmp_path, store / "level_0")):
        assert open_codes(where).root == store


@pytest.mark.parametrize(
    "values",
    [{"latent_crop_length": 4}, {"min_length_sec": 1}, {"max_length_sec": 1}, {"custom_metadata_module": "m.py"}],
)
def test_keys_without_effect_on_a_prior_are_refused_by_name(store, tmp_path, values):
    with pytest.raises(DataError, match=next(iter(values))):
        open_codes(config(tmp_path, store, **values))


def test_latents_have_no_consumer_among_priors(tmp_path):
    with StoreWriter.create_or_resume(
        tmp_path / "l", Geometry(8000, (8,), 0), "x", [Source("a.wav")], window_samples=80, flat=True,
        arrays=[ArraySpec("<f4", "DN", 2)],
    ) as writer:  # fmt: skip
        writer.add(0, {0: np.zeros((2, 10), np.float32)}, ItemFacts(80, 80))
        writer.finish()
    with pytest.raises(StoreError, match="continuous latents.*--is-discrete"):
        open_codes(config(tmp_path, tmp_path / "l"))


def test_other_data_sets_are_refused(tmp_path):
    file = tmp_path / "d.json"
    file.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "x", "path": "p"}]}))
    with pytest.raises(DataError, match="of type pre_encoded"):
        open_codes(str(file))
