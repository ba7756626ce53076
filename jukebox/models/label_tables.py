"""A published prior for other artists and genres: its tables in the sizes of another id file.

The rule: id n keeps its vector, so an id can be renamed in the id files and trained on; ids beyond the new table are
dropped; new ids begin as id 0, "unknown". Moments of the optimiser are kept for what is kept and begin at 0 elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jukebox.interop.published import Entry
from jukebox.models.checkpoint import Checkpoint

log = logging.getLogger(__name__)

TABLES = {"labels.artist.weight": "artists", "labels.genre.weight": "genres"}


def fitted(found: Checkpoint, table: Sequence[Entry]) -> Checkpoint:
    """The checkpoint with tables of artists and genres as the net of `table` has them; itself where they fit.

    What only the run that wrote it can use (`extra`: raw weights, averages) is left out when a table changes.
    """
    wanted = {entry.published: entry for entry in table if entry.ours in TABLES}
    changed = {
        name: entry
        for name, entry in wanted.items()
        if name in found.model and found.model[name].dim() == 2 and len(found.model[name]) != entry.shape[0]
    }
    if not changed:
        return found
    model = dict(found.model)
    for name, entry in changed.items():
        old = model[name]
        kind = TABLES[entry.ours]
        log.info("%s: %d %s become %d; new ones begin as unknown (id 0)", found.path, len(old), kind, entry.shape[0])
        model[name] = _rows(old, entry.shape[0], old[:1])
    places = {i: entry for i, entry in enumerate(e for e in table if e.parameter) if entry.published in changed}
    return replace(found, model=model, opt=found.opt and _moments(found.opt, places), extra={})


def _rows(old: Tensor, count: int, new: Tensor) -> Tensor:
    return torch.cat([old[:count], new.expand(max(count - len(old), 0), -1)])


def _moments(opt: Mapping[str, Any], places: Mapping[int, Entry]) -> dict[str, Any]:
    state = dict(opt["state"])
    for place, entry in places.items():
        kept = {}
        for name, value in state.get(place, {}).items():
            per_row = isinstance(value, Tensor) and value.dim() == 2
            kept[name] = _rows(value, entry.shape[0], torch.zeros_like(value[:1])) if per_row else value
        if kept:
            state[place] = kept
    return {**opt, "state": state}
