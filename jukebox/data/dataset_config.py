"""Data sets described by a JSON file, as stable-audio-tools users have them: `audio_dir`, `pre_encoded`, `wds`, `s3`.

Every key has the published name and default. Unknown keys are errors: the first program ignored them in silence.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from jukebox.errors import DataError

CustomMetadata = Callable[[dict[str, Any], NDArray[np.float32] | None], dict[str, Any]]
"""`get_custom_metadata(info, audio)` of a user's file: what it returns is merged into an item's metadata."""


@dataclass(frozen=True)
class Entry:
    """One folder (or bucket) of a data set."""

    id: str
    path: str = ""
    custom_metadata_module: str = ""
    s3_path: str = ""
    profile: str = ""


@dataclass(frozen=True)
class AudioDir:
    """Folders of sound files."""

    datasets: tuple[Entry, ...]
    random_crop: bool = True
    drop_last: bool = True


@dataclass(frozen=True)
class PreEncodedDirs:
    """Folders of pre-encoded items. Lengths of a crop in time steps, limits in whole seconds of the source file."""

    datasets: tuple[Entry, ...]
    latent_crop_length: int | None = None
    min_length_sec: float | None = None
    max_length_sec: float | None = None
    random_crop: bool = False
    latent_extension: str = "npy"
    drop_last: bool = True


@dataclass(frozen=True)
class WebDataset:
    """Tars of samples, local (`path`) or in a bucket (`s3_path`)."""

    datasets: tuple[Entry, ...]
    random_crop: bool = True
    remove_silence: bool = False
    silence_threshold: tuple[float, ...] = (0.01, 0.5)
    max_silence_duration: float = 0.25
    volume_norm: bool = False
    volume_norm_param: tuple[float, ...] = (-16.0, 2.0)
    epoch_steps: int = 2000
    pre_encoded: bool = False
    latent_crop_length: int | None = None
    resampled_shards: bool = True


DatasetConfig = AudioDir | PreEncodedDirs | WebDataset
_KINDS: dict[str, type] = {"audio_dir": AudioDir, "pre_encoded": PreEncodedDirs, "wds": WebDataset, "s3": WebDataset}


def read_config(path: Path | str) -> DatasetConfig:
    """Read and check a data-set file; raises DataError naming the file, the key and what is allowed.

    Paths in it are taken as they stand there: relative ones from the folder the program runs in.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"--dataset-config={path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"--dataset-config={path}: is not JSON: {error}") from None
    return parse_config(data, f"--dataset-config={path}")


def parse_config(data: Any, where: str) -> DatasetConfig:
    """The same from parsed JSON; `where` begins the messages."""
    if not isinstance(data, dict):
        raise DataError(f"{where}: must be an object with dataset_type and datasets")
    kind = data.get("dataset_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise DataError(f"{where}: dataset_type must be one of {', '.join(_KINDS)}, not {kind!r:.60}")
    entries = data.get("datasets")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{where}: datasets must be a list of at least one object with id and path")
    values = {key: value for key, value in data.items() if key not in ("dataset_type", "datasets")}
    parsed = tuple(_entry(entry, kind, f"{where}, datasets[{i}]") for i, entry in enumerate(entries))
    config: DatasetConfig = _KINDS[kind](datasets=parsed, **_checked(values, _KINDS[kind], where))
    return config


def _entry(data: Any, kind: str, where: str) -> Entry:
    if not isinstance(data, dict):
        raise DataError(f"{where}: must be an object with id and path, not {data!r:.60}")
    misplaced = set(data) & {field.name for field in fields(_KINDS[kind])}
    if misplaced:
        raise DataError(f"{where}: {sorted(misplaced)[0]} belongs beside datasets, not inside an entry")
    entry = Entry(**{"id": "", **_checked(data, Entry, where)})
    if not entry.id:
        raise DataError(f"{where}: id is missing, any short name for this data set")
    if kind in ("audio_dir", "pre_encoded") and not entry.path:
        raise DataError(f"{where}: path is missing, the folder of {entry.id}")
    if kind in ("wds", "s3") and bool(entry.path) == bool(entry.s3_path):
        raise DataError(f"{where}: needs either path (a local folder of tars) or s3_path")
    return entry


def _checked(values: Mapping[str, Any], kind: type, where: str) -> dict[str, Any]:
    """Values for the fields of a dataclass, each of the declared type."""
    types = {name: hint for name, hint in get_type_hints(kind).items() if name != "datasets"}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, 1)
            raise DataError(f"{where}: unknown key {key!r:.60}{f', did you mean {near[0]}?' if near else ''}")
        if value is None and type(None) not in get_args(types[key]) and types[key] is not str:
            raise DataError(f"{where}: {key} must not be null")
        found[key] = _typed(value, types[key], f"{where}: {key}")
    return found


def _typed(value: Any, hint: Any, where: str) -> Any:
    options = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if value is None:
        return "" if hint is str else None
    wanted = options[0]
    if get_origin(wanted) is tuple:
        if isinstance(value, list) and len(value) == 2 and all(_is_number(part) for part in value):
            return tuple(float(part) for part in value)
        raise DataError(f"{where} must be a list of two numbers, not {value!r:.60}")
    if wanted is float and _is_number(value):
        return float(value)
    if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        if wanted is int and value < 1:
            raise DataError(f"{where} must be at least 1, not {value}")
        return value
    raise DataError(f"{where} must be of type {wanted.__name__}, not {value!r:.60}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def load_custom_metadata(path: str) -> CustomMetadata:
    """The function `get_custom_metadata` of a Python file that the user names; raises DataError when it is not there.

    The file is run: it is the user's own program, named in the user's own configuration.
    """
    spec = importlib.util.spec_from_file_location("custom_metadata", path)
    try:
        if spec is None or spec.loader is None:
            raise ImportError("not a .py file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = module.get_custom_metadata
    except AttributeError:
        raise DataError(f"custom_metadata_module {path}: defines no get_custom_metadata(info, audio)") from None
    except Exception as error:  # whatever the user's file does
        raise DataError(f"custom_metadata_module {path}: {type(error).__name__}: {error}") from error
    return _guarded(function, path)


def _guarded(function: Any, path: str) -> CustomMetadata:
    def call(info: dict[str, Any], audio: NDArray[np.float32] | None) -> dict[str, Any]:
        try:
            found = function(info, audio)
        except Exception as error:  # whatever the user's file does
            about = info.get("relpath", info.get("path", "an item"))
            raise DataError(f"custom_metadata_module {path}, for {about}: {type(error).__name__}: {error}") from error
        if not isinstance(found, dict):
            raise DataError(f"custom_metadata_module {path}: returned {type(found).__name__}, not a dictionary")
        return found

    return call
