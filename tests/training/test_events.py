"""What a run leaves to look at and listen to, read back with TensorBoard's own reader."""

import io as textio
import json
import tomllib

import numpy as np
import pytest
import soundfile


def _texts(found, tag):
    return [event.tensor_proto.string_val[0].decode() for event in found.Tensors(f"{tag}/text_summary")]


def test_vqvae(train, events):
    flags = ("--save_iters=4", "--eval_iters=5", "--bs=2", "--max_log=1", "--max_len=0.1")
    train(0, "run", "--steps=5", *flags)
    run = train(0, "run", "--steps=8", *flags)
    found = events(run)
    tags = found.Tags()
    wanted = {f"{part}_x_{what}" for part in ("train", "test") for what in ("in", "out", "ds_start_0", "ds_start_1")}
    assert set(tags["audio"]) == {f"0/{tag}" for tag in wanted}, "one clip each: --max_log=1"
    assert set(tags["images"]) == {"train_x_in_over_out", "test_x_in_over_out"}
    clips = found.Audio("0/train_x_in")
    assert [clip.step for clip in clips] == [4, 8]
    sound, sr_hz = soundfile.read(textio.BytesIO(clips[0].encoded_audio_string))
    assert sr_hz == 8000 and len(sound) == 800 and np.abs(sound).max() > 0.1
    rows, tests = run.rows()
    assert [row["step"] for row in rows] == list(range(1, 9)) and [row["step"] for row in tests] == [5]
    for name in ("loss", "recons_loss", "gn", "lr", "usage", "bad_reads", "skipped", "sec_per_step"):
        scalars = found.Scalars(name)
        assert [s.step for s in scalars] == list(range(1, 9)), "each step once, over two runs"
        assert [s.value for s in scalars] == pytest.approx([row[name] for row in rows], rel=1e-6)
    assert found.Scalars("test_loss")[0].value == pytest.approx(tests[0]["test_loss"])
    assert "sample_length = 2048" in _texts(found, "hps")[0]


def test_files_of_a_run(train):
    run = train(0, "run", "--steps=1")
    train(0, "run", "--steps=2")
    hps = tomllib.loads((run.folder / "hps.toml").read_text())
    assert hps["sample_length"] == 2048 and "# command line" in (run.folder / "hps.toml").read_text()
    argv = (run.folder / "argv.txt").read_text().splitlines()
    assert len(argv) == 2 and all("--name=run" in line for line in argv)
    assert json.loads((run.folder / "env.json").read_text())["processes"] == 1
    assert run.read().hps["sample_length"] == 2048
    again = train(0, "again", f"--hps={run.folder / 'hps.toml'}", "--steps=2")
    assert again.losses() == run.losses(), "its hps.toml is a preset"


def test_dry_run_writes_nothing(train, run_at, capsys):
    train(0, "run", "--dry_run", "--steps=100")
    out = capsys.readouterr().out
    assert not run_at("run").folder.exists()
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert {"net", "step", "epoch", "memory", "checkpoint", "run"} == set(rows)
    assert "2 kept" in rows["checkpoint"] and "100 steps" in rows["run"]


def test_the_music_is_scanned_once(train, monkeypatch):
    from jukebox.audio import io

    train(0, "first", "--steps=1", "--nworkers=0")
    monkeypatch.setattr(io, "survey", None)
    train(0, "second", "--steps=1", "--nworkers=0")


def test_test_alone(train, run_at):
    run = train(0, "run", "--steps=2", "--eval_iters=2")
    wanted = run.rows()[1][-1]
    before = run.read().path.stat().st_mtime_ns
    train(0, "run", "--test")
    measured = run.rows()[1][-1]
    assert measured["test_loss"] == pytest.approx(wanted["test_loss"]) and run.read().path.stat().st_mtime_ns == before
