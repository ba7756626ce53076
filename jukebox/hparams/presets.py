"""Presets: one TOML file each, found beside the package, in a folder of one's own, or by path.

A preset is a flat table of hyperparameters. Three words are not hyperparameters: `about` (one sentence), `extends`
(presets it builds on; its own values win) and `selectable = false` (a base that only `extends` may name).
"""

import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox.errors import HparamsError, UsageError

_PACKAGE = Path(__file__).resolve().parent.parent
_WORDS = {"about": str, "extends": list, "selectable": bool}
_SET_WORDS = {
    "about": str, "licence": str, "huggingface": str, "ids": list, "vqvae": dict, "priors": list,
    "sample_length_in_seconds": (int, float),
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """One file: its name, what it says about itself, what it builds on, and its raw values."""

    name: str
    path: Path
    about: str
    extends: tuple[str, ...]
    selectable: bool
    values: Mapping[str, object]


def share_folder() -> Path:
    """The folder that holds `hparams/` and `data/ids/`: the clone, or the copy inside an installed package."""
    clone = _PACKAGE.parent
    return clone if (clone / "hparams" / "teeny.toml").is_file() else _PACKAGE / "_share"


def folders(hps_dir: str = "") -> list[Path]:
    """Where presets are looked for, in order: `--hps_dir`, the variable JUKEBOX_HPS_DIR, the shipped ones."""
    own = [Path(folder) for folder in (hps_dir, os.environ.get("JUKEBOX_HPS_DIR", "")) if folder]
    for folder in own:
        if not folder.is_dir():
            raise HparamsError(f"--hps_dir={folder} is no folder.")
    return [*own, share_folder() / "hparams"]


def listing(hps_dir: str = "") -> list[Preset]:
    """All presets, bases included, sorted by name; an own one hides a shipped one of the same name."""
    found: dict[str, Path] = {}
    for folder in folders(hps_dir):
        for path in folder.glob("*.toml"):
            found.setdefault(path.stem, path)
    return [read(path) for _, path in sorted(found.items())]


def find_model_set(name: str, hps_dir: str = "") -> Path | None:
    """The file of a model set: `models/NAME.toml` in the first folder of presets that has one, or None."""
    paths = [folder / "models" / f"{name}.toml" for folder in folders(hps_dir)]
    return next((path for path in paths if path.is_file()), None)


def model_sets(hps_dir: str = "") -> list[str]:
    """The names that `--model=` knows, sorted."""
    return sorted({path.stem for folder in folders(hps_dir) for path in (folder / "models").glob("*.toml")})


def read_model_set(path: Path) -> dict[str, Any]:
    """The table of a model-set file: [vqvae] and [[priors]], each with texts `checkpoint` and perhaps `hps`, and what is
    said of all of them. Raises UsageError naming the file and what to write instead."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a readable model set: {error}") from None
    if isinstance(table.get("priors"), dict):
        raise UsageError(f"{path}: write [[priors]] in place of [priors], once for each level, level 0 first.")
    for word, value in table.items():
        if word not in _SET_WORDS:
            near = difflib.get_close_matches(word, _SET_WORDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(_SET_WORDS)}."
            raise UsageError(f"{path}: unknown key {word!r}.{hint}")
        wanted: Any = _SET_WORDS[word]
        if not isinstance(value, wanted) or (
            wanted == (int, float) and not (value is not True and 0 < value < math.inf)
        ):
            kinds = {dict: f"a table, [{word}]", list: "a list", str: "a text", (int, float): "a number above 0"}
            kind = kinds[wanted]
            raise UsageError(f"{path}: {word} = {value!r:.60} should be {kind}.")
    if "vqvae" not in table:
        raise UsageError(f'{path}: a model set needs [vqvae] with checkpoint = "...", and [[priors]], level 0 first.')
    for entry in [table["vqvae"], *table.get("priors", [])]:
        if not isinstance(entry, dict):
            raise UsageError(f"{path}: priors must be tables, [[priors]], level 0 first, not {entry!r:.60}.")
        for word in ("checkpoint", "hps"):
            if not isinstance(entry.get(word, ""), str):
                raise UsageError(f"{path}: {word} = {entry[word]!r:.60} should be a text.")
    if not all(isinstance(url, str) for url in table.get("ids", [])):
        raise UsageError(f"{path}: ids should be a list of texts.")
    return table


def read(path: Path, name: str = "") -> Preset:
    """Reads one preset file, called `name` or as the file; raises HparamsError that names the file and, for bad TOML, the line."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise HparamsError(f"{path}: not a readable preset: {error}") from None
    for word, kind in _WORDS.items():
        if word in table and not isinstance(table[word], kind):
            raise HparamsError(f"{path}: {word} = {table[word]!r} should be a {kind.__name__}.")
    values = {key: value for key, value in table.items() if key not in _WORDS}
    for key, value in values.items():
        if isinstance(value, dict):
            raise HparamsError(f"{path}: [{key}] is a table; a preset is flat: key = value.")
    extends = tuple(str(parent) for parent in table.get("extends", ()))
    return Preset(name or path.stem, path, table.get("about", ""), extends, table.get("selectable", True), values)


def chain(names: str, hps_dir: str = "") -> list[Preset]:
    """The presets of `--hps=a,b` with what each extends before it, in the order in which later ones win."""
    found: list[Preset] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        preset = _find(name, hps_dir)
        if not preset.selectable:
            children = [other.name for other in listing(hps_dir) if name in other.extends]
            raise HparamsError(
                f"--hps={name}: {name} is a base for `extends`, not a set of its own. Take one that builds on it"
                f" ({', '.join(children)}), or write a preset with extends = [{name!r}]."
            )
        found += _with_parents(preset, hps_dir, ())
    return found


def _find(name: str, hps_dir: str, beside: Path | None = None) -> Preset:
    if name.endswith(".toml") or "/" in name:
        path = Path(name) if beside is None or Path(name).is_absolute() else beside / name
        if not path.is_file():
            raise HparamsError(f"--hps={name}: there is no file {path}.")
        return read(path, name)
    for folder in [*([beside] if beside else []), *folders(hps_dir)]:
        if (folder / f"{name}.toml").is_file():
            return read(folder / f"{name}.toml")
    known = [preset.name for preset in listing(hps_dir) if preset.selectable]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise HparamsError(f"--hps={name}: there is no preset of this name.{hint} Presets: {', '.join(known)}.")


def _with_parents(preset: Preset, hps_dir: str, seen: tuple[Path, ...]) -> list[Preset]:
    if preset.path in seen:
        circle = " -> ".join(path.stem for path in (*seen, preset.path))
        raise HparamsError(f"{preset.path}: extends itself: {circle}.")
    found: list[Preset] = []
    for name in preset.extends:
        parent = _find(name, hps_dir, preset.path.parent)
        found += _with_parents(parent, hps_dir, (*seen, preset.path))
    return [*found, preset]
