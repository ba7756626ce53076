"""After a kill at any point there is a whole file under the final name, and the same command goes on (row P2)."""

from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("publish_program.py")
POINTS = ["before_write", "before_fsync", "before_replace", "after_replace"]
STEPS = 40


def _check(folder, newest=None):
    whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] not in ".L"}
    for name, data in whole.items():
        assert len(data) == 400_000 and data == data[:8] * 50_000, f"{name} is torn"
        assert name in ("latest", f"step_{int(data[:8])}")
    if newest:
        assert sorted(whole) == sorted(["latest", f"step_{newest}", f"step_{newest - 1}"])


# In each step: passages 2k-1 of a point for the step's file, 2k for the second name of the newest.
@pytest.mark.parametrize("passage", [1, 2, 5, 6])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_every_point(job, tmp_path, point, passage):
    command = job(0, [PROGRAM, tmp_path, 5])
    assert command.at_fault(f"publish.{point}:{passage}") == -9
    _check(tmp_path)
    done = (passage - 1) // 2 + (passage % 2 == 0 and point == "after_replace")
    assert (tmp_path / "latest").exists() == (done > 0)
    temps = len(list(tmp_path.glob(".tmp-*")))
    assert temps == (point in ("before_fsync", "before_replace"))
    assert command.to_the_end() == f"{done}\n"  # no finished step is done again
    _check(tmp_path, newest=5)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_kill_while_pruning(job, tmp_path):
    command = job(0, [PROGRAM, tmp_path, 5])
    assert command.at_fault("program.before_prune:4") == -9
    _check(tmp_path)
    assert command.to_the_end() == "4\n"


def test_kills_at_any_moment(job, tmp_path):
    command = job(0, [PROGRAM, tmp_path, STEPS])
    for delay_sec in (0.06, 0.1, 0.13, 0.17, 0.2, 0.24, 0.3):
        command.killed_after(delay_sec)
        _check(tmp_path)
    command.to_the_end()
    _check(tmp_path, newest=STEPS)


def test_a_fault_can_be_of_one_rank(job, tmp_path):
    command = job(0, [PROGRAM, tmp_path, 2])
    assert command.at_fault("publish.before_write:1:rank=1") == 0
    assert command.at_fault("program.before_prune:1:rank=0") == 0  # nothing left to do
