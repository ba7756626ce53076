"""codes.py on a store that a model really made: played back, cut, joined and taken for training."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from jukebox.audio import io
from jukebox.codestore.store import CodeStore
from jukebox.encoding.hps import EncodeHps
from jukebox.encoding.run import encode_all
from jukebox.encoding.store_commands import main
from jukebox.errors import StoreError
from jukebox.models.codec import VQVAECodec
from jukebox.parallel.comm import SoloComm


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, songs: Path, tiny_codec: VQVAECodec, tiny_run: Path) -> CodeStore:
    root = tmp_path_factory.mktemp("played") / "s"
    encode = EncodeHps(audio_files_dir=str(songs), output_path=str(root), num_workers=0)
    made = encode_all(encode, tiny_codec, {"checkpoint": str(tiny_run), "hps": {"levels": 3}}, SoloComm())
    assert made is not None
    return made


@pytest.mark.parametrize("level", [0, 1, 2])
def test_any_range_is_played_back_as_one_pass_sounds(store, tiny_codec, tiny_run, tmp_path, capsys, level):
    out = tmp_path / "x.wav"
    name = "sub/c.wav"
    argv = ["decode", str(store.root), name, f"--level={level}", f"--restore_vqvae={tiny_run}", f"--out={out}"]
    assert main([*argv, "--start-sec=1.5", "--end_sec=4.25"]) == 0
    assert "2.750 s from level" in capsys.readouterr().out
    codes = torch.from_numpy(store.codes(level, store.find(name)))[None]
    one_pass = tiny_codec.vqvae.decode([codes], level, level + 1)[0, :, 0].numpy()
    played = io.read(out)[:, 0]
    assert len(played) == 22_000
    np.testing.assert_allclose(played, np.clip(one_pass[12_000:34_000], -1, 1), atol=1e-5 + 2**-15)  # 16 bit


@pytest.mark.parametrize("level", [0, 1, 2])
def test_decoded_ranges_are_those_of_one_pass_within_a_hundred_thousandth(store, tiny_codec, level):
    i = store.find("b.wav")
    codes = store.codes(level, i)
    one_pass = tiny_codec.vqvae.decode([torch.from_numpy(codes)[None]], level, level + 1)[0, :, 0].numpy()
    hop = store.geometry.hops[level]
    small = VQVAECodec(tiny_codec.vqvae, 8000, 512)
    for start, stop in ((0, 3), (100, 357), (len(codes) - 2, len(codes)), (0, len(codes))):
        found = small.decode(codes, level, start, stop)
        np.testing.assert_allclose(found, one_pass[start * hop : stop * hop], atol=1e-5)


def test_what_is_cut_and_joined_still_knows_its_model(store, tmp_path):
    assert main(["cut", str(store.root), "--items=a.wav", f"--out={tmp_path / 'a'}", "--end-sec=0.5"]) == 0
    assert main(["cut", str(store.root), "--items=b.wav", f"--out={tmp_path / 'b'}"]) == 0
    assert main(["join", str(tmp_path / "a"), str(tmp_path / "b"), f"--out={tmp_path / 'c'}"]) == 0
    joined = CodeStore.open(tmp_path / "c", expect_fingerprint=store.fingerprint)
    assert joined.details[0]["model"] == store.details[0]["model"]
    np.testing.assert_array_equal(joined.codes(0, 1), store.codes(0, store.find("b.wav")))
    assert main(["verify", str(tmp_path / "c")]) == 0


def test_info_counts_the_codes_of_every_level(store, capsys):
    assert main(["info", str(store.root)]) == 0
    text = capsys.readouterr().out
    used = [int(line.split()[1]) for line in text.splitlines() if "of 32 bins used, perplexity" in line]
    assert len(used) == 3 and min(used) > 10, "the codes of these tests would be equal to anything"
    assert "7 in 1 shards" in text


def test_s4_hostile_arrays_are_refused_by_every_command(store, tiny_run, tmp_path, capsys):
    """An array of objects, one that claims 10^11 elements, codes beyond the bins: named, and never run or believed."""
    root = tmp_path / "s"
    shutil.copytree(store.root, root)
    arrays = sorted((root / "level_0").rglob("*.npy"))
    claim = {"descr": "<i2", "fortran_order": False, "shape": (1, 10**11)}
    hostile = {
        "Python objects": lambda file: np.save(file, np.array([[{}]], object), allow_pickle=True),
        "200000000000 bytes": lambda file: np.lib.format.write_array_header_1_0(file, claim),
        "expected 0 to 31": lambda file: np.save(file, np.full(np.load(arrays[2]).shape, 99, np.int16)),
    }
    for path, write in zip(arrays, hostile.values(), strict=False):
        content = BytesIO()
        write(content)
        path.write_bytes(content.getvalue())
    assert main(["verify", str(root)]) == 1
    said = capsys.readouterr().out
    for path, reason in zip(arrays, hostile, strict=False):
        assert f"{path.name}: " in said
        with pytest.raises(StoreError, match=f"{path.name}.*{reason}"):
            main(["cat", str(root), path.stem])
        with pytest.raises(StoreError, match=path.name):
            main(["decode", str(root), path.stem, f"--restore_vqvae={tiny_run}", f"--out={tmp_path / 'x.wav'}"])
    assert main(["verify", str(root), "--repair"]) == 0 and "3 items removed" in capsys.readouterr().out


def test_s6_another_model_does_not_play_these_codes(store, tiny_hps, tmp_path):
    from tests_encoding_nets import net_of, save_run

    other = save_run(tmp_path / "other", tiny_hps, net_of(tiny_hps, seed=5))
    with pytest.raises(StoreError, match="was made by model"):
        main(["decode", str(store.root), "0", f"--restore_vqvae={other}", f"--out={tmp_path / 'x.wav'}"])
