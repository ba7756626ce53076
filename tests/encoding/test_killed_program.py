"""Rows P3, D2, D7, S12: the program killed, starved and started twice, with the number of processes changed.

These start real processes, seconds each: what they show cannot be shown otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jukebox.codestore.store import CodeStore
from jukebox.errors import StoreError
from jukebox.files import RunLock

Run = Callable[..., Any]
SHARDS = 3


@pytest.fixture(scope="module")
def flags(songs: Path, tiny_run: Path) -> list[str]:
    return [f"--restore_vqvae={tiny_run}", f"--audio_files_dir={songs}", f"--shards={SHARDS}", "--device=cpu"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pre_encode: Run, flags: list[str]) -> Path:
    """The store that nothing interrupted, made by two processes."""
    root = tmp_path_factory.mktemp("whole") / "s"
    ran = pre_encode([*flags, f"--output-path={root}"], ranks=2)
    assert ran.code == 0, ran.err
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """Where a store is to be made; the scan of the songs is there already."""
    for index in whole.parent.glob(".audio_index-*"):
        shutil.copy(index, tmp_path)
    return tmp_path / "s"


class Finished:
    """Watches that no finished item, one with array and metadata on every level, is ever written again."""

    def __init__(self, root: Path) -> None:
        self.root, self.seen = root, {}

    def check(self) -> int:
        """How many items are finished now."""
        for path in self.root.glob("level_0/*/*.npy"):
            place = path.relative_to(self.root / "level_0")
            arrays = [self.root / f"level_{level}" / place for level in range(3)]
            if all(array.exists() and array.with_suffix(".json").exists() for array in arrays):
                states = [(array.stat().st_ino, array.stat().st_mtime_ns) for array in arrays]
                assert self.seen.setdefault(place, states) == states, f"{place} was encoded again"
        return len(self.seen)


# point, passage, processes: ranks count their own passages. After a rank is killed the other works on until the launcher
# ends it, and may finish all of its shards: only the first point of a list may name a rank.
NAMED = [
    ("publish.before_write:1", 1), ("publish.before_fsync:4:rank=1", 2), ("store.after_npy:2", 1),
    ("publish.before_replace:6", 1), ("store.after_json:3", 2), ("encode.after_song:1", 0),
    ("publish.after_replace:5", 3), ("store.before_details:2", 1),
]  # fmt: skip
QUICK = [NAMED[i] for i in (1, 2, 4, 5, 7)]


def survive(root: Path, faults: list[tuple[str, int]], pre_encode: Run, flags: list[str]) -> list[int]:
    finished, counts = Finished(root), []
    for fault, ranks in faults:
        ran = pre_encode([*flags, f"--output-path={root}"], ranks=ranks, fault=fault)
        assert ran.code != 0, f"{fault} never struck"
        counts.append(finished.check())
        with pytest.raises(StoreError):
            CodeStore.open(root)
    ran = pre_encode([*flags, f"--output-path={root}"])
    assert ran.code == 0, ran.err
    finished.check()
    return counts


def test_p3_killed_at_named_points_it_encodes_nothing_twice_and_ends_equal(root, whole, tree, pre_encode, flags):
    counts = survive(root, QUICK, pre_encode, flags)
    assert counts == sorted(counts) and counts[-1] == 7
    assert tree(root) == tree(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(len(NAMED)))
def test_p3_every_named_point_first(root, whole, tree, pre_encode, flags, first):
    survive(root, [NAMED[first]], pre_encode, flags)
    assert tree(root) == tree(whole)


def ranks_of(pid: int) -> list[int]:
    """The processes below a launcher that run Python; none for a program without one."""
    found = []
    with contextlib.suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            name = os.readlink(f"/proc/{child}/exe")
            found += [child] if "python" in Path(name).name else ranks_of(child)
    return found


def kill_at_random(
    root: Path, flags: list[str], moment: random.Random, ranks: int, mpiexec: str, program: Path
) -> bool:
    """Start, wait until something happens in the store, then a moment more, and kill the launcher or one of its ranks.

    Whether it was still at work.
    """
    before = len(list(root.rglob("*")))
    launcher = [mpiexec, "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, str(program), *flags, f"--output-path={root}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    struck = False
    try:
        deadline = time.monotonic() + 200
        while process.poll() is None and len(list(root.rglob("*"))) == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moment.random() * 0.3)
        struck = process.poll() is None
        if struck:
            os.kill(moment.choice([process.pid, *ranks_of(process.pid)]), signal.SIGKILL)
            process.wait(timeout=30)
    finally:
        process.kill()
        process.wait(timeout=20)
        time.sleep(2 if ranks else 0)  # ranks leave with their launcher
    return struck


def random_kills(
    count: int, root: Path, whole: Path, tree: Any, pre_encode: Run, flags: list[str], mpiexec: str, program: Path
) -> None:
    """Kill so often; a store that gets finished meanwhile is compared, and another one begun."""
    moment, finished, struck = random.Random(count), Finished(root), 0
    while struck < count:
        ranks = moment.choice([0, 0, 2, 3])
        struck += kill_at_random(root, flags, moment, ranks, mpiexec, program)
        finished.check()
        if all((root / f"level_{level}" / "details.json").exists() for level in range(3)):
            assert tree(root) == tree(whole)
            shutil.rmtree(root)
            finished = Finished(root)
    ran = pre_encode([*flags, f"--output-path={root}"], ranks=2)
    assert ran.code == 0, ran.err
    finished.check()
    assert tree(root) == tree(whole)


def test_p3_five_random_kills(root, whole, tree, pre_encode, flags, mpiexec, jukebox_root):
    random_kills(5, root, whole, tree, pre_encode, flags, mpiexec, jukebox_root / "jukebox" / "pre_encode.py")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_p3_twenty_random_kills(root, whole, tree, pre_encode, flags, mpiexec, jukebox_root):
    random_kills(20, root, whole, tree, pre_encode, flags, mpiexec, jukebox_root / "jukebox" / "pre_encode.py")


def test_d2_a_full_disk_leaves_nothing_half_written_and_is_taken_up_again(root, whole, tree, pre_encode, flags):
    """A limit on the size of files stands for the full disk: the arrays of the finest level do not fit."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import runpy;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    entry = Path(__file__).parents[2] / "jukebox" / "pre_encode.py"
    ran = subprocess.run(
        [sys.executable, "-c", program, str(entry), *flags, f"--output-path={root}"], capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "No space" in ran.stderr or "Cannot write" in ran.stderr
    assert not [path for path in root.rglob("*") if path.name.startswith(".tmp")]
    assert pre_encode([*flags, f"--output-path={root}"]).code == 0
    assert tree(root) == tree(whole)


def test_d7_a_flipped_bit_is_found_and_only_that_item_made_again(
    whole, tree, tmp_path, pre_encode, flags, run_mpi, jukebox_root
):
    root = tmp_path / "s"
    shutil.copytree(whole, root, copy_function=shutil.copy2)
    for index in whole.parent.glob(".audio_index-*"):
        shutil.copy(index, tmp_path)
    hurt = sorted((root / "level_1" / "0").glob("*.npy"))[0]
    data = bytearray(hurt.read_bytes())
    data[-1] ^= 1
    hurt.write_bytes(data)
    codes = [jukebox_root / "jukebox" / "codes.py", "verify", root]
    ran = run_mpi(0, codes)
    assert ran.code == 1 and hurt.name in ran.out and "expected" in ran.out
    assert run_mpi(0, [*codes, "--repair"]).code == 0
    others = {path: path.stat().st_mtime_ns for path in root.glob("level_*/*/*.npy")}
    assert pre_encode([*flags, f"--output-path={root}"]).code == 0
    assert all(path.stat().st_mtime_ns == state for path, state in others.items())
    assert tree(root) == tree(whole)


def test_s12_a_second_program_on_the_same_store_is_refused(root, pre_encode, flags):
    root.mkdir()
    with RunLock(root):
        ran = pre_encode([*flags, f"--output-path={root}"])
    assert ran.code == 1 and "Traceback" not in ran.err and str(root) in ran.err
    assert not (root / "plan.json").exists()


def test_nodes_without_a_launcher_end_with_the_command_to_type(pre_encode, flags, tmp_path):
    ran = pre_encode([*flags, f"--output-path={tmp_path / 's'}", "--num-nodes=4"])
    assert (
        ran.code == 2
        and f"mpiexec -n 4 -ppn 1 -hosts HOST1,HOST2,HOST3,HOST4 python jukebox/pre_encode.py {flags[0]}" in ran.err
    )
    assert not (tmp_path / "s").exists()


def test_nodes_with_a_launcher_must_match_and_a_strategy_does_nothing(pre_encode, flags, root):
    ran = pre_encode([*flags, f"--output-path={root}", "--num-nodes=2"], ranks=1)
    assert ran.code == 2 and "the launcher started this on 1 machine(s)" in ran.err
    ran = pre_encode([*flags, f"--output-path={root}", "--num-nodes=1", "--strategy=ddp"], ranks=1)
    assert ran.code == 0 and "--strategy=ddp: accepted for old commands, without any effect" in ran.err
    assert json.loads((root / "level_0" / "details.json").read_text())["args"]["strategy"] == "ddp"


@pytest.mark.slow
def test_torchrun_makes_the_same_store(root, whole, tree, flags, jukebox_root):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*launcher, str(jukebox_root / "jukebox" / "pre_encode.py"), *flags, f"--output-path={root}"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert tree(root) == tree(whole)
