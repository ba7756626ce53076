"""Weights in the Hugging Face port's layout: whole files, shards, the reversed order of levels, recognised by shape."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from jukebox.errors import CheckpointError
from jukebox.interop import huggingface
from jukebox.interop.published import Entry, prior_table, vqvae_table
from jukebox.models.port import Port, is_port

VQVAE = SimpleNamespace(
    levels=2, downs_t=(1, 1), strides_t=(2, 2), hvqvae_multipliers=None, emb_width=3, l_bins=5, width=4, depth=1,
    m_conv=1.0, use_bottleneck=True,
)  # fmt: skip


def table(level: int | None) -> list[Entry]:
    if level is None:
        return vqvae_table(VQVAE)
    prior = SimpleNamespace(
        level=level, n_ctx=8, prior_width=4 + level, prior_depth=2, m_attn=1.0, m_mlp=1.0, merged_decoder=False,
        single_enc_dec=False, cond_width=3, cond_depth=1, cond_m_conv=1.0, cond_c_res=1, labelled=True, lyrics=level == 1,
        y_bins=(2, 3), t_bins=4, n_tokens=6, n_vocab=7, prime_width=3, prime_depth=1, prime_m_attn=1.0, prime_m_mlp=1.0,
    )  # fmt: skip
    return prior_table(VQVAE, prior, prior, prior, prior, encoder_layers=[1] if level == 1 else [])


def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        theirs: torch.randn(entry.shape, generator=random)
        for level in (None, 0, 1)
        for entry in table(level)
        for theirs in [huggingface.prefix_of(level, 2) + huggingface.name_of(entry.published)]
        if not entry.tied_to  # stored once
    }


def write(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    made = tensors()
    if kind == "bin":
        torch.save(made, folder / "pytorch_model.bin")
    elif kind == "safetensors":
        save_file(made, folder / "model.safetensors")
    elif kind == "safetensors shards":
        names = list(made)
        parts = {f"model-0000{n}-of-00003.safetensors": names[n - 1 :: 3] for n in (1, 2, 3)}
        for file, held in parts.items():
            save_file({name: made[name] for name in held}, folder / file)
        placed = {name: file for file, held in parts.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    else:
        names = list(made)
        parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, held in parts.items():
            torch.save(
                {name: made[name] for name in held}, folder / file, _use_new_zipfile_serialization="1-of" in file
            )
        placed = {name: file for file, held in parts.items() for name in held}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return made


@pytest.mark.parametrize("kind", ["bin", "safetensors", "shards", "safetensors shards"])
def test_every_net_under_its_published_names(tmp_path, kind):
    assert not is_port(tmp_path)
    made = write(tmp_path, kind)
    assert is_port(tmp_path)
    port = Port(tmp_path)
    for level in (None, 0, 1):
        found = port.read(table(level), level, 2).model
        assert list(found) == [e.published for e in table(level) if not e.tied_to]
        prefix = huggingface.prefix_of(level, 2)
        for name, tensor in found.items():
            assert torch.equal(tensor, made[prefix + huggingface.name_of(name)])
    assert port.matches(table(0), 0, 2) and not port.matches(table(0), 1, 2)
    with pytest.raises(CheckpointError, match=r"priors\.0 has other tensors"):
        port.read(table(0), 1, 2)


def test_damaged_folders(tmp_path):
    with pytest.raises(CheckpointError, match="holds neither"):
        Port(tmp_path)
    write(tmp_path, "shards")
    index = tmp_path / "pytorch_model.bin.index.json"
    whole = index.read_text()
    for text, message in (
        ("<html>", "not an index"),
        ('{"weight_map": 3}', "not an index"),
        (whole.replace("pytorch_model-00002", "../evil"), "plain path"),
        (whole.replace("00002-of", "00003-of"), "no such file"),
        (whole.replace('"vqvae.decoders.0.out.bias"', '"vqvae.other"'), "lacks vqvae.other"),
    ):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            Port(tmp_path)
