"""The commands of the public documents, as they stand, on tiny files of those names."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_encoding_nets import make_song

from jukebox.codestore.store import CodeStore

COMMANDS = {
    "local": "--model-config configs/model_configs/autoencoder.json --ckpt-path checkpoints/autoencoder.ckpt"
    " --dataset-config configs/dataset_configs/local_audio.json --output-path ./encoded_latents --batch-size 4",
    "s3, four nodes": "--model-config configs/model_configs/autoencoder.json --ckpt-path checkpoints/autoencoder.ckpt"
    " --dataset-config configs/dataset_configs/s3_dataset.json --output-path ./encoded_latents --num-nodes 4"
    " --batch-size 16",
    "half": "--model-config configs/model_configs/autoencoder.json --ckpt-path checkpoints/autoencoder.ckpt"
    " --dataset-config configs/dataset_configs/local_audio.json --output-path ./encoded_latents --model-half"
    " --batch-size 8",
    "discrete": "--model-config configs/model_configs/discrete_autoencoder.json"
    " --ckpt-path checkpoints/discrete_autoencoder.ckpt"
    " --dataset-config configs/dataset_configs/local_audio.json --output-path ./encoded_tokens --is-discrete"
    " --batch-size 2",
    "sample size": "--model-config configs/model_configs/autoencoder.json --ckpt-path checkpoints/autoencoder.ckpt"
    " --model-half --dataset-config configs/dataset_configs/local_audio.json --output-path ./encoded_latents"
    " --sample-size 1320960",
}


@pytest.fixture
def home(tmp_path: Path, tiny_run: Path) -> Path:
    """A folder with the files that the commands name: our VQ-VAE under their names, two songs."""
    for name in ("configs/model_configs", "configs/dataset_configs", "checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("autoencoder", "discrete_autoencoder"):
        (tmp_path / f"configs/model_configs/{name}.json").write_text('{"model_type": "jukebox_vqvae"}')
        shutil.copy(tiny_run / "checkpoint_latest.pth.tar", tmp_path / f"checkpoints/{name}.ckpt")
    make_song(tmp_path / "music" / "a.wav", 5000)
    make_song(tmp_path / "music" / "b.wav", 9000)
    local = {"dataset_type": "audio_dir", "datasets": [{"id": "my_audio", "path": str(tmp_path / "music")}]}
    (tmp_path / "configs/dataset_configs/local_audio.json").write_text(json.dumps(local))
    bucket = {"dataset_type": "s3", "datasets": [{"id": "x", "s3_path": "s3://bucket/set"}]}
    (tmp_path / "configs/dataset_configs/s3_dataset.json").write_text(json.dumps(bucket))
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_command(name: str, home: Path, run_mpi: Callable[..., Any], jukebox_root: Path) -> None:
    in_home = f"import os, runpy, sys; os.chdir({str(home)!r}); sys.argv = sys.argv[1:];"
    entry = jukebox_root / "jukebox" / "pre_encode.py"
    program = in_home + "runpy.run_path(sys.argv[0], run_name='__main__')"
    ran = run_mpi(0, ["-c", program, entry, *shlex.split(COMMANDS[name])], timeout=120)
    if "nodes" in name:
        assert ran.code == 2 and "mpiexec -n 4 -ppn 1" in ran.err and "s3_dataset.json" in ran.err
        return
    assert ran.code == 0, ran.err
    store = CodeStore.open(home / ("encoded_tokens" if "discrete" in name else "encoded_latents"))
    assert store.relpaths == ["a.wav", "b.wav"] and store.lengths.tolist() == [5000, 9000]
    assert store.fingerprint.endswith("-fp16") == ("half" in name or "size" in name)


def autoencoder(folder: Path, name: str, bottleneck: dict[str, Any] | None) -> None:
    """A tiny net of model_type "autoencoder" in place of the VQ-VAE, its weights as `unwrap` leaves them."""
    from jukebox.autoencoder.config import ModelConfig
    from jukebox.autoencoder.model import Autoencoder
    from jukebox.autoencoder.schema import check

    sizes = {"latent_dim": 8, "channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
    model: dict[str, Any] = {
        "encoder": {"type": "oobleck", "config": {"in_channels": 2, **sizes}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 2, **sizes}},
        "latent_dim": 8, "downsampling_ratio": 8, "io_channels": 2, **({"bottleneck": bottleneck} if bottleneck else {}),
    }  # fmt: skip
    tree = {"model_type": "autoencoder", "sample_rate": 8000, "sample_size": 4096, "audio_channels": 2, "model": model}
    (folder / f"configs/model_configs/{name}.json").write_text(json.dumps(tree))
    torch.manual_seed(0)
    net = Autoencoder(check(ModelConfig, tree, name).model)
    torch.save({"state_dict": net.state_dict()}, folder / f"checkpoints/{name}.ckpt")


@pytest.mark.parametrize(
    ("name", "books", "dtype", "shape"),
    [
        ("local", 2, "<f4", (8, 625)),
        ("half", 2, "<f2", (8, 625)),
        ("discrete", 2, "<i8", (2, 625)),
        ("discrete", 9, "<i8", (9, 625)),  # as many as the documents' example: no stream of whole samples is possible
    ],
)
def test_the_example_command_with_an_autoencoder(name, books, dtype, shape, home, run_mpi, jukebox_root):
    rvq = {"input_dim": 8, "n_codebooks": books, "codebook_size": 16, "codebook_dim": 4}
    autoencoder(home, "autoencoder", None)
    autoencoder(home, "discrete_autoencoder", {"type": "dac_rvq", "config": rvq})
    in_home = f"import os, runpy, sys; os.chdir({str(home)!r}); sys.argv = sys.argv[1:];"
    entry = jukebox_root / "jukebox" / "pre_encode.py"
    program = in_home + "runpy.run_path(sys.argv[0], run_name='__main__')"
    ran = run_mpi(0, ["-c", program, entry, *shlex.split(COMMANDS[name])], timeout=120)
    assert ran.code == 0, ran.err
    store = CodeStore.open(home / ("encoded_tokens" if name == "discrete" else "encoded_latents"))
    assert store.relpaths == ["a.wav", "b.wav"] and store.lengths.tolist() == [5000, 9000]
    assert store.array(0, 0).shape == shape and store.array(0, 0).dtype == dtype


def test_the_example_that_names_another_sort_of_model_says_what_is_not_there(home, run_mpi, jukebox_root):
    config = home / "configs/model_configs/autoencoder.json"
    config.write_text('{"model_type": "lm", "sample_rate": 8000}')
    ran = run_mpi(
        0, [jukebox_root / "jukebox" / "pre_encode.py", f"--model-config={config}", "--ckpt-path=x.ckpt",
            f"--audio_files_dir={home / 'music'}", f"--output-path={home / 's'}"], timeout=120,
    )  # fmt: skip
    assert ran.code == 2 and "model_type 'lm' cannot be encoded with" in ran.err and "Traceback" not in ran.err
