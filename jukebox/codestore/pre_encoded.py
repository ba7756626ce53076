"""Reading any pre-encoded data set of the numbered-folder layout: another program's folder, or one level of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from jukebox import files
from jukebox.codestore import layout
from jukebox.codestore.arrays import open_regular, read_any
from jukebox.errors import StoreError

_FILE_LIST = "filelist.txt"


class PreEncoded:
    """The arrays and metadata of a folder, in order of their names; nothing is held in memory but the names.

    `details` is what details.json says, None without one: another program writes it first, so it proves nothing there.
    """

    def __init__(self, root: Path, paths: list[Path], details: dict[str, Any] | None, time_axis: int | None) -> None:
        self.root, self.paths, self.details = root, paths, details
        about = (details or {}).get("array")  # only stores of ours say it
        time_first = isinstance(about, dict) and about.get("axes") == "NQ"
        self.time_axis = time_axis if time_axis is not None else 0 if time_first else 1

    def __len__(self) -> int:
        return len(self.paths)

    def array(self, i: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Time steps [start, stop) of item i, as stored: [D, N] latents, [Q, N] or [N, Q] codes."""
        return read_any(self.paths[i], self.time_axis, start, stop)

    def frames(self, i: int) -> int:
        """Time steps of item i."""
        across = read_any(self.paths[i], 1 - self.time_axis, 0, 0)  # no values, only the shape
        return int(across.shape[self.time_axis])

    def info(self, i: int) -> dict[str, Any]:
        """Metadata of item i; raises StoreError when the file beside the array is missing or not an object."""
        path = self.paths[i].with_suffix(".json")
        data = layout.read_json(path)
        if not isinstance(data, dict):
            raise StoreError(f"{path}: is not an object of metadata")
        return data

    def valid_frames(self, i: int) -> int:
        """Leading time steps of item i that hold real audio."""
        return valid_frames(self.info(i), self.frames(i))


def valid_frames(info: dict[str, Any], frames: int) -> int:
    """Of an item's time steps, how many at its start hold real audio: its `valid_frames`, else the ones of its mask, else
    all."""
    valid = info.get("valid_frames")
    if isinstance(valid, int) and valid >= 0:
        return min(frames, valid)
    mask = info.get("padding_mask")
    if isinstance(mask, int):  # a mask of one entry is written as a bare number
        mask = [mask]
    if not isinstance(mask, list):
        return frames
    return min(frames, max((place + 1 for place, value in enumerate(mask) if value == 1), default=0))


def open_pre_encoded(root: Path | str, extension: str = "npy", time_axis: int | None = None) -> PreEncoded:
    """Open a folder of arrays: the lines of its filelist.txt if there is one, else everything with this extension.

    A folder that another program fills has no mark of being complete; a level of our stores has (details.json with a
    format), and without it is refused when it stands inside an unfinished store.
    `time_axis`: 0 for another program's time-first codes; None: 1, or as a store of ours says.
    Raises StoreError for an empty folder, and for a list that names files outside of it.
    """
    root = Path(root)
    if not root.is_dir():
        raise StoreError(f"{root}: is not a folder of pre-encoded items")
    details = layout.read_json(root / layout.DETAILS) if (root / layout.DETAILS).exists() else None
    if details is None and any((folder / layout.PLAN).exists() for folder in (root, root.parent)):
        raise StoreError(f"{root}: belongs to an unfinished store. Run the same pre_encode command again to finish it.")
    listed = root / _FILE_LIST
    if listed.exists():
        paths = [files.inside(root, line, StoreError) for line in _lines(listed)]
    else:
        paths = _scan(root, "." + extension.lstrip("."))
    if not paths:
        raise StoreError(f"{root}: holds no .{extension} files")
    return PreEncoded(root, paths, details if isinstance(details, dict) else None, time_axis)


def _lines(path: Path) -> list[str]:
    with open_regular(path) as file:
        text = file.read().decode("utf-8", "surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _scan(root: Path, suffix: str) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.lower().endswith(suffix) and not name.startswith(".")]
    return sorted(found)
