"""The shipped presets of priors with labels and lyrics, from audio and from a store; and one that gets other labels."""

import json
import math
import shutil

import pytest
import torch

from jukebox.errors import DataError, HparamsError

ARTISTS, GENRES = ("mira vale", "otto fern"), ("tin gallop", "moss waltz", "night drive")
SIZES = (
    "--prior", "--level=1", "--n_ctx=16", "--prior_width=16", "--m_attn=1", "--blocks=4", "--t_bins=8", "--bs=2",
    "--min_duration=1", "--max_duration=60", "--y_bins=4,3", "--mu=0.9", "--log_steps=1", "--demo_iters=0", "--lr_warmup=1",
    "--lr=0.003", "--nworkers=0",
)  # fmt: skip
LYRICS = ("--n_tokens=16", "--n_vocab=0")  # 0: as the file of the alphabet says
PRESETS = {
    "small_labelled_prior": ("--prior_depth=3",),
    "small_single_enc_dec_prior": ("--prior_depth=16", *LYRICS),
    "small_sep_enc_dec_prior": ("--prior_depth=10", "--prime_width=8", "--prime_depth=3", "--prime_blocks=4", *LYRICS),
}


@pytest.fixture(scope="module")
def music(songs, tmp_path_factory):
    """The songs with metadata beside them, and their id tables."""
    folder = shutil.copytree(songs, tmp_path_factory.mktemp("labelled") / "music")
    rows = [
        {"file": f"{n}.wav", "artist": ARTISTS[n % 2], "genre": GENRES[n % 3], "lyrics": "la \u266b so " * 9}
        for n in range(6)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables(folder.parent / "ids", ARTISTS)
    return folder


def tables(folder, artists, genres=GENRES):
    """Id tables of version 3: "unknown", then these."""
    folder.mkdir()
    for kind, names in (("artist", artists), ("genre", genres)):
        text = "".join(f"{name};{id_}\n" for id_, name in enumerate(("unknown", *names)))
        (folder / f"v3_{kind}_ids.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def made(music, run_mpi, small):
    """A VQ-VAE trained for a few steps, and the store of its codes with the metadata of the songs."""
    root = music.parent
    words = [*small.vqvae, f"--local_logdir={root}", "--name=vqvae", f"--audio_files_dir={music}", "--steps=4"]
    assert run_mpi(0, ["jukebox/train.py", *words]).code == 0
    flags = [f"--restore_vqvae={root / 'vqvae'}", f"--audio_files_dir={music}", f"--output-path={root / 'codes'}"]
    assert run_mpi(0, ["jukebox/pre_encode.py", *flags]).code == 0
    return root


@pytest.fixture
def prior(train, made):
    def do(name, preset, *more, stored=True):
        where = f"--codes={made / 'codes'}" if stored else f"--restore_vqvae={made / 'vqvae'}"
        asked = {word.partition("=")[0] for word in more}
        own = [word for word in (f"--ids_dir={made / 'ids'}", *PRESETS[preset]) if word.partition("=")[0] not in asked]
        audio = "" if stored else made / "music"
        return train(0, name, where, *own, *more, net=(f"--hps={preset}", *SIZES), audio=audio)

    return do


@pytest.mark.parametrize("stored", [True, False], ids=["store", "audio"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train(prior, preset, stored, caplog):
    run = prior("run", preset, "--steps=8", "--save_iters=8", "--train_test_split=1", stored=stored)
    rows, hps = run.rows()[0], run.read().hps
    assert all(math.isfinite(row["loss"]) for row in rows) and rows[-1]["gen_loss"] < rows[0]["gen_loss"]
    if "enc_dec" in preset:
        assert rows[-1]["prime_loss"] < rows[0]["prime_loss"] and hps["n_vocab"] == 79
        assert sum("not in the alphabet" in message and "\u266b" in message for message in caplog.messages) == 1


def test_tables_are_checked_before_training(prior, made, tmp_path):
    many = tables(tmp_path / "many", [f"voice {n}" for n in range(5)])
    with pytest.raises(HparamsError, match=r"ids up to 5, the model only 3 artists; train with --y_bins=4,6"):
        prior("run", "small_labelled_prior", "--steps=1", f"--ids_dir={many}")
    with pytest.raises(HparamsError, match="the alphabet has 79 tokens, the model n_vocab=80"):
        prior("run", "small_single_enc_dec_prior", "--steps=1", "--n_vocab=80")


def test_unknown_names_are_told_before_training(prior, made, tmp_path, run_at, caplog):
    """Once for all songs, the held-out ones too; with --strict_labels nothing is trained."""
    ids = tables(tmp_path / "ids", ("mira vael",), GENRES)
    for stored in (True, False):
        caplog.clear()
        prior(f"run{stored}", "small_single_enc_dec_prior", "--steps=1", f"--ids_dir={ids}", stored=stored)
        told = [message for message in caplog.messages if "is not in" in message or "not in the alphabet" in message]
        assert len(told) == 3 and "artist 'mira vale'" in told[0] and "(nearest: mira vael)" in told[0]
        assert "artist 'otto fern'" in told[1] and "\u266b" in told[2]
        with pytest.raises(DataError, match="artist 'mira vale' is not in .*--strict_labels"):
            prior("strict", "small_labelled_prior", "--steps=1", f"--ids_dir={ids}", "--strict_labels", stored=stored)
        assert not list(run_at("strict").folder.glob("checkpoint*"))


def test_of_several_processes_one_warns(run_mpi, made, tmp_path):
    ids = tables(tmp_path / "ids", ("mira vael",), GENRES)
    words = [
        "--hps=small_labelled_prior", *SIZES, *PRESETS["small_labelled_prior"], "--steps=2", f"--ids_dir={ids}",
        f"--codes={made / 'codes'}", f"--local_logdir={tmp_path}", "--name=two",
    ]  # fmt: skip
    said = run_mpi(2, ["jukebox/train.py", *words])
    assert said.code == 0, said.err
    assert said.err.count("artist 'mira vale' is not in") == said.err.count("artist 'otto fern' is not in") == 1


def test_other_artists_and_genres(prior, made, tmp_path):
    """A trained prior goes on with one artist renamed, two added and a genre left out: ids keep their vectors, new ones
    begin as unknown, everything else is as it was."""
    base = prior("base", "small_labelled_prior", "--steps=8", "--save_iters=8")
    ids = tables(tmp_path / "ids", ("nora quill", "otto fern", "new one", "another"), GENRES[:2])
    more = ("--steps=9", "--lr=1e-12", f"--restore_prior={base.folder}", f"--ids_dir={ids}", "--y_bins=3,5")
    run = prior("tuned", "small_labelled_prior", *more)
    assert list(run.losses()) == [9]
    before, after = base.read(), run.read()
    artists, genres = "y_emb.artist_emb.emb.weight", "y_emb.bow_genre_emb.emb.weight"
    torch.testing.assert_close(after.model[artists][:3], before.model[artists])
    torch.testing.assert_close(after.model[artists][3:], before.model[artists][:1].expand(2, -1))
    torch.testing.assert_close(after.model[genres], before.model[genres][:3])
    same = before.model.keys() - {artists, genres}
    assert after.model.keys() == before.model.keys()
    for name in same:
        torch.testing.assert_close(after.model[name], before.model[name])
    assert after.hps["y_bins"] in ([3, 5], (3, 5)) and after.hps["ids_dir"] == str(ids)
    again = prior("tuned", "small_labelled_prior", *more[1:], "--steps=11")  # and it goes on from itself
    assert max(again.losses()) == 11
