"""Data-set files and the pre_encoded data set; the folder is one that stable-audio-tools wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jukebox.data.dataset_config import AudioDir, Entry, PreEncodedDirs, WebDataset, parse_config, read_config
from jukebox.data.pre_encoded_dataset import PreEncodedDataset
from jukebox.errors import DataError

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "pre_encode_example"
FACTS = json.loads((EXAMPLE / "dataset_facts.json").read_text())


def dirs(kind: str = "continuous", module: str = "", **more) -> PreEncodedDirs:
    return PreEncodedDirs((Entry("x", str(EXAMPLE / f"encoded_{kind}"), module),), **more)


def test_the_example_files_parse(tmp_path):
    config = read_config(EXAMPLE / "dataset.json")
    assert config == AudioDir((Entry("example", "audio", "metadata_module.py"),), random_crop=False, drop_last=False)
    text = {"dataset_type": "pre_encoded", "datasets": [{"id": "my_audio", "path": "/p"}], "random_crop": False}
    assert parse_config(text, "f") == PreEncodedDirs((Entry("my_audio", "/p"),))
    wds = {"dataset_type": "s3", "datasets": [{"id": "a", "s3_path": "s3://b/c", "profile": None}], "epoch_steps": 5}
    assert parse_config(wds, "f") == WebDataset((Entry("a", s3_path="s3://b/c"),), epoch_steps=5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset_type": "pre_encode"}, "must be one of audio_dir"),
        ({"datasets": []}, "at least one"),
        ({"datasets": [3]}, r"datasets\[0\]"),
        ({"datasets": [{"id": "a"}]}, "path is missing"),
        ({"datasets": [{"path": "a"}]}, "id is missing"),
        ({"datasets": [{"id": "a", "path": "b", "latent_crop_length": 5}]}, "latent_crop_length belongs beside"),
        ({"random_crp": True}, "did you mean random_crop"),
        ({"random_crop": 1}, "random_crop must be of type bool"),
        ({"latent_crop_length": 0}, "at least 1"),
        ({"latent_crop_length": "5"}, "type int"),
        ({"drop_last": None}, "not be null"),
    ],
)
def test_mistakes_are_named(change, reason):
    text = {"dataset_type": "pre_encoded", "datasets": [{"id": "a", "path": "b"}]}
    with pytest.raises(DataError, match=reason):
        parse_config(text | change, "my.json")


def test_files_that_are_no_json_are_named(tmp_path):
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "c.json").write_bytes(content)
        with pytest.raises(DataError, match="c.json"):
            read_config(tmp_path / "c.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_config(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("kind", "dtype"), [("continuous", "float32"), ("continuous_half", "float16"), ("discrete", "int64")]
)
def test_whole_items_come_as_stored(kind, dtype):
    data = PreEncodedDataset(dirs(kind))
    assert len(data) == 7
    item = data.item(0)
    assert item.latents.dtype == dtype and item.latents.shape[1] == 256
    np.testing.assert_array_equal(item.latents, np.load(item.info["latent_filename"]))
    assert item.info["audio"] is item.latents and item.mask.sum() == 125


def test_crops_obey_the_recorded_rule_with_its_last_frame_mended(tmp_path):
    for number, row in enumerate(FACTS["pre_encoded_crop"]["rows"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        frames, ones, length = row["latent_length"], row["ones_in_mask"], row["latent_crop_length"]
        np.save(folder / "a.npy", np.arange(2 * frames, dtype=np.float32).reshape(2, frames))
        info = {"padding_mask": [1] * ones + [0] * (frames - ones), "seconds_total": 9, "path": "p"}
        (folder / "a.json").write_text(json.dumps(info))
        config = PreEncodedDirs((Entry("a", str(folder)),), latent_crop_length=length, random_crop=row["random_crop"])
        data = PreEncodedDataset(config)
        items = [data.item(0, draw) for draw in range(300)]
        assert all(list(item.latents.shape) == row["result_shape"] for item in items)
        assert set(items[0].info) == set(row["info_keys"])
        starts = {item.info.get("latent_crop_start", 0) for item in items}
        movable = row["random_crop"] and length is not None and ones > length
        if not movable:
            assert starts == {0} and items[0].mask.sum() == row["mask_sum"]
        else:  # the first program never reached the last valid frame
            assert max(starts) == ones - length and min(starts) == 0
        for item in items:
            start = item.info.get("latent_crop_start", 0)
            assert item.latents[0, 0] == start and (item.mask == (start + np.arange(len(item.mask)) < ones)).all()


def test_limits_and_rejections_leave_items_out_with_a_reason(tmp_path):
    module = tmp_path / "m.py"
    module.write_text(
        "def get_custom_metadata(info, audio):\n"
        "    assert audio is None\n"
        "    return {'__reject__': info['relpath'] == 'f1.wav', 'prompt': 'sing ' + info['relpath'], '__replace__': [[1.0]]}\n"
    )
    data = PreEncodedDataset(dirs(module=str(module)))
    assert len(data) == 6 and data.left_out[0][1].startswith("rejected")
    item = data.item(0)
    assert item.info["prompt"] == "sing " + item.info["relpath"] and item.latents.tolist() == [[1.0]]
    assert "__replace__" not in item.info
    with pytest.raises(DataError, match="no item is left of 7.*\n.*below min_length_sec 5"):
        PreEncodedDataset(dirs(min_length_sec=5))
    with pytest.raises(DataError, match="above max_length_sec"):
        PreEncodedDataset(dirs(max_length_sec=0.5))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "no get_custom_metadata"),
        ("raise ValueError('why')", "ValueError: why"),
        ("def get_custom_metadata(info, audio):\n    return info['nothing']", "KeyError"),
        ("def get_custom_metadata(info, audio):\n    return 5", "not a dictionary"),
    ],
)
def test_faults_of_a_metadata_module_name_it(tmp_path, text, reason):
    (tmp_path / "m.py").write_text(text)
    with pytest.raises(DataError, match=reason):
        PreEncodedDataset(dirs(module=str(tmp_path / "m.py")))


def test_batches_hold_every_item_once(tmp_path):
    data = PreEncodedDataset(dirs(drop_last=False))
    found = list(data.batches(3, draw=1))
    assert [len(latents) for latents, _ in found] == [3, 3, 1] and found[0][0].shape == (3, 8, 256)
    names = [info["relpath"] for _, infos in found for info in infos]
    assert len(set(names)) == 7
    assert names != [info["relpath"] for _, infos in data.batches(3, draw=2) for info in infos]
    assert len(list(PreEncodedDataset(dirs()).batches(3))) == 2
