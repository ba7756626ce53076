"""Golden files: numbers that the first implementations gave, replayed through the functions that users call.

`pytest tests/golden --golden-dir=DIR` replays every file in DIR and in DIR/jukebox and DIR/stable_audio, whatever its
sizes and seeds. The kind of a file is the longest known kind that its name begins with (`vqvae_3level` is a `vqvae`); a
kind is known when a test here is marked `@pytest.mark.golden("vqvae")`, and that test then gets every such file as its
`golden` argument. A file of a kind that nobody replays fails in test_kinds.py.
"""

import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
DEFAULT = HERE.parent / "fixtures" / "golden"
FAMILIES = ("jukebox", "stable_audio")
SKIPPED = re.compile(r"README|(.+_)?facts(_.+)?|ids_.+|sampling(_.+)?_weights(_.+)?")  # remarks and what others need


@dataclass(frozen=True)
class Golden:
    """One golden file: `path` is its JSON (or a folder that is golden as a whole), `kind` what it belongs to."""

    path: Path
    kind: str | None

    @property
    def name(self) -> str:
        """vqvae_3level, ..."""
        return self.path.stem

    @cached_property
    def info(self) -> dict[str, Any]:
        """Settings and scalars."""
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        """The arrays beside it; none where there is no such file."""
        return self.companion(self.name)

    def companion(self, name: str) -> dict[str, Tensor]:
        """The arrays of another file of the same folder."""
        path = self.path.with_name(f"{name}.safetensors")
        return load_file(path) if path.exists() else {}

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose names begin with `prefix`, without it."""
        return {name[len(prefix) :]: array for name, array in self.arrays.items() if name.startswith(prefix)}


@cache
def known_kinds() -> tuple[str, ...]:
    """Every kind that a test of this folder is marked with, the longest first."""
    marks = (re.findall(r"mark\.golden\(([^)]*)\)", file.read_text("utf-8")) for file in HERE.glob("test_*.py"))
    kinds = {kind for found in marks for mark in found for kind in re.findall(r'"(\w+)"', mark)}
    return tuple(sorted(kinds, key=len, reverse=True))


def kind_of(name: str, kinds: tuple[str, ...]) -> str | None:
    """The kind of a file by its name, None for an unknown one."""
    return next((kind for kind in kinds if name == kind or name.startswith(f"{kind}_")), None)


@cache
def find(folder: Path) -> tuple[Golden, ...]:
    """Everything golden in a folder and its families, by name; what is skipped by rule is left out."""
    found = []
    for place in (folder, *(folder / family for family in FAMILIES)):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            name = path.name.split(".")[0]
            if SKIPPED.fullmatch(name) or name in FAMILIES:
                continue
            described = path.with_name(f"{name}.json").exists()
            if path.suffix == ".json" or not (described or _named_inside(path)):
                found.append(Golden(path, kind_of(name, known_kinds())))
    return tuple(found)


def _named_inside(path: Path) -> bool:
    """Whether a JSON file beside it speaks of this file by its full name, as those of checkpoints do."""
    return any(f'"{path.name}"' in other.read_text("utf-8") for other in path.parent.glob("*.json"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", type=Path, default=DEFAULT, help="folder of golden files to replay")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(kind, ...): gets every golden file of these kinds as `golden`")


def folder_of(config: pytest.Config) -> Path:
    """The folder asked for; raises UsageError where there is none. Without the option (pytest read it too late): ours."""
    folder = Path(config.getoption("golden_dir", default=DEFAULT)).resolve()
    if not folder.is_dir():
        raise pytest.UsageError(f"--golden-dir={folder}: no such folder")
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("golden")
    found = find(folder_of(metafunc.config))
    wanted = [g for g in found if mark is None or g.kind in mark.args]
    metafunc.parametrize("golden", wanted, ids=[g.name for g in wanted])
