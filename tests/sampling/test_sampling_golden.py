"""sample.py from flags to files gives the golden codes, labels, sounds and alignments."""

import json

import numpy as np
import pytest
import soundfile
import torch

from jukebox.models import restricted
from jukebox.sampling import align_files


def saved(folder, level=0):
    return restricted.load(folder / f"level_{level}" / "data.pth.tar")


def check_codes(tiny, folder, run):
    for level, codes in enumerate(saved(folder)["zs"]):
        assert torch.equal(codes, tiny.arrays[f"{run}.z_{level}"]), f"{run}, level {level}"


def test_ancestral(tiny, ancestral):
    check_codes(tiny, ancestral, "ancestral")
    for level in range(3):
        tree = saved(ancestral, level)
        assert list(tree) == ["zs", "labels", "sampling_kwargs", "x"]
        assert [len(z[0]) for z in tree["zs"]] == [0] * level + [240, 120, 60][level:]
        torch.testing.assert_close(tree["x"], tiny.arrays[f"ancestral.x_{level}"], rtol=1e-4, atol=1e-6)
        for of, labels in enumerate(tree["labels"]):
            assert torch.equal(labels["y"], tiny.arrays[f"labels_y_{of}"])
            assert [info["artist"] for info in labels["info"]] == ["Alan Jackson", "nobody"]
            assert len(labels["info"][0]["full_tokens"]) == len(labels["info"][0]["lyrics"])


def test_alignment_files(tiny, ancestral):
    """align.json and lyrics.json as published, at every level; the page's own files lie beside them."""
    for level in range(3):
        for item, facts in tiny.info["alignment"]["align_full"]["html"].items():
            folder = ancestral / f"level_{level}" / f"item_{item}"
            assert json.loads((folder / "align.json").read_text()) == tiny.arrays[f"align_full.json_{item}"].tolist()
            assert json.loads((folder / "lyrics.json").read_text()) == facts["lyrics_json"]
            size = np.frombuffer((folder / "align.png").read_bytes()[16:24], ">u4").tolist()
            assert size == facts["png_size"]
            assert (folder / "lyrics.lrc").read_text().startswith("[")
            assert (folder / "lyrics.vtt").read_text().startswith("WEBVTT")
        page = (ancestral / f"level_{level}" / "index.html").read_text()
        assert "item_0/alignment.png" in page and "item_0/lyrics.lrc" in page
    assert "level_2/item_0/alignment.png" in (ancestral / "index.html").read_text()


@pytest.mark.parametrize("name", ["align_full", "align_short"])
@pytest.mark.parametrize("item", [0, 1])
def test_align_json_of_golden_attention(tiny, name, item):
    weights = align_files.trimmed(tiny.arrays[f"{name}.{item}"].numpy())
    assert align_files.align_rows(weights).tolist() == tiny.arrays[f"{name}.json_{item}"].tolist()


def codes_file(path, zs):
    torch.save({"zs": zs}, path)
    return path


@pytest.mark.parametrize("run", ["continue", "continue_level2"])
def test_continue(tiny, tmp_path, run):
    file = codes_file(tmp_path / "codes.pth.tar", [tiny.arrays[f"{run}.given_{level}"] for level in range(3)])
    flags = tiny.flags(
        tmp_path / "out", mode="continue", codes_file=file, sample_length=1088,
        requests=tiny.requests(tmp_path / "songs.jsonl"),
    )  # fmt: skip
    assert tiny.sing(flags) == 0
    check_codes(tiny, tmp_path / "out", run)


def test_upsample_aligns_what_it_was_given(tiny, ancestral, tmp_path):
    flags = tiny.flags(
        tmp_path / "out", mode="upsample", codes_file=ancestral / "level_2" / "data.pth.tar", sample_length=960,
        requests=tiny.requests(tmp_path / "songs.jsonl"),
    )  # fmt: skip
    assert tiny.sing(flags) == 0
    check_codes(tiny, tmp_path / "out", "upsample")
    found = json.loads((tmp_path / "out/level_0/item_0/align.json").read_text())
    assert found == tiny.arrays["align_full.json_0"].tolist()


def test_primed(tiny, tmp_path):
    for item, prompt in enumerate(tiny.arrays["primed.x"]):
        soundfile.write(tmp_path / f"{item}.wav", prompt.numpy(), 8000, subtype="FLOAT")
    files = f"{tmp_path / '0.wav'},{tmp_path / '1.wav'}"
    flags = tiny.flags(
        tmp_path / "out", mode="primed", audio_file=files, prompt_length_in_seconds=320 / 8000, sample_length=960,
        requests=tiny.requests(tmp_path / "songs.jsonl"),
    )  # fmt: skip
    assert tiny.sing(flags) == 0
    check_codes(tiny, tmp_path / "out", "primed")
