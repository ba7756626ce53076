"""Priors, from audio and from a store: the same training, in every precision."""

import json
import math

import pytest
import torch

from jukebox.errors import CheckpointError, StoreError, UsageError
from jukebox.training.optim import FusedAdam

TOP, LOWER = ("--level=1",), ("--level=0", "--cond_width=8", "--cond_depth=1")
HALF = ("--fp16", "--fp16_params", "--fp16_opt", "--fp16_scale_window=10", "--cpu_ema", "--cpu_ema_freq=2")


@pytest.fixture
def prior(train, made, small):
    def do(name, *more, stored=True, n=0):
        if stored:
            return train(n, name, f"--codes={made / 'codes'}", *more, net=small.prior, audio="")
        where = (
            () if any(word.startswith("--restore_vqvae=") for word in more) else (f"--restore_vqvae={made / 'vqvae'}",)
        )
        return train(n, name, *where, *more, net=small.prior)

    return do


@pytest.mark.parametrize("level", [TOP, LOWER], ids=["top", "upsampler"])
def test_from_store_and_from_audio(prior, level):
    """Codes made on the fly and stored ones train alike; at a song's edge a chunk may be coded otherwise than a song."""
    more = ("--steps=8", "--train_test_split=1", *level)
    stored, fresh = prior("stored", *more).losses(), prior("fresh", *more, stored=False).losses()
    assert stored.keys() == fresh.keys() == set(range(1, 9))
    for step in stored:
        assert stored[step] == pytest.approx(fresh[step], rel=0.02)
    assert stored[1] == pytest.approx(math.log2(24), rel=0.25), "an untrained net guesses"


@pytest.mark.parametrize("level", [(*TOP, "--n_ctx=128"), (*LOWER, "--n_ctx=256")], ids=["top", "upsampler"])
def test_held_out_loss_from_codes_is_that_of_the_fly_within_a_hundredth(prior, level):
    """Equal steps, equal windows: only at the edges of a chunk are codes others than in the middle of a song."""
    more = ("--steps=80", "--eval_iters=80", "--train_test_split=0.7", "--blocks=8", "--aug_shift=False", *level)
    (learnt, stored), (_, fresh) = (prior(name, *more, stored=name == "stored").rows() for name in ("stored", "fresh"))
    assert stored[-1]["step"] == fresh[-1]["step"] == 80
    assert stored[-1]["test_loss"] == pytest.approx(fresh[-1]["test_loss"], rel=0.01)
    assert sum(row["loss"] for row in learnt[-10:]) < 9.9 * learnt[0]["loss"]


def test_two_ranks_from_a_store(prior):
    two = prior("two", "--steps=10", "--eval_iters=5", *TOP, n=2).rows()
    one = prior("one", "--steps=10", "--eval_iters=5", "--bs=2", *TOP).rows()
    for mine, other in zip(one[0], two[0], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for mine, other in zip(one[1], two[1], strict=True):
        assert mine["test_loss"] == pytest.approx(other["test_loss"], rel=1e-5)
        assert mine["test_unigram"] == pytest.approx(other["test_unigram"], rel=1e-6)


def test_half_precision(prior, same):
    """all_fp16 and cpu_ema: half weights, half moments, a loss scale that grows; a restart is exact."""
    run = prior("half", "--steps=8", *HALF, *TOP)
    found = run.read()
    halves = [name for name, tensor in found.model.items() if tensor.dtype == torch.float16]
    assert halves and all("transformer" in name for name in halves)
    assert {state["exp_avg"].dtype for state in found.opt["state"].values()} == {torch.float16, torch.float32}
    scales = [row["lg_loss_scale"] for row in run.rows()[0]]
    assert scales[-1] > scales[0]
    prior("pieces", "--steps=4", *HALF, *TOP)
    pieces = prior("pieces", "--steps=8", *HALF, *TOP).read().extra["players"]["main"]
    straight = found.extra["players"]["main"]
    assert all(torch.equal(straight["raw"][name], tensor) for name, tensor in pieces["raw"].items())
    assert all(torch.equal(straight["ema"][name], tensor) for name, tensor in pieces["ema"].items())
    assert pieces["scaler"] == straight["scaler"]


def test_what_is_heard(prior, events):
    """Inputs and outputs at every checkpoint, a sample at every demo, from a store too."""
    tags = events(prior("run", "--steps=2", "--save_iters=1", "--demo_iters=2", "--max_log=1", *TOP)).Tags()["audio"]
    assert set(tags) == {"0/train_x_out", "0/x_ds_start_1", "0/sample_x_T1"}
    more = ("--steps=2", "--save_iters=1", "--demo_iters=2", "--eval_iters=2", "--max_log=1")
    tags = events(prior("audio", *more, *LOWER, stored=False)).Tags()["audio"]
    heard = {f"0/{part}_x_{end}" for part in ("train", "test") for end in ("in", "out")}
    assert set(tags) == heard | {"0/x_ds_start_0", "0/sample_x_T1"}


def test_labels_and_lyrics(prior, songs, events, tmp_path):
    """A prior that reads lyrics: both losses fall, labels and alignment can be looked at."""
    rows = [{"file": f"{n}.wav", "artist": "mira vale", "genre": "tin gallop", "lyrics": "la " * 9} for n in range(6)]
    table = tmp_path / "songs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prior(
        "sung", "--steps=12", "--save_iters=12", "--labels", "--labels_v3", "--y_bins=5,5", "--max_bow_genre_size=1",
        "--t_bins=8", "--min_duration=1", "--max_duration=60", "--use_tokens", "--n_tokens=16", "--n_vocab=79",
        "--single_enc_dec", "--prime_loss_fraction=0.4", "--attn_order=12", "--prior_depth=16", "--heads=2",
        "--alignment_layer=15", "--alignment_head=1", f"--metadata={table}", *TOP, stored=False,
    )  # fmt: skip
    losses = run.rows()[0]
    for name in ("prime_loss", "gen_loss"):
        assert losses[-1][name] < losses[0][name]
    found = events(run)
    (text,) = (event.tensor_proto.string_val[0].decode() for event in found.Tensors("train_y_in/text_summary"))
    assert "mira vale / tin gallop /" in text and "la la" in text
    (picture,) = found.Images("train_alignment")
    assert (picture.width, picture.height) == (16, 16)


def test_fine_tuning_and_wrong_checkpoints(prior, made, run_at):
    base = prior("base", "--steps=3", *TOP)
    assert list(prior("tuned", "--steps=4", f"--restore_prior={base.folder}", *TOP).losses()) == [4]
    with pytest.raises(CheckpointError, match="level: 1 in the checkpoint / 0 asked for"):
        prior("base", "--steps=4", *LOWER)
    with pytest.raises(CheckpointError, match="n_ctx: 16 in the checkpoint / 32 asked for"):
        prior("other", "--steps=4", "--n_ctx=32", f"--restore_prior={base.folder}", *TOP)
    with pytest.raises(CheckpointError, match="is a VQ-VAE, and this run trains a prior"):
        prior("other", "--steps=4", f"--restore_prior={made / 'vqvae'}", *TOP)
    with pytest.raises(UsageError, match="the levels of this VQ-VAE are 0 to 1"):
        prior("other", "--level=2")


def test_codes_of_another_vqvae(prior, made, train, run_at):
    """Of other hyperparameters, or of the same and trained apart: both are refused, both sides named."""
    other = train(0, "other", "--steps=1", "--seed=5")
    with pytest.raises(StoreError, match=r"codes: was made by model \w+, this is model \w+"):
        prior("run", "--steps=1", f"--restore_vqvae={other.folder}", *TOP)
    heard = prior("heard", "--steps=1", *TOP, stored=False)
    with pytest.raises(CheckpointError, match=r"on the codes of VQ-VAE \w+, and these are of VQ-VAE \w+"):
        prior("heard", "--steps=2", f"--restore_vqvae={other.folder}", *TOP, stored=False)
    assert heard.read().step == 1
    with pytest.raises(CheckpointError, match="l_bins: 24 in the checkpoint / 32 asked for"):
        prior("run", "--steps=1", "--l_bins=32", *TOP)
    with pytest.raises(CheckpointError, match="is a prior. --restore_vqvae names the VQ-VAE"):
        base = prior("base", "--steps=1", *TOP)
        train(0, "run", f"--restore_vqvae={base.folder}", "--prior", "--hps=tiny_prior", "--n_ctx=16", net=())
    assert not list(run_at("run").folder.glob("checkpoint*"))


def test_apex_gives_the_same(prior, monkeypatch):
    """With an `apex.optimizers` that updates as Apex's kernel does: eps beside the corrected root, decay by lr alone."""
    import sys
    import types

    class TheirAdam(torch.optim.AdamW):
        def __init__(self, params, lr, betas, eps, weight_decay, adam_w_mode):
            assert adam_w_mode
            super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = TheirAdam
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    more = ("--weight_decay=0.1", "--eps=1e-3", "--lr_warmup=2", *TOP)
    ours = prior("ours", "--steps=10", *more).losses()
    prior("theirs", "--steps=5", "--optimizer=apex", *more)
    theirs = prior("theirs", "--steps=10", "--optimizer=apex", *more)
    assert theirs.losses() == {step: pytest.approx(loss, rel=1e-5) for step, loss in ours.items()}
    restored = FusedAdam([torch.nn.Parameter(t) for t in theirs.read().extra["players"]["main"]["raw"].values()])
    assert {state["step"] for state in theirs.read().opt["state"].values()} == {10} and restored
