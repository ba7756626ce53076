"""Row P3: killed at every named point, with the number of processes changed, a store loses nothing finished."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jukebox.codestore.store import CodeStore
from jukebox.errors import StoreError

COUNT, SHARDS = 3, 2
PROGRAM = Path(__file__).with_name("tiny_writer.py")


def encode(root: Path, log: Path, fault: str = "", rank: int = 0, size: int = 1) -> int:
    command = [sys.executable, str(PROGRAM), str(root), str(COUNT), str(SHARDS), str(rank), str(size), str(log)]
    environment = {**os.environ, "JUKEBOX_FAULT": fault, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, check=False, timeout=60).returncode


FAULTS = [
    *(f"store.{name}:{count}" for name, count in (("after_npy", 1), ("after_npy", 5), ("after_json", 2))),
    *(f"store.before_details:{count}" for count in (1, 3)),
    *(f"publish.{name}:{count}" for name, count in (("before_fsync", 2), ("before_replace", 7), ("after_replace", 23))),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_p3_a_store_killed_at_any_point_ends_equal_to_the_uninterrupted_one(tiny, tree, tmp_path, fault):
    log, root = tmp_path / "log", tmp_path / "s"
    assert encode(root, log, fault) == -signal.SIGKILL
    with pytest.raises(StoreError):
        CodeStore.open(root)
    rank_count = 2 if fault.startswith("store.after") else 1
    for rank in range(rank_count):
        assert encode(root, log, rank=rank, size=rank_count) == 0
    if rank_count > 1:
        assert encode(root, log) == 0
    times = collections.Counter(log.read_text().split())
    assert set(times) <= {str(item) for item in range(COUNT)} and max(times.values()) == 1
    tiny.make(tmp_path / "whole", count=COUNT, shards=SHARDS)
    assert tree(root) == tree(tmp_path / "whole")


def test_d2_a_full_disk_leaves_nothing_under_a_final_name(tiny, tree, tmp_path):
    """A limit on the size of files stands for a full disk: the write fails half way."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600));"
        f"sys.argv = [{str(PROGRAM)!r}, {str(tmp_path / 's')!r}, '3', '2', '0', '1'];"
        f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode and ("Cannot write" in result.stderr or "No space" in result.stderr)
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file() and path.name.startswith(".tmp")]
    assert encode(tmp_path / "s", tmp_path / "log") == 0
    tiny.make(tmp_path / "whole", count=COUNT, shards=SHARDS)
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")
