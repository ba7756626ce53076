"""What a run takes, said before it starts: against measured memory; the plan; what cannot fit is refused; less is used
when memory runs out."""

import json
from pathlib import Path

import pytest

from jukebox import resources, settings
from jukebox.errors import OutOfSpace
from jukebox.models import build
from jukebox.nn import linear
from jukebox.sampling import forecast
from jukebox.sampling.memory import OutOfMemory, Room, ran_out
from jukebox.sampling.needs import needs_of

SIZE = r"[\d.]+ [MG]B"  # the process of the tests is itself counted

CASES = [  # shape, form, songs at once, given codes, codes of a pass
    ["top", "fp32", 4, 300, None],
    ["upsampler", "fp32", 4, 500, None],
    ["top", "int8", 6, 1500, 512],
    ["lyrics", "bf16", 4, 200, 64],
]


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])  # half a minute in all
def test_estimates_are_what_sampling_takes(run_mpi, count):
    """One process samples the cases one after the other; anonymous memory beside the estimate, within a quarter."""
    cases = [case for case in CASES[:count] if case[1] in linear.forms("cpu")]
    program = Path(__file__).with_name("measured_memory.py")
    done = run_mpi(0, [program, *map(json.dumps, cases)], timeout=300)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["case"] for line in lines] == cases
    for line in lines:
        assert 0.75 <= line["peak"] / line["measured"] <= 1.25, line


@pytest.mark.parametrize(
    "name, weights_gb, cache_gb",
    [
        ("upsampler_level_1", 2.4, 0.4),
        ("prior_1b_lyrics", 3.8, 0.4),
        ("prior_5b", 10.3, 1),
        ("prior_5b_lyrics", 11.5, 1),
    ],
)
def test_no_larger_than_the_first_implementation_on_a_card(name, weights_gb, cache_gb):
    """Weights and a song's cache in float16, beside the figures it states (2.4: its file); at true shapes, without memory."""
    shape = build.prior_shape(settings.from_presets(f"vqvae,{name}"))
    found = needs_of(shape, "fp16", songs=4, device="cuda")
    assert round(found.weights / 1e9, 1) <= weights_gb and found.cache / 4 / 1e9 <= cache_gb


# ----------------------------------------------------------------------------------------------------------- the plan


def test_plan_says_what_a_run_takes_and_writes_nothing(tiny, tmp_path, caplog):
    flags = tiny.flags(tmp_path / "out", requests=tiny.requests(tmp_path / "songs.jsonl"), sample_length=960)
    with caplog.at_level("INFO"):
        assert tiny.plan(flags) == 0
    said = caplog.text
    assert not (tmp_path / "out").exists()
    for word in ("weights", "cache", "passes", "memory", "disk", "time", "windows"):
        assert word in said
    rows = [line.split() for line in said.splitlines() if line.split()[2:3] == ["x"]]
    assert [row[0] for row in rows] == ["2", "1", "0"] and all(int(row[3]) <= 2 for row in rows)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose container has so many bytes of memory."""

    def of(limit: int) -> None:
        (tmp_path / "memory.max").write_text(str(limit))
        monkeypatch.setattr(resources, "_MEMORY_LIMIT_FILES", (str(tmp_path / "memory.max"),))

    return of


@pytest.mark.parametrize("way", ["plan", "sing"])
def test_what_cannot_fit_is_refused_with_numbers(tiny, tmp_path, machine, way):
    machine(50_000_000)
    flags = tiny.flags(tmp_path / "out", sample_length=960, n_samples=2)
    with pytest.raises(OutOfMemory, match=rf"Level 2 does not fit.*needs {SIZE}, this machine gives 50 MB") as error:
        getattr(tiny, way)(flags)
    assert "weights" in str(error.value) and not (tmp_path / "out" / "run.json").exists()


def test_the_cures_are_what_fits(tiny, tmp_path, machine):
    flags = tiny.flags(tmp_path / "out", sample_length=960, n_samples=16, max_batch_size=16)
    session = tiny.session(flags)
    order, songs = session._known()
    found = session.forecast(songs, order)
    top = found.levels[0]
    machine(found.base_bytes + (top.needs.peak + top.with_other(8, "fp32").peak) // 2)
    session = tiny.session(flags)
    again = session.forecast(songs, order)
    again.base_bytes = found.base_bytes
    with pytest.raises(OutOfMemory, match=rf"--max_batch_size=8: {SIZE}"):
        again.check()
    machine(10**12)
    again = session.forecast(songs, order)
    again.check()
    assert again.fits_together


def test_a_disk_that_is_too_small_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "disk_free_bytes", lambda _: 1000)
    with pytest.raises(OutOfSpace, match=r"take \d+ kB of disk, 1.0 kB are free"):
        tiny.sing(tiny.flags(tmp_path / "out", sample_length=960, n_samples=2))
    assert not (tmp_path / "out" / "run.json").exists()


# -------------------------------------------------------------------------------------------------- running out of it


def test_a_batch_is_halved_until_it_fits():
    done: list[list[int]] = []

    def work(batch: list[int]) -> None:
        if len(batch) > 3:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
            )
        done.append(batch)

    room = Room(1)
    room.share_out(range(8), work)
    assert done == [[0, 1], [2, 3], [4, 5], [6, 7]] and room.most == 2
    room.share_out([8, 9, 10], work)
    assert done[4:] == [[8, 9], [10]]


def test_other_errors_and_one_song_too_large():
    def broken(_: list[int]) -> None:
        raise RuntimeError("shapes do not fit")

    def large(_: list[int]) -> None:
        raise MemoryError

    with pytest.raises(RuntimeError, match="shapes"):
        Room(0).share_out([1, 2], broken)
    with pytest.raises(OutOfMemory, match="level 0: there is no memory for even one song"):
        Room(0).share_out([1, 2], large)


def test_an_error_that_covers_the_failed_allocation():
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise RuntimeError("the capture was invalidated")  # noqa: B904
    except RuntimeError as error:
        assert ran_out(error) and not ran_out(RuntimeError("the capture was invalidated"))


def test_a_real_allocation_that_fails(run_mpi):
    """A process that may not have the memory for four songs at once makes the same codes with fewer."""
    program = Path(__file__).with_name("little_memory.py")
    done = run_mpi(0, [program], timeout=300)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["free"] == found["little"], "the codes"
    assert 1 <= found["most"] < 4 and found["windows"] == 2
    assert "memory does not hold 4 songs at once" in done.err
