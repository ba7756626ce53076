"""Where the alignment head that was found for a prior is written down, and read again: `python jukebox/align.py --find`.

In a model set's own file as keys of that prior; for runs, which no file names, as `alignment.json` beside the checkpoint.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jukebox import files
from jukebox.errors import CheckpointError, UsageError

FILE = "alignment.json"
KEYS = ("alignment_layer", "alignment_head")
SCORE = "alignment_score"


def read(checkpoint: Path, level: int) -> dict[str, int]:
    """The layer and head found for the prior of a level whose run folder, port folder or checkpoint file this is.

    Nothing where none was written. Raises CheckpointError for a file that says something else.
    """
    path = _beside(checkpoint)
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values = {name: found[name] for name in KEYS}
        if not all(type(value) is int and value >= 0 for value in values.values()):
            raise ValueError(f"{values} are not numbers of a layer and a head")
        return values if found["level"] == level else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not what align.py --find writes ({error}); remove it.") from None


def write_beside(checkpoint: Path, level: int, values: Mapping[str, Any]) -> Path:
    """Write it beside a run's checkpoint; the file. Raises WriteFailed."""
    path = _beside(checkpoint)
    files.publish_json(path, {"level": level, **values}, indent=1)
    return path


def write_into(file: Path, level: int, values: Mapping[str, Any]) -> Path:
    """Write it into a model set's file, whose other lines stay as they are; the file.

    Raises UsageError when the file is written in a way that this cannot follow, WriteFailed.
    """
    text = file.read_text(encoding="utf-8")
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    changed = _with_lines(text, level, lines)
    expected = tomllib.loads(text)
    expected["priors"][level] |= values
    if changed is None or tomllib.loads(changed) != expected:
        raise UsageError(
            f"{file}: write these lines under its [[priors]] of level {level} by hand:\n" + "\n".join(lines)
        )
    files.publish_text(file, changed)
    return file


def _with_lines(text: str, level: int, new: list[str]) -> str | None:
    """The text with these lines at the end of its table [[priors]] number `level`, in place of older ones."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if re.match(r"\s*\[", line)]
    ours = [i for i in heads if re.match(r"\s*\[\[\s*priors\s*\]\]", lines[i])]
    if level >= len(ours):
        return None
    start = ours[level]
    stop = next((i for i in heads if i > start), len(lines))
    kept = [line for line in lines[start:stop] if not re.match(r"\s*alignment_(layer|head|score)\s*=", line)]
    filled = len(kept)
    while not kept[filled - 1].strip() or kept[filled - 1].lstrip().startswith("#"):
        filled -= 1  # comments and gaps before the next table belong to that one
    return "\n".join([*lines[:start], *kept[:filled], *new, *kept[filled:], *lines[stop:]]) + "\n"


def _beside(checkpoint: Path) -> Path:
    return (checkpoint if checkpoint.is_dir() else checkpoint.parent) / FILE
