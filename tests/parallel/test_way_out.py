"""However one rank leaves, all are gone within seconds, and the terminal says why (rows P6 and P7)."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("way_out_program.py")
MOST_SEC = 10

# way: exit code, how stderr begins
ONE_RANK = {
    "exception": (1, "[rank 1] ValueError: the\\x1b[31m cause (during step 7)\nTraceback"),
    "exception in a thread": (1, "[rank 1] IndexError: list index out of range (during step 7)\nTraceback"),
    "user error": (1, "[rank 1] x.wav is silent.\n"),
    "sys.exit(3)": (3, "[rank 1] left with exit code 3 while others went on"),
    "sys.exit(0)": (1, "[rank 1] left with exit code 0 while others went on"),
    "sys.exit(text)": (1, "that is all\n[rank 1] left with exit code 1 while others went on"),
    "interrupt": (130, "[rank 1] left with exit code 130 while others went on"),
    "usage error on one": (2, "[rank 1] --hps=mine: no such preset on this machine.\n"),
}


@pytest.fixture(scope="module")
def left(run_mpi):
    """All those ways, tried side by side: they mostly wait."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(ONE_RANK, pool.map(lambda way: run_mpi(2, [PROGRAM, way]), ONE_RANK), strict=True))


@pytest.mark.parametrize("way", ONE_RANK)
def test_one_rank_ends_all(left, way):
    code, begins = ONE_RANK[way]
    ran = left[way]
    assert ran.err.startswith(begins), ran.err
    assert ran.code == code
    assert ran.seconds < MOST_SEC
    if "Traceback" not in begins:
        assert "Traceback" not in ran.err


def test_a_killed_rank_ends_all(run_mpi):
    ran = run_mpi(2, [PROGRAM, "SIGKILL"])
    assert ran.code != 0
    assert ran.seconds < MOST_SEC


@pytest.mark.parametrize(
    ("way", "n", "code", "out", "err"),
    [
        ("usage error on all", 2, 2, "", "--foo is not known.\nDid you mean --food?\n"),
        ("user error on all", 3, 1, "", "song 0.wav is silent.\n[rank 2] song 1.wav is silent.\n"),
        ("agreed stop", 2, 143, "", ""),
        ("end", 2, 0, "rank 0 ends\nrank 1 ends\n", ""),
        ("help", 2, 0, "usage\nusage\n", ""),
    ],
)
def test_all_leave_together(run_mpi, way, n, code, out, err):
    """In order, with one message, and without the noise of an abort."""
    ran = run_mpi(n, [PROGRAM, way])
    assert (ran.code, ran.out, ran.err) == (code, out, err)
    assert ran.seconds < MOST_SEC


def test_a_report_is_left_in_the_run_folder(run_mpi, tmp_path):
    run_mpi(2, [PROGRAM, "exception", tmp_path])
    assert [path.name for path in (tmp_path / "errors").iterdir()] == ["rank1.json"]
    report = json.loads((tmp_path / "errors" / "rank1.json").read_text())
    assert report["rank"] == 1
    assert report["phase"] == "step 7"
    assert report["cause"].startswith("ValueError: the")
    assert "misbehave" in "".join(report["traceback"])


SIGNALS = """
import os, signal, sys, time
from jukebox.parallel import launch

def main():
    assert not launch.stop_requested()
    child = os.fork()
    if child == 0:
        time.sleep(5)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM, "a loader worker must die of it"
    assert not launch.stop_requested(), "a signal to a child is not for us"
    print("ready", flush=True)
    while not launch.stop_requested():
        time.sleep(0.01)
    print("saved", flush=True)
    time.sleep(float(sys.argv[1]))
    return launch.stop_code()

launch.guard(main)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_one_signal_asks_and_two_insist(jukebox_root, number, code):
    for pause_sec in ("0", "60"):
        command = [sys.executable, "-c", SIGNALS, pause_sec]
        with subprocess.Popen(
            command, cwd=jukebox_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as job:
            assert job.stdout.readline() == "ready\n", job.stderr.read()
            job.send_signal(number)
            assert job.stdout.readline() == "saved\n"
            if pause_sec != "0":
                with pytest.raises(subprocess.TimeoutExpired):
                    job.wait(0.7)
                job.send_signal(number)
            assert job.wait(5) == code
            assert job.stderr.read().startswith(f"{number.name}: stopping")


def test_a_program_that_never_asks_can_be_interrupted(jukebox_root):
    program = "from jukebox.parallel import launch; import time; launch.guard(lambda: print('on', flush=True) or time.sleep(60))"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=jukebox_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        job.stdout.readline()
        job.send_signal(signal.SIGINT)
        assert job.wait(5) == 130
        assert job.stderr.read() == "Interrupted.\n"


def test_a_closed_pipe_is_no_fault(jukebox_root):
    program = (
        "from jukebox.parallel import launch; launch.guard(lambda: [print('x' * 80) for _ in range(9999)] and None)"
    )
    ran = subprocess.run(
        f"set -o pipefail; {sys.executable} -c \"{program}\" | head -1", cwd=jukebox_root, shell=True, executable="/bin/bash",
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (141, "")
