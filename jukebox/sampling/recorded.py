"""What a run recorded of itself in run.json, read back: settings, songs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jukebox import settings
from jukebox.errors import UsageError
from jukebox.hparams.resolve import Layer, Resolved
from jukebox.sampling import parts, save
from jukebox.sampling.requests import Request

OF_A_START = (
    "embed", "quiet", "device", "threads", "port", "dist_timeout", "plan", "max_batch_size", "chunk_size", *parts.KEYS
)  # fmt: skip
"""Flags that say how a run goes on now, and do not decide its result."""


def settings_from(values: Mapping[str, Any], where: str) -> Resolved:
    """Recorded settings of sample.py as typed ones; a key that is no longer known is left out.

    What is as it would be anyway does not count as given: a run records every setting, and few of them were typed.
    """
    schema = settings.PROGRAMS["sample"].schema
    known = {name: schema.convert(name, value, where) for name, value in values.items() if name in schema.keys}
    return schema.resolve([Layer(where, {k: v for k, v in known.items() if v != schema.keys[k].default})])


def as_begun(hps: Resolved, root: Path) -> tuple[Resolved, list[Request]] | None:
    """The settings and songs of the run in a folder, where the command line says no more than how it goes on.

    None when no run is there. Raises UsageError for a flag that would make it another run.
    """
    recorded, where = save.asked_before(root), str(root / "run.json")
    if not recorded:
        return None
    given = {name: value for name, value in hps.values.items() if hps.given(name)}
    for name in given:
        if name not in (*OF_A_START, "name"):
            raise UsageError(
                f"--{name}: without --model the run in {root} goes on as it was begun. Leave --{name} out, or type the "
                "whole command."
            )
    try:
        requests = [Request.from_json(request) for request in recorded["requests"]]
        begun = settings_from(recorded["settings"], where)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{where} cannot be read ({error}); is this the folder of a sampling run?") from None
    return begun.with_values("command line", **given), requests
