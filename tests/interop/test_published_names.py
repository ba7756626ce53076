"""Every tensor of every published net has its place in our tables, in file order, in both directions."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jukebox.interop import huggingface
from jukebox.interop.published import Entry, prior_table, vqvae_table

FIXTURES = Path(__file__).parents[1] / "fixtures" / "manifests"
MANIFESTS = json.loads(gzip.decompress((FIXTURES / "published.json.gz").read_bytes()))
PAIRS = json.loads(gzip.decompress((FIXTURES / "huggingface_1b.json.gz").read_bytes()))


def sections(hps: dict) -> SimpleNamespace:
    return SimpleNamespace(
        **hps, labelled=hps["labels"] and bool(hps["y_bins"]), lyrics=hps["use_tokens"] and hps["n_tokens"] > 0
    )


def table(name: str, **changes) -> list[Entry]:
    manifest = MANIFESTS[name]
    hps = sections(manifest["hps"] | changes)
    if "vqvae" not in manifest:
        return vqvae_table(hps)
    vqvae = sections(MANIFESTS[manifest["vqvae"]]["hps"])
    return prior_table(vqvae, hps, hps, hps, hps, encoder_layers=manifest["encoder_layers"])


def test_twelve_nets():
    assert len(MANIFESTS) == 12


@pytest.mark.parametrize("name", MANIFESTS)
def test_names_shapes_and_order(name):
    ours, manifest = table(name), MANIFESTS[name]
    assert [[e.published, list(e.shape)] for e in ours] == [entry[:2] for entry in manifest["entries"]]
    assert len({e.ours for e in ours}) == len(ours)


@pytest.mark.parametrize("name", MANIFESTS)
def test_half_tied_and_buffers(name):
    ours, manifest = table(name), MANIFESTS[name]
    half = manifest["half"] or [e[0] for e in manifest["entries"] if e[2] == "float16"]
    assert not half or half == [e.published for e in ours if e.half_ok]
    aside = [e.published for e in ours if not e.parameter]
    assert aside == manifest["buffers"] or (len(manifest["tied"]) == 1 and aside == ["prior.x_out.weight"])


def test_conditioner_names_of_both_kinds():
    """Gradient checkpointing renamed the conditioner's blocks; each kind is the alias of the other."""
    with_c_res, without = table("small_upsampler", cond_c_res=1), table("small_upsampler", cond_c_res=0)
    assert [e.aliases for e in with_c_res if e.aliases] == [(e.published,) for e in without if e.aliases]
    assert [e.aliases for e in without if e.aliases] == [(e.published,) for e in with_c_res if e.aliases]
    renamed = [e.published for e in without if e.aliases]
    assert len(renamed) == 192 and "conditioner_blocks.0.cond.model.1.0.model.0.model.1.weight" in renamed


@pytest.mark.parametrize("name", PAIRS)
def test_hugging_face_names(name):
    prefix = PAIRS[name]["prefix"] + "."
    level = MANIFESTS[name]["hps"]["level"] if name in MANIFESTS and "vqvae" in MANIFESTS[name] else None
    assert huggingface.prefix_of(level, levels=3) == prefix
    names = huggingface.to_published(table(name), prefix)
    assert names == {prefix + theirs: published for published, theirs in PAIRS[name]["pairs"]}


def test_hugging_face_nets_are_recognised_by_shape():
    prefix = "priors.0."
    shapes = {prefix + huggingface.name_of(e.published): e.shape for e in table("prior_1b_lyrics")}
    assert huggingface.matches(table("prior_1b_lyrics"), prefix, shapes)
    assert not huggingface.matches(table("prior_5b_lyrics"), prefix, shapes)
    assert not huggingface.matches(table("prior_1b_lyrics"), "priors.1.", shapes)
    del shapes[prefix + "prior.fc_proj_out.weight"]  # tied: may be stored once
    assert huggingface.matches(table("prior_1b_lyrics"), prefix, shapes)
    assert not huggingface.matches(table("prior_1b_lyrics"), prefix, shapes | {prefix + "more": (1,)})


def test_lyric_encoder_of_5b_lyrics_in_the_port():
    names = {huggingface.name_of(e.published) for e in table("prior_5b_lyrics")}
    for name in (
        "encoder.embed_tokens.weight",
        "encoder.transformer._attn_mods.0.attn.c_attn.weight",
        "encoder.proj_in.bias",
        "encoder.final_layer_norm.weight",
        "encoder.lm_head.weight",
        "prior.transformer._attn_mods.18.attn.c_enc_kv.weight",
    ):
        assert name in names
    assert len(names) == 1194
