"""Wrong data, wrong checkpoints, wrong keys: one clear message, nothing half written."""

import pytest
import torch

from jukebox.errors import CheckpointError, DataError, HparamsError, UsageError, UserError, WriteFailed


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.fixture
def refused(train, run_at):
    """`refused(error, text, flags...)`: the run is refused with this text, before it has a checkpoint or figures."""

    def check(error, text, *more, **kind):
        with pytest.raises(error, match=text) as caught:
            train(0, "refused", "--steps=1", *more, **kind)
        assert isinstance(caught.value, UserError)
        left = {path.name for path in run_at("refused").folder.glob("**/*")}
        assert left <= {"LOCK", "bad_files.tsv"}
        return str(caught.value)

    return check


def test_data_folders(refused, tmp_path):
    refused(DataError, "/nowhere is not a folder", audio="/nowhere")
    (tmp_path / "empty").mkdir()
    assert "wav" in refused(DataError, "empty holds no sound file", audio=tmp_path / "empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("words")
    refused(DataError, r"no sound file \(1 .txt\)", audio=tmp_path / "texts")
    (tmp_path / "texts/b.wav").write_text("<html>404</html>")
    assert "b.wav: not a sound file but a web page" in refused(DataError, "none of 1", audio=tmp_path / "texts")
    refused(DataError, "too short|length", "--sample_length=1024000")


def test_keys_and_lengths(refused, tmp_path):
    refused(HparamsError, "Did you mean --width", "--widht=8")
    refused(HparamsError, "tiny_vqvea", "--hps=tiny_vqvea")
    refused(UsageError, "less than one code of the top level", "--sample_length=16")
    refused(UsageError, "too short for the spectral losses", "--sample_length=1024")
    refused(UsageError, "--codes is for priors", "--codes=somewhere")
    refused(UsageError, "--audio_files_dir is missing", audio="")
    refused(UsageError, "not a plain path below", "--local_logdir=/tmp", "--name=../outside")
    (tmp_path / "file").touch()
    refused(WriteFailed, "Cannot make the run's folder", f"--local_logdir={tmp_path / 'file'}")
    refused(UsageError, "--test alone measures a trained net", "--test")
    refused(UsageError, "--aug_blend mixes left and right", "--channels=1", "--aug_blend")
    refused(UsageError, "apex.optimizers has no FusedAdam here. apex_optional", "--optimizer=apex")


def test_a_stranger_for_a_checkpoint(refused, tmp_path):
    file, target = tmp_path / "checkpoint.pth.tar", tmp_path / "payload"
    refused(CheckpointError, "no such checkpoint", f"--restore_vqvae={file}")
    file.write_text("<!doctype html><title>404</title>")
    refused(CheckpointError, "web page|HTML", f"--restore_vqvae={file}")
    torch.save({"model": {"a": torch.zeros(100)}, "step": 1}, file)
    refused(CheckpointError, "another net: lacks", f"--restore_vqvae={file}")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(CheckpointError, "truncated|cut short|damaged", f"--restore_vqvae={file}")
    file.write_bytes(b"")
    refused(CheckpointError, "empty", f"--restore_vqvae={file}")
    for zipped in (False, True):
        bomb = {"model": {"a": torch.zeros(1)}, "opt": Bomb(target)}
        torch.save(bomb, file, _use_new_zipfile_serialization=zipped)
        refused(CheckpointError, "refused", f"--restore_vqvae={file}")
    assert not target.exists(), "nothing in it was run"


def test_other_hyperparameters(train, run_at):
    run = train(0, "run", "--steps=1")
    before = {path: path.read_bytes() for path in run.folder.glob("checkpoint*")}
    with pytest.raises(CheckpointError) as caught:
        train(0, "run", "--steps=2", "--width=16", "--l_bins=32", "--lr=0.1")
    lines = str(caught.value).splitlines()
    assert lines[1:3] == [
        "  width: 8 in the checkpoint / 16 asked for",
        "  l_bins: 24 in the checkpoint / 32 asked for",
    ]
    assert lines[3] == (
        "The first tensor that does not fit: encoders.0.level_blocks.0.model.0.0.weight has the shape (8, 1, 16), this net "
        "needs (16, 1, 16)."
    )
    assert f"--hps={run.folder / 'hps.toml'}" in lines[4] and len(lines) == 5
    assert "lr" not in str(caught.value).split("--hps")[0]
    assert before == {path: path.read_bytes() for path in run.folder.glob("checkpoint*")}
    assert "\nwidth = 8 " in (run.folder / "hps.toml").read_text(), "what the run was made with still stands there"
