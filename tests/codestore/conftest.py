"""`tiny`: stores of known content (tiny_writer.py), `tree`: what a folder holds."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TINY_WRITER = Path(__file__).with_name("tiny_writer.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_writer", TINY_WRITER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a store but the lock and the reader's cache."""

    def read(root: Path) -> dict[str, bytes]:
        paths = (path for path in root.rglob("*") if path.is_file())
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in paths
            if path.name not in ("LOCK", ".index-cache")
        }

    return read


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small stores are written here; that files reach the disk in order is tested with files.py."""
    monkeypatch.setattr("os.fsync", lambda _: None)
