"""What a run says, and that saying it never ends the run (row D3)."""

import errno
import io
import json
import logging
import os
import sys
import warnings
import wave

import numpy as np
import pytest

from jukebox import runlog
from jukebox.event_file import EventFile, crc32c
from jukebox.parallel.comm import SoloComm
from jukebox.runlog import Progress, RunLog


@pytest.fixture(autouse=True)
def logging_as_before():
    root, ours, captured = logging.getLogger(), logging.getLogger("jukebox"), logging.getLogger("py.warnings")
    before = (list(root.handlers), ours.level, captured.level)
    yield
    root.handlers[:] = before[0]
    ours.setLevel(before[1])
    captured.setLevel(before[2])
    logging.captureWarnings(False)


class Second(SoloComm):
    """Stands for rank 1."""

    def __init__(self):
        super().__init__()
        self.rank = 1


def events_of(folder):
    """All events, read by TensorBoard itself, purging as it does."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance=dict.fromkeys(("scalars", "audio", "images"), 0))
    found.Reload()
    return found


# --- figures and clips ---


def test_tensorboard_reads_what_was_logged(tmp_path):
    with RunLog(tmp_path, SoloComm()) as log:
        log.scalars({"loss": 2.5, "gn": np.float32(0.5)}, 1)
        log.scalars({"loss": float("nan")}, 2)
        log.audio("0/train_x_in", np.stack([np.linspace(-2, 2, 50_000), np.zeros(50_000)], 1), 22_050, 2)
        log.audio("1/train_x_in", np.full(10, 0.5), 8_000, 2)
        log.image("picture", np.linspace(0, 1, 12).reshape(3, 4), 2)
        log.image("colours", np.zeros((5, 6, 3), np.uint8), 2)
        log.text("hps", "width <b>128</b> \udce9", 0)
        # before it is closed: a killed run is readable too
        found = events_of(tmp_path / "logs")
    assert [(e.step, e.value) for e in found.Scalars("gn")] == [(1, 0.5)]
    assert [e.step for e in found.Scalars("loss")] == [1, 2]
    stereo, mono = found.Audio("0/train_x_in")[0], found.Audio("1/train_x_in")[0]
    assert (stereo.step, stereo.sample_rate, stereo.length_frames) == (2, 22_050, 50_000)
    with wave.open(io.BytesIO(stereo.encoded_audio_string)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (2, 2, 22_050)
        samples = np.frombuffer(wav.readframes(50_000), "<i2").reshape(-1, 2)
        assert (samples[0, 0], samples[-1, 0], samples[:, 1].any()) == (-32767, 32767, False)
    with wave.open(io.BytesIO(mono.encoded_audio_string)) as wav:
        assert wav.readframes(1) == (16384).to_bytes(2, "little")
    image = pytest.importorskip("PIL.Image")
    picture = np.asarray(image.open(io.BytesIO(found.Images("picture")[0].encoded_image_string)))
    assert picture.tolist() == np.linspace(0, 255, 12).round().reshape(3, 4).tolist()
    assert image.open(io.BytesIO(found.Images("colours")[0].encoded_image_string)).size == (6, 5)
    assert found.Tensors("hps/text_summary")[0].tensor_proto.string_val[0] == b"width <b>128</b> \\udce9"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 2.5), (2, None)]


def test_a_run_that_goes_on_forgets_what_it_will_log_again(tmp_path, monkeypatch):
    with RunLog(tmp_path, SoloComm()) as log:
        for step in (1, 2, 3):
            log.scalars({"loss": step}, step)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')  # a kill
    monkeypatch.setattr("time.time", lambda: 1e9)  # row D8: the clock jumps back by years
    with RunLog(tmp_path, SoloComm(), purge_step=2) as log:
        log.scalars({"loss": 20}, 2)
    assert [(e.step, e.value) for e in events_of(tmp_path / "logs").Scalars("loss")] == [(1, 1), (2, 20)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 20)]


def test_a_full_disk_costs_figures_and_one_warning(tmp_path, monkeypatch, caplog):
    pwrite = os.pwrite

    def full(descriptor, data, offset):
        if len(data) > 100:
            return pwrite(descriptor, data[:100], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunLog(tmp_path, SoloComm()) as log:
        log.scalars({"loss": 1}, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            for step in range(2, 9):
                log.scalars({"loss": step}, step)
                log.audio("0/clip", np.zeros(1000), 8000, step)
        log.scalars({"loss": 9}, 9)
    assert [record.message for record in caplog.records] == [
        "Figures cannot be written ([Errno 28] No space left on device); the run goes on without them."
    ]
    assert [e.step for e in events_of(tmp_path / "logs").Scalars("loss")] == [1, 9]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 9]


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path, caplog):
    (tmp_path / "logs").touch()
    (tmp_path / "metrics.jsonl").mkdir()
    with RunLog(tmp_path, SoloComm()) as log:
        log.scalars({"loss": 1}, 1)
        log.text("hps", "x", 0)
    assert len(caplog.records) == 1


def test_other_ranks_write_nothing(tmp_path):
    with RunLog(tmp_path, Second()) as log:
        log.scalars({"loss": 1}, 1)
        log.audio("a", np.zeros(3), 8000, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0, 1, 100, 32767, 32768, 34816, 34817, 40_001, 300_000])
def test_checksums(length):
    reference = pytest.importorskip("tensorboardX.crc32c")
    data = np.random.default_rng(0).bytes(length)
    assert crc32c(data) == reference._crc32c(data)


def test_the_published_checksum():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720


def test_two_event_files_of_one_second_are_two(tmp_path):
    files = [EventFile(tmp_path) for _ in range(3)]
    for file in files:
        file.close()
    assert len(list(tmp_path.iterdir())) == 3


# --- messages ---


def test_rank_0_speaks_and_the_others_warn(capsys):
    log = logging.getLogger("jukebox.somewhere")

    def said(comm, quiet=False):
        runlog.setup(comm, quiet)
        log.info("reading \x1b[31m.wav")
        log.warning("two lines\nof text")
        warnings.warn_explicit("from a library", UserWarning, "lib.py", 1)
        return capsys.readouterr().err.splitlines()

    warned = ["warning: two lines", "of text", "warning: lib.py:1: UserWarning: from a library"]
    assert said(SoloComm()) == ["reading \\x1b[31m.wav", *warned]
    assert said(SoloComm(), quiet=True) == warned
    assert said(Second()) == ["[rank 1] warning: two lines", "of text"]


def test_progress_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    runlog.setup(SoloComm())
    with Progress(1000, "steps", "train", start=100) as progress:
        for _ in range(25):
            now[0] += 1
            progress.update(2)
            progress.note(loss=1.23456, audio_sec=8)
    assert capsys.readouterr().err.splitlines() == [
        "train: 122/1000 steps, loss 1.235, 8 s of audio/s, 2 steps/s, 7 min left",
        "train: 144/1000 steps, loss 1.235, 8 s of audio/s, 2 steps/s, 7 min left",
        "train: 150/1000 steps, loss 1.235, 8 s of audio/s, 2 steps/s, 7 min left",
    ]
    with Progress(None, "files", "scan") as progress:
        pass
    assert progress.line() == "scan: 0 files"
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    with Progress(3, "files", "scan") as progress:
        progress.update(3)
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    runlog.setup(SoloComm())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(10, "steps", "train", start=2) as progress:
        progress.note(loss=1.5)
        logging.getLogger("jukebox").info("saved")
        progress.update(3)
    err = capsys.readouterr().err
    assert "saved\n" in err
    assert "train:  50%" in err
    assert "5/10" in err and "loss 1.5" in err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (7200, "2.0 h"), (200_000, "2.3 days")]
)
def test_durations(seconds, text):
    assert runlog.duration_text(seconds) == text


# --- where a run comes from ---


def test_every_start_leaves_its_command(tmp_path):
    runlog.write_provenance(tmp_path, ["jukebox/train.py", "--name=my run"])
    runlog.write_provenance(tmp_path, ["jukebox/train.py", "--name=two"])
    assert (tmp_path / "argv.txt").read_text() == "jukebox/train.py '--name=my run'\njukebox/train.py --name=two\n"
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["packages"]["numpy"] == np.__version__
    assert (env["processes"], env["launcher"]) == (1, "none")


def test_a_rate_leaves_out_what_came_before_the_start(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(runlog.time, "monotonic", lambda: clock[0])
    bar = runlog.Progress(10, "code", "songs")
    clock[0] += 300  # weights are read
    bar.restart()
    clock[0] += 2
    bar.update(4)
    assert bar.line() == "songs: 4/10 code, 2 code/s, 3 s left"
    bar = runlog.Progress(None, "code", "songs")
    clock[0] += 2
    bar.update(4068)
    assert bar.line() == "songs: 4068 code, 2,030 code/s"
