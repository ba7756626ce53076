"""What the machine lets us use."""

import os
from pathlib import Path

import pytest

from jukebox import resources


def _pretend(monkeypatch, **texts):
    monkeypatch.setattr(resources, "_read", lambda name: texts.get(Path(name).name.replace(".", "_"), ""))


def test_a_container_limits_memory_and_cores(monkeypatch):
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    _pretend(monkeypatch)
    assert (resources.memory_limit_bytes(), resources.cores()) == (ram, 8)
    _pretend(monkeypatch, memory_max="1000000", cpu_max="250000 100000")
    assert (resources.memory_limit_bytes(), resources.cores()) == (1_000_000, 3)
    _pretend(monkeypatch, memory_max="max", cpu_max="max 100000")
    assert (resources.memory_limit_bytes(), resources.cores()) == (ram, 8)
    _pretend(monkeypatch, memory_limit_in_bytes=str(2**63 - 4096), cpu_cfs_quota_us="50000", cpu_cfs_period_us="100000")
    assert (resources.memory_limit_bytes(), resources.cores()) == (ram, 1)
    _pretend(monkeypatch, cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    assert resources.cores() == 8


def test_what_is_used_and_free(tmp_path):
    assert 1_000_000 < resources.memory_used_bytes() < resources.memory_limit_bytes()
    assert resources.disk_free_bytes(tmp_path / "not" / "yet") > 0


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (412_300_000, "412 MB"),
        (1.3e9, "1.3 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_are_readable(size_bytes, text):
    assert resources.size_text(size_bytes) == text
