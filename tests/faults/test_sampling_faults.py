"""Sampling that is killed at any moment, by anything, goes on to the same songs (rows P4, P6 to P10 and D2)."""

import collections
import hashlib
import json
import random
import shutil
import signal
from dataclasses import replace

import pytest
import soundfile
import torch
from survive import Forked

from jukebox import settings
from jukebox.models import restricted
from jukebox.sampling import run

POINTS = [f"publish.{point}" for point in ("before_write", "before_fsync", "before_replace", "after_replace")]
POINTS.append("sample.after_window")


def flags_of(tiny, requested, root, sample_length=720, **more):
    return tiny.flags(
        root / "songs", requests=tiny.requests(requested / "songs.jsonl"), sample_length=sample_length, top_k=None,
        seed=3, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def requested(tmp_path_factory):
    """A folder for what all runs of this file read."""
    return tmp_path_factory.mktemp("asked")


@pytest.fixture
def sampling(job, tiny, tmp_path, requested):
    """`sampling(n, name, ...)`: two songs, drawn with noise, into a folder `songs`."""
    return lambda n, name, **more: job(n, ["jukebox/sample.py", *flags_of(tiny, requested, tmp_path / name, **more)])


def forked(tiny, requested, root, **more):
    """The same as one process, into a folder `songs` in `root`."""
    flags = flags_of(tiny, requested, root, **more)
    return Forked(lambda: run.main(settings.parse("sample", flags)))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory, requested):
    """The run that nothing happened to."""
    root = tmp_path_factory.mktemp("whole")
    forked(tiny, requested, root).to_the_end()
    return root / "songs"


def trace(root):
    lines = [line for path in root.glob("progress/trace_*.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def windows(root):
    """How often each window of each song was begun."""
    return collections.Counter(
        (line["level"], line["start"], item)
        for line in trace(root)
        if line["what"] == "begin"
        for item in line["items"]
    )


def sung(root):
    """Digests of everything that a run is for."""
    kinds = ("progress/item_*", "progress/align_*", "level_*/item_*.wav", "codes/level_*/**/*.npy")
    found = {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for kind in kinds for p in root.glob(kind)}
    assert len(found) == 6 + 2 + 6 + 6
    return found


def check(root, whole, kills, n):
    assert sung(root) == sung(whole)
    for level in range(3):
        ours, theirs = (restricted.load(folder / f"level_{level}/data.pth.tar") for folder in (root, whole))
        assert torch.equal(ours["x"], theirs["x"])
        assert all(torch.equal(a, b) for a, b in zip(ours["zs"], theirs["zs"], strict=True))
    assert "not whole" not in (root / "index.html").read_text()
    assert not list(root.rglob(".tmp-*")) and not (root / "earlier").exists()
    # Each kill costs each process at most one window: a batch of both songs.
    twice = sum(count - 1 for count in windows(root).values())
    assert twice <= 2 * n * kills, windows(root)


def readable(root):
    """What is published can be opened at any moment."""
    for path in root.glob("level_*/item_*.wav"):
        assert soundfile.info(path).frames > 0
    for path in root.glob("**/index.html"):
        assert path.read_text().rstrip().endswith("</html>")


def grown(root, lines):
    """Whether the trace has so many lines more than now."""
    before = len(trace(root))
    return lambda: len(trace(root)) >= before + lines


def overlap(root, upper):
    """Seconds for which a level was sampled on after the one below it had begun."""
    begun = min(line["time"] for line in trace(root) if line["what"] == "begin" and line["level"] == upper - 1)
    return max(line["time"] for line in trace(root) if line["what"] == "end" and line["level"] == upper) - begun


def test_killed_and_the_number_of_processes_changed(sampling, whole, tmp_path):
    root = tmp_path / "killed/songs"
    assert sampling(1, "killed").killed_when(grown(root, 9)) != 0
    assert 0 < len(windows(root)) < len(windows(whole))
    assert sampling(2, "killed").killed_when(grown(root, 14), rank=1) != 0
    sampling(2, "killed").to_the_end()
    check(root, whole, kills=2, n=2)
    assert overlap(whole, 2) > 0 and overlap(whole, 1) > 0  # levels do not wait for each other


@pytest.mark.slow
def test_levels_of_one_song_are_shared_out(sampling, tiny, requested, tmp_path):
    """Three processes, one song: each level has its own, and they work at the same time.

    The song is so long that the top level takes longer than the others take to begin.
    """
    long = {"sample_length": 16 * 720, "total_sample_length_in_seconds": 16 * 720 / 8000}
    sampling(3, "spread", **long, items=0).to_the_end()
    root = tmp_path / "spread/songs"
    assert {(line["level"], line["rank"]) for line in trace(root)} == {(0, 0), (1, 1), (2, 2)}
    assert overlap(root, 2) > 0 and overlap(root, 1) > 0
    sampling(3, "spread", **long).to_the_end()
    forked(tiny, requested, tmp_path / "alone", **long).to_the_end()
    check(root, tmp_path / "alone/songs", kills=0, n=3)


@pytest.mark.parametrize("most", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random(tiny, requested, whole, tmp_path, most):
    root, chance, kills = tmp_path / "songs", random.Random(most), 0
    while kills < most:
        lines = chance.randint(0, 48 // most)
        kills += forked(tiny, requested, tmp_path).killed_when(grown(root, lines)) != 0
    forked(tiny, requested, tmp_path).to_the_end()
    check(root, whole, kills, 1)


@pytest.mark.parametrize("passages", [(2, 9), pytest.param((1, 2, 3, 5, 8, 13, 21, 34), marks=pytest.mark.slow)])
def test_killed_at_every_point(tiny, requested, whole, tmp_path, passages):
    root, kills = tmp_path / "songs", 0
    for passage in passages:
        for point in POINTS:
            code = forked(tiny, requested, tmp_path).at_fault(f"{point}:{passage}")
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            readable(root)
    assert kills >= min(20, 5 * len(passages) - 2)
    forked(tiny, requested, tmp_path).to_the_end()
    check(root, whole, kills, 1)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 0])
def test_killed_twenty_times(sampling, whole, tmp_path, n):
    """At random moments; n = 0: with another number of processes each time. A run that is done is begun anew."""
    root, chance, kills, since = tmp_path / "killed/songs", random.Random(n), 0, 0
    while kills < 20:
        ranks = n or chance.randint(1, 3)
        command, lines = sampling(ranks, "killed"), chance.randint(0, 3)
        if command.killed_when(grown(root, lines), chance.randrange(ranks)) != 0:
            kills, since = kills + 1, since + 1
        else:
            check(root, whole, since, n or 3)
            shutil.rmtree(root)
            since = 0
    sampling(n or 2, "killed").to_the_end()
    check(root, whole, since, n or 3)


@pytest.mark.slow
def test_two_processes_killed_at_every_point(sampling, whole, tmp_path):
    """A run that is done is begun anew: what remains of one has ever fewer points to be killed at."""
    root, kills, since = tmp_path / "killed/songs", 0, 0
    for passage in (1, 2, 5, 13):
        for point in POINTS:
            if sampling(2, "killed").at_fault(f"{point}:{passage}:rank={passage % 2}") != 0:
                kills, since = kills + 1, since + 1
                readable(root)
            else:
                check(root, whole, since, 2)
                shutil.rmtree(root)
                since = 0
    assert kills >= 10
    sampling(2, "killed").to_the_end()
    check(root, whole, since, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, code, said", [("raise", 1, "fault injected"), ("exit", 3, ""), ("full", 1, "No space")]
)
def test_one_process_fails(sampling, whole, tmp_path, fault, code, said):
    """P6, P7, D2: all end, with the reason; the same command goes on."""
    found = sampling(2, "failed").ends(
        f"sample.after_window:2:{fault}:rank=1" if fault != "full" else "publish.before_write:9:full:rank=1"
    )
    assert found.returncode == code and said in found.stderr
    sampling(2, "failed").to_the_end()
    check(tmp_path / "failed/songs", whole, 1, 2)


@pytest.mark.slow
def test_the_launcher_is_killed(sampling, whole, tmp_path):
    """P8: nothing lives on, the lock is free."""
    assert sampling(2, "orphan").killed_when(grown(tmp_path / "orphan/songs", 6), rank=-1) == -signal.SIGKILL
    sampling(2, "orphan").to_the_end()
    check(tmp_path / "orphan/songs", whole, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "n, number", [(0, signal.SIGINT), (0, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)]
)
def test_asked_to_stop(sampling, whole, tmp_path, n, number):
    """P9: with what is finished on the page, and a word on how to go on."""
    root = tmp_path / "stopped/songs"
    at_work = grown(root, 8)
    everyone = [root / f"progress/trace_{rank}.jsonl" for rank in range(max(1, n))]
    code, err = sampling(n, "stopped").told(
        lambda: at_work() and all(path.exists() and path.stat().st_size for path in everyone), number
    )
    assert code in (130, 143) and (n or code == (130 if number == signal.SIGINT else 143))
    assert "python jukebox/sample.py --model=" in err and "not whole" in (root / "index.html").read_text()
    sampling(n, "stopped").to_the_end()
    check(root, whole, 1, max(1, n))


@pytest.mark.slow
def test_a_frozen_process_is_named(sampling, whole, tmp_path):
    """P10."""
    root = tmp_path / "frozen/songs"
    frozen = replace(sampling(2, "frozen", dist_timeout=20), timeout_sec=240)
    code, err = frozen.told(grown(root, 8), signal.SIGSTOP, rank=1)
    assert code == 1 and "rank 1" in err and "--dist_timeout" in err
    sampling(2, "frozen").to_the_end()
    check(root, whole, 1, 2)
