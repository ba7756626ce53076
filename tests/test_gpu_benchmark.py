"""benchmarks/gpu.py as somebody runs it who has no card: its rehearsal with small nets, stopped and gone on with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "benchmarks" / "gpu.py"


def rows(path: Path) -> dict[str, dict]:
    return {row["key"]: row for row in map(json.loads, path.read_text().splitlines())}


def test_steps_of_three_nets_and_time_to_20_sec(run_mpi, tmp_path):
    out = tmp_path / "gpu.jsonl"
    command = [PROGRAM, "--rehearse", f"--out={out}", "--dtype=fp32", "--n=1,3", "--steps=2"]
    done = run_mpi(0, [*command, "--minutes=0"], timeout=300)
    assert done.code == 0 and "rows left after 0 minutes: the same command goes on" in done.out, done.err
    done = run_mpi(0, command, timeout=300)
    assert done.code == 0, done.err
    found = rows(out)
    assert [row["row"] for row in found.values()] == ["check"] * 3 + ["step"] * 6 + ["20 s"] * 4
    for row in found.values():
        assert row.get("passes", True)
        if row["row"] == "step":
            assert {"ms", "percent_of_limit", "kernels_per_step", "prefill_codes_per_sec", "peak_gb_per_song"} <= set(
                row
            )
            assert row["cache_gb_per_song"] and row["kernels_per_step"] > 100 and row["extrapolated"]
    size = out.stat().st_size
    assert run_mpi(0, command, timeout=300).code == 0 and out.stat().st_size == size, "rows that are there stay"


def test_without_a_card_it_says_so(run_mpi, tmp_path):
    done = run_mpi(0, [PROGRAM, f"--out={tmp_path / 'gpu.jsonl'}"], timeout=300)
    assert done.code == 1 and "unmeasured" in done.out and not (tmp_path / "gpu.jsonl").exists()


@pytest.mark.slow  # three levels of a song, half a minute
def test_whole_songs_go_on_behind_their_last_window(run_mpi, tmp_path):
    out = tmp_path / "gpu.jsonl"
    command = [PROGRAM, "--rehearse", "--full", f"--out={out}", "--dtype=fp32", "--n=16"]
    with subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert next(first.stdout).startswith("level 2: 256 codes")
        first.kill()
    done = run_mpi(0, command, timeout=1000)
    assert done.code == 0, done.err
    assert "level 2: 256 codes" not in done.out, "that window is not sampled again"
    (row,) = rows(out).values()
    assert row["row"] == "songs" and row["n"] == 16 and not row["extrapolated"] and all(row["levels"].values())
