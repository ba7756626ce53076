"""The tables of names against the nets themselves: every preset at full size, on the meta device."""

from pathlib import Path

import pytest
import torch

from jukebox import settings
from jukebox.models import build, checkpoint

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "jukebox"

VQVAES = ["vqvae", "small_vqvae"]
PRIORS = {
    "upsampler_level_0": "vqvae",
    "upsampler_level_1": "vqvae",
    "prior_5b": "vqvae",
    "prior_5b_lyrics": "vqvae",
    "prior_1b_lyrics": "vqvae",
    "small_prior": "small_vqvae",
    "small_upsampler": "small_vqvae",
    "small_labelled_prior": "vqvae",
    "small_single_enc_dec_prior": "vqvae",
    "small_sep_enc_dec_prior": "vqvae",
}
LEVELS = {"small_prior": 1, "small_labelled_prior": 2, "small_single_enc_dec_prior": 2, "small_sep_enc_dec_prior": 2}


def assert_names_fit(net: torch.nn.Module, table: list) -> None:
    state = net.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for entry in table:
        ours = entry.ours if entry.ours in shapes else entry.tied_to
        assert shapes[ours] == entry.shape, entry
    left = set(shapes) - {e.ours for e in table}
    assert all(name.startswith("codebooks.") for name in left), sorted(left)[:5]
    parameters = [name for name, _ in net.named_parameters()]
    assert sorted(parameters) == sorted(e.ours for e in table if e.parameter)
    assert {name for name, t in checkpoint.published_state(net, table).items()} == {e.published for e in table}


@pytest.mark.parametrize("name", VQVAES)
def test_vqvaes(name):
    hps = settings.from_presets(name)
    with torch.device("meta"):
        net = build.build_vqvae(hps)
    assert_names_fit(net, build.vqvae_names(hps))


@pytest.mark.parametrize("name", PRIORS)
def test_priors(name):
    level = {"level": LEVELS[name]} if name in LEVELS else {}
    hps = settings.from_presets(f"{PRIORS[name]},{name}", **level)
    with torch.device("meta"):
        net = build.build_prior(hps)
    assert_names_fit(net, build.prior_names(hps))


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_golden_checkpoints_load_into_the_real_nets(kind):
    found = checkpoint.read(GOLDEN / f"ckpt_{kind}.pth.tar")
    hps = settings.from_values(found.hps, "checkpoint")
    make, names = (build.build_vqvae, build.vqvae_names) if kind == "vqvae" else (build.build_prior, build.prior_names)
    net, table = make(hps), names(hps)
    checkpoint.load_into(net, found.model, table)
    written = checkpoint.published_state(net, table)
    assert list(written) == list(found.model) and all(torch.equal(written[n], t) for n, t in found.model.items())
    ours = [name for name, _ in net.named_parameters()]
    moved = checkpoint.opt_from_published(found.opt, ours, table)
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert [tuple(moved["state"][i]["exp_avg"].shape) for i in range(len(shapes))] == shapes
