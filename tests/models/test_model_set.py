"""What --model= means: sets by file, runs, the port where only that was fetched; and what is said when parts do not fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jukebox import settings
from jukebox.errors import CheckpointError, UsageError
from jukebox.models import build, checkpoint, export, model_set
from jukebox.models.hps import ExportHps
from jukebox.weights import catalogue

SIZES = dict(
    levels=2, downs_t=(1, 1), strides_t=(2, 2), emb_width=4, width=4, depth=1, l_bins=8, n_ctx=8, prior_width=8,
    prior_depth=1, cond_width=4, cond_depth=1, sr=8000,
)  # fmt: skip


def make(folder, level, **more):
    """A run folder of random weights; level None is a VQ-VAE."""
    prior = {} if level is None else {"prior": True, "level": level, "restore_vqvae": str(folder.parent / "vqvae")}
    hps = settings.from_presets("teeny", name=folder.name, **{**SIZES, **prior, **more})
    net = build.build_vqvae(hps) if level is None else build.build_prior(hps)
    table = build.vqvae_names(hps) if level is None else build.prior_names(hps)
    state = checkpoint.published_state(net, table)
    checkpoint.write(folder, 1, hps=dict(hps.values), model=state, opt=None, extra={})
    (folder / "hps.toml").write_text(hps.to_toml())
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    for name, level in (("vqvae", None), ("up", 0), ("top", 1)):
        make(root / name, level)
    return root


def own_set(runs, path, more="", where="https://example.org/weights/{name}.pth.tar"):
    """A model set whose files are published somewhere."""
    parts = [("vqvae", "[vqvae]"), ("up", "[[priors]]"), ("top", "[[priors]]")]
    text = "".join(
        f'{head}\nhps = "{runs}/{name}/hps.toml"\ncheckpoint = "{where.format(name=name)}"\n' for name, head in parts
    )
    path.write_text(more + text)
    return path


def test_runs_by_comma(runs):
    models = model_set.find(f"{runs / 'top'},{runs / 'up'}")
    assert [part.checkpoint for part in models.priors] == [str(runs / "up"), str(runs / "top")]
    assert models.vqvae.checkpoint == str(runs / "vqvae")
    alone = model_set.find(str(runs / "top"))
    assert alone.priors[0] is None and set(alone.parts) == {None, 1}


def test_published_files_where_the_catalogue_keeps_them(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("JUKEBOX_CACHE", str(tmp_path / "cache"))
    path = own_set(runs, tmp_path / "own.toml")
    with pytest.raises(CheckpointError, match="3 of its 3 files are not here"):
        model_set.find(str(path))
    (tmp_path / "cache/weights").mkdir(parents=True)
    for name in ("vqvae", "up", "top"):
        shutil.copyfile(runs / name / "checkpoint_latest.pth.tar", tmp_path / f"cache/weights/{name}.pth.tar")
    models = model_set.find(str(path))
    _, vqvae = model_set.load_vqvae(models.vqvae)
    model_set.load_prior(models.priors[1], vqvae, 1)


def test_the_port_serves_where_only_it_was_fetched(runs, tmp_path, monkeypatch):
    folder = tmp_path / "cache/jukebox/huggingface/some/where"
    export.export(ExportHps(source=f"{runs / 'top'},{runs / 'up'}", to="huggingface", out=str(folder)))
    monkeypatch.setenv("JUKEBOX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hps/models").mkdir(parents=True)
    monkeypatch.setenv("JUKEBOX_HPS_DIR", str(tmp_path / "hps"))
    own_set(runs, tmp_path / "hps/models/mine.toml", 'huggingface = "some/where"\n')
    models = model_set.find("mine")
    assert {part.checkpoint for part in models.parts.values()} == {str(folder)}
    _, vqvae = model_set.load_vqvae(models.vqvae)
    prior, _ = model_set.load_prior(models.priors[0], vqvae, 0)
    expected = checkpoint.read(runs / "up").model["prior.x_emb.weight"]
    assert torch.equal(prior.state_dict()["net.emb.weight"], expected)


def test_id_tables_of_a_published_set(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("JUKEBOX_CACHE", str(tmp_path / "cache"))
    ids = [f"https://example.org/ids/v{version}_{kind}_ids.txt" for version in (2, 3) for kind in ("artist", "genre")]
    models = model_set.ModelSet("mine", model_set.Part("x"), (), ids=tuple(ids))
    hps = settings.from_presets("teeny", labels_v3=True)
    with pytest.raises(CheckpointError, match="v3_artist_ids.txt") as raised:
        model_set.ids_dir_of(models, hps)
    assert "v2_" not in str(raised.value) and "fetch.py mine" in str(raised.value)
    port = tmp_path / "port"
    port.mkdir()
    for name in ("pytorch_model.bin", "artists.json", "genres.json"):
        (port / name).write_text("")
    assert model_set.ids_dir_of(replace(models, vqvae=model_set.Part(str(port))), hps) == str(port)
    folder = tmp_path / "cache/jukebox/ids"
    folder.mkdir(parents=True)
    for kind in ("artist", "genre"):
        (folder / f"v3_{kind}_ids.txt").write_text("unknown;0\n")
    assert model_set.ids_dir_of(models, hps) == str(folder)
    own = settings.from_presets("teeny", ids_dir=str(folder))
    plain = model_set.ModelSet("runs", model_set.Part("x"), ())
    assert model_set.ids_dir_of(plain, own) == str(folder) and model_set.ids_dir_of(plain, hps) == ""


def test_parts_that_do_not_fit(runs, tmp_path):
    _, vqvae = model_set.load_vqvae(model_set.Part(str(runs / "vqvae")))
    with pytest.raises(CheckpointError, match="prior of level 1, not 0"):
        model_set.prior_hps(model_set.Part(str(runs / "top")), vqvae, 0)
    with pytest.raises(CheckpointError, match="is a VQ-VAE"):
        model_set.prior_hps(model_set.Part(str(runs / "vqvae")), vqvae, 0)
    with pytest.raises(CheckpointError, match="is a prior"):
        model_set.load_vqvae(model_set.Part(str(runs / "top")))
    other = make(tmp_path / "other", 1, l_bins=16)
    with pytest.raises(CheckpointError, match=r"another VQ-VAE.*\n.*l_bins: 16 .*8"):
        model_set.prior_hps(model_set.Part(str(other)), vqvae, 1)
    wide = make(tmp_path / "wide", 1, prior_width=16)
    part = model_set.Part(str(wide), f"{runs}/top/hps.toml")
    with pytest.raises(CheckpointError, match="prior_width: 16 in the checkpoint / 8 asked for") as raised:
        model_set.load_prior(part, vqvae, 1)
    assert "shape" in str(raised.value) and str(raised.value).count("\n") == 1  # first tensor, differing keys, no more


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs \\[vqvae\\]"),
        ('[vqvae]\nhps = "vqvae"', "no checkpoint"),
        ('[vqvae]\ncheckpoint = "x"\nwidht = 3', "unknown key 'widht'"),
        ("[vqvae", "not a readable model set"),
        ('[vqvae]\ncheckpoint = "nowhere"', "nowhere: no such"),
        ('[vqvae]\ncheckpoint = "x"\n[priors]\ncheckpoint = "y"', r"write \[\[priors\]\] in place of \[priors\]"),
        ('priors = ["y"]\n[vqvae]\ncheckpoint = "x"', "priors must be tables, .* not 'y'"),
        ('priors = "y"\n[vqvae]\ncheckpoint = "x"', "priors = 'y' should be a list"),
        ('vqvae = "x"', r"vqvae = 'x' should be a table, \[vqvae\]"),
        ("[vqvae]\ncheckpoint = 3", "checkpoint = 3 should be a text"),
        ('[vqvae]\ncheckpoint = "x"\nhps = 3', "hps = 3 should be a text"),
        ('ids = [3]\n[vqvae]\ncheckpoint = "x"', "ids should be a list of texts"),
        ('license = "x"\n[vqvae]\ncheckpoint = "x"', "unknown key 'license'. Did you mean licence"),
        ('[vqvae]\ncheckpoint = "x"\ntemp = "hot"', "temp = 'hot' should be a number above 0"),
        ('[vqvae]\ncheckpoint = "x"\ntemp = 0', "temp = 0 should be a number above 0"),
        ('[vqvae]\ncheckpoint = "x"\ntop_k = 1.5', "top_k = 1.5 should be a whole number from 0 up"),
        ('[vqvae]\ncheckpoint = "x"\nmax_batch_size = 0', "max_batch_size = 0 should be a whole number from 1 up"),
        ('[vqvae]\ncheckpoint = "x"\nalignment_head = true', "alignment_head = True should be"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, message):
    path = tmp_path / "set.toml"
    path.write_text(text)
    with pytest.raises((UsageError, CheckpointError), match=message):
        model_set.find(str(path))
    with pytest.raises(UsageError):
        catalogue.catalogue(str(path))


def test_unknown_names():
    with pytest.raises(UsageError, match="--model is missing.*1b_lyrics"):
        model_set.find("")
    with pytest.raises(UsageError, match="neither a model set"):
        model_set.find(str(Path("nowhere")))
