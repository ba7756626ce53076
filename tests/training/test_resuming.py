"""A run that was killed, stopped or lengthened goes on as if nothing had happened: bit-equal on the same ranks."""

import logging
import re

import pytest

from jukebox.errors import CheckpointError, OutOfSpace, UsageError
from jukebox.models import checkpoint
from jukebox.training.player import Player

STEPS = ("--steps=7", "--save_iters=2", "--aug_shift", "--aug_blend", "--keep=2")


@pytest.fixture
def whole(train):
    return train(0, "whole", *STEPS)


# A checkpoint passes each point of a whole write three times: file, digest, second name.
@pytest.mark.parametrize(
    ("fault", "steps_there"),
    [
        ("checkpoint.before_write:1", []),
        ("checkpoint.before_write:2", [2]),
        ("checkpoint.between_step_and_latest:2", [2, 4]),
        ("checkpoint.while_pruning:1", [2, 4, 6]),
    ],
)
def test_killed_around_a_checkpoint(train, killed, run_at, whole, same, fault, steps_there):
    killed(fault, "run", *STEPS)
    assert run_at("run").steps_kept() == steps_there
    run = train(0, "run", *STEPS)
    same(run, whole)
    assert run.steps_kept() == whole.steps_kept() == [6, 7]
    assert list(run.losses()) == list(range(1, 8)), "no step twice, none missing"
    assert run.losses() == whole.losses()
    assert not list(run.folder.glob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("passage", range(1, 16))
@pytest.mark.parametrize("point", ["before_write", "before_fsync", "before_replace", "after_replace"])
def test_killed_at_every_point_of_every_write(train, killed, whole, same, run_at, point, passage):
    killed(f"publish.{point}:{passage}", "run", *STEPS)
    kept = run_at("run").steps_kept()
    if kept:
        assert checkpoint.read(run_at("run").folder).step in kept
    same(train(0, "run", *STEPS), whole)


def test_lengthened(train, whole, same, caplog):
    """With EMA on the host, several batches per step and held-out measurements in between."""
    more = ("--cpu_ema", "--cpu_ema_freq=3", "--iters_before_update=2", "--eval_iters=3", "--save_iters=100")
    straight = train(0, "straight", "--steps=8", *more)
    train(0, "pieces", "--steps=3", *more)
    train(0, "pieces", "--steps=5", *more)
    pieces = train(0, "pieces", "--steps=8", *more)
    a, b = straight.read(), pieces.read()
    assert a.step == b.step == 8 and a.extra["batch"] == 16
    for name, tensor in a.extra["players"]["main"]["raw"].items():
        assert tensor.equal(b.extra["players"]["main"]["raw"][name])
    assert straight.losses() == pieces.losses()
    assert [row["step"] for row in pieces.rows()[1]] == [3, 6]
    assert straight.losses() != whole.losses()


def test_another_number_of_ranks(train, run_at, caplog):
    """One process with two songs a step goes on where two with one each were: 2 -> 1, the losses within 1e-5."""
    wanted = train(0, "one", "--steps=8", "--bs=2").losses()
    train(2, "both", "--steps=4", "--save_iters=4")
    found = train(0, "both", "--steps=8", "--bs=2").losses()
    assert found == {step: pytest.approx(loss, rel=1e-5) for step, loss in wanted.items()}
    train(0, "both", "--steps=9", "--bs=3")
    assert "a step now takes 3 items over all processes, before it took 2" in caplog.text


def test_a_full_disk_is_survived_twice(train, run_at, whole, same, monkeypatch, caplog):
    from jukebox import files

    free, asked = files.disk_free_bytes, []

    def nothing_free(folder):
        asked.append(folder)
        return 38_000_000 if len(asked) > 2 else 1000

    monkeypatch.setattr(files, "disk_free_bytes", nothing_free)
    run = train(0, "run", *STEPS)
    assert run.steps_kept() == [6, 7]
    same(run, whole)
    assert re.search(
        r"No space for checkpoint_step_2.pth.tar: needs 1\.\d MB, 1\.0 kB free on /.* --keep=1", caplog.text
    )
    assert "Training goes on; the next try is 2 steps away." in caplog.text

    train(0, "full", "--steps=2", "--save_iters=2")
    monkeypatch.setattr(files, "disk_free_bytes", lambda folder: 1000)
    with pytest.raises(OutOfSpace, match="checkpoint_step_8"):
        train(0, "full", "--steps=20", "--save_iters=2")
    monkeypatch.setattr(files, "disk_free_bytes", free)
    assert run_at("full").read().step == 2, "the last good one stands"
    assert train(0, "full", "--steps=3").steps_kept() == [2, 3]


def test_a_full_disk_under_logs_only(train, whole, same, monkeypatch, caplog):
    from jukebox.files import Appender

    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Appender, "append", full)
    same(train(0, "run", *STEPS), whole)
    assert caplog.text.count("Figures cannot be written") == 1


def test_a_damaged_newest_checkpoint(train, run_at, whole, same, caplog):
    train(0, "run", *STEPS)
    newest = run_at("run").folder / "checkpoint_step_7.pth.tar"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    same(train(0, "run", *STEPS), whole)
    assert "damaged checkpoint, falling back to the one before it" in caplog.text


def test_resume_flag(train, run_at, caplog, same):
    train(0, "first", "--steps=2")
    with pytest.raises(UsageError, match="has checkpoints already"):
        train(0, "first", "--steps=2", "--resume=never")
    train(0, "second", "--steps=4", f"--resume={run_at('first').folder}")
    same(train(0, "first", "--steps=4"), run_at("second"))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        train(0, "third", "--resume=nothing/here.pth.tar")


def test_fine_tuning(train, run_at, tmp_path):
    """Another run's checkpoint is gone on from, in its step count too; a file of weights alone begins at step 0."""
    import torch

    train(0, "base", "--steps=3")
    tuned = train(0, "tuned", "--steps=5", f"--restore_vqvae={run_at('base').folder}", "--weight_decay=0.01")
    assert list(tuned.losses()) == [4, 5]
    assert tuned.read().opt["param_groups"][0]["weight_decay"] == 0.01, "flags win over the file"
    base = run_at("base").read()
    published = {"hps": {}, "model": base.model, "opt": base.opt, "step": 3}
    torch.save(published, tmp_path / "published.pth.tar")
    tuned = train(0, "published", "--steps=4", f"--restore_vqvae={tmp_path / 'published.pth.tar'}")
    assert list(tuned.losses()) == [4]
    torch.save(base.model, tmp_path / "weights.pth.tar")
    tuned = train(0, "weights", "--steps=1", f"--restore_vqvae={tmp_path / 'weights.pth.tar'}", "--lr_warmup=1")
    model = tuned.read().model
    first = next(iter(base.model))
    assert torch.allclose(model[first], base.model[first], atol=1e-6), "the first step has rate 0"


def test_a_schedule_that_ends_ends_the_run(train, run_at):
    flags = ("--lr_use_linear_decay", "--lr_warmup=1", "--lr_start_linear_decay=2", "--lr_decay=3")
    run = train(0, "run", *flags)
    assert run.read().step == 5 and run.rows()[0][-1]["lr"] > 0
    before = run.read().path.stat().st_mtime_ns
    assert train(0, "run", *flags).read().path.stat().st_mtime_ns == before, "it stays ended"


def test_epochs(train):
    """Numbered from -1 as published: with --epochs=1 there are two, each measured after with --test."""
    run = train(0, "run", "--epochs=1", "--train", "--test", "--split=chunk", "--train_test_split=0.5")
    training, tests = run.rows()
    per_epoch = run.read().extra["per_epoch"]
    assert len(training) == 2 * per_epoch and [row["step"] for row in tests] == [per_epoch, 2 * per_epoch]


def test_skipped_steps_count_nowhere(train, monkeypatch):
    """A step that is not finite leaves no trace but its count."""
    sound, calls = Player.step, []

    def step(self, loss):
        calls.append(loss)
        return sound(self, loss * float("inf") if len(calls) == 3 else loss)

    monkeypatch.setattr(Player, "step", step)
    rows = train(0, "run", "--steps=4").rows()[0]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 0] and len(calls) == 5
    assert all(row["loss"] is not None for row in rows)
    logging.getLogger("jukebox").setLevel(logging.NOTSET)
