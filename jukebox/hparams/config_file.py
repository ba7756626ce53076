"""Flags from a file: TOML, YAML or JSON, one value per flag; YAML may be composed of groups as Hydra does it."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jukebox.errors import HparamsError

_MISSING = "???"  # OmegaConf's mark of a value that the user must give


def read(path: Path, choices: Mapping[str, str]) -> dict[str, object]:
    """The values of a file, flat; those that are null or `???` are left out.

    choices: for a YAML file with `defaults`, which file of each group to take (`model=large`).
    Raises HparamsError naming the file and the mistake, or the package to install.
    """
    tree = _parse(path)
    if "defaults" in tree:
        tree = _compose(path, choices)
    elif choices:
        name, value = next(iter(choices.items()))
        raise HparamsError(f"{name}={value}: {path} has no group {name}, because it has no `defaults`.")
    return _flat(tree, path)


def groups(path: Path) -> set[str]:
    """The groups a YAML file composes, from its list of `defaults`."""
    listed = _parse(path).get("defaults", [])
    return (
        {name for entry in listed if isinstance(entry, dict) for name in entry} if isinstance(listed, list) else set()
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HparamsError(f"--config={path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    try:
        match path.suffix.lower():
            case ".toml":
                tree: Any = tomllib.loads(text)
            case ".json":
                tree = json.loads(text)
            case ".yaml" | ".yml":
                import yaml

                tree = yaml.safe_load(text)
            case _:
                raise HparamsError(f"--config={path}: the name must end with .toml, .yaml or .json")
    except (ValueError, RecursionError) as error:
        raise HparamsError(f"--config={path}: {error}") from None
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise HparamsError(f"--config={path}: {error}") from None
        raise
    if not isinstance(tree, dict):
        raise HparamsError(f"--config={path}: must hold one value per flag, not a {type(tree).__name__}")
    return tree


def _compose(path: Path, choices: Mapping[str, str]) -> dict[str, Any]:
    try:
        from hydra import compose, initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError:
        raise HparamsError(
            f"--config={path}: composes groups (`defaults`), which needs Hydra: pip install hydra-core"
        ) from None
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(path.parent.resolve()), version_base=None):
            config = compose(path.stem, overrides=[f"{name}={value}" for name, value in choices.items()])
        tree: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        raise HparamsError(f"--config={path}: {error}") from None
    return tree


def _flat(tree: Mapping[str, Any], path: Path) -> dict[str, object]:
    """The values of the file and of its groups; those in a group count where the file itself leaves them open."""
    values: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            continue
        if value is not None and value != _MISSING:
            values[str(name)] = value
    for name, value in tree.items():
        for inner, part in value.items() if isinstance(value, dict) else ():
            if isinstance(part, dict):
                raise HparamsError(f"--config={path}: {name}.{inner} is a table; flags have plain values")
            if part is not None and part != _MISSING:
                values.setdefault(str(inner), part)
    return values
