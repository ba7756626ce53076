"""Which files a published model is made of, where they are offered, and where they are kept here."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jukebox.errors import DataError, UsageError
from jukebox.files import inside, printable
from jukebox.hparams import presets

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Remote:
    """One file to fetch: what it is, its address, and its place here."""

    what: str
    url: str
    path: Path

    @property
    def part(self) -> str:
        """The part of its set it belongs to: vqvae, priors or ids."""
        return {"VQ-VAE": "vqvae", "id table": "ids"}.get(self.what, "priors")


@dataclass(frozen=True)
class Catalogue:
    """The files of one model set, and the terms they come under."""

    model: str
    licence: str
    remotes: tuple[Remote, ...]


def cache_folder(cache: str = "") -> Path:
    """Where fetched files are kept: as asked, else the variable JUKEBOX_CACHE, else ~/.cache as ever."""
    return Path(cache or os.environ.get("JUKEBOX_CACHE") or "~/.cache").expanduser()


def local_path(url: str, cache: str = "") -> Path:
    """The place of a published address here: the cache folder and the path of the address."""
    return inside(cache_folder(cache), urlsplit(url).path.lstrip("/"))


def ids_folder(cache: str = "") -> Path:
    """Where fetched id tables are kept."""
    return cache_folder(cache) / "jukebox" / "ids"


def catalogue(model: str, cache: str = "") -> Catalogue:
    """The published files of a model set: nets, and the id tables they were trained with.

    Raises UsageError when there is no such set or none of its files is published.
    """
    path, table = _model_set(model)
    remotes = [
        Remote(f"prior of level {level}" if level is not None else "VQ-VAE", url, local_path(url, cache))
        for level, part in [(None, table.get("vqvae", {})), *enumerate(table.get("priors", []))]
        for url in [str(part.get("checkpoint", ""))]
        if "://" in url
    ]
    for url in table.get("ids", []):
        remotes.append(Remote("id table", str(url), ids_folder(cache) / urlsplit(url).path.rpartition("/")[2]))
    if not remotes:
        raise UsageError(f"{path}: none of its files is published; nothing to fetch.")
    return Catalogue(model, str(table.get("licence", "")), tuple(remotes))


def how_to_fetch(url: str) -> str:
    """The shortest command that fetches a published file; empty when no model set names it."""
    for name in presets.model_sets():
        try:
            _, table = _model_set(name)
        except UsageError:  # another set, of which nobody spoke
            continue
        entries = [table["vqvae"], *table.get("priors", [])]
        if url in [entry.get("checkpoint") for entry in entries]:
            part = next(remote.part for remote in catalogue(name).remotes if remote.url == url)
            return f"python jukebox/fetch.py {name} --only={part}"
    return ""


def hub_folder(model: str, cache: str = "") -> tuple[str, Path]:
    """The address of the Hugging Face repository of a model set and the folder it is kept in. Raises UsageError."""
    path, table = _model_set(model)
    repository = str(table.get("huggingface", ""))
    if not repository:
        raise UsageError(f"{path} names no Hugging Face repository; leave out --source.")
    return hub_repository(repository, cache)


def hub_repository(name: str, cache: str = "") -> tuple[str, Path]:
    """The address of the files of a repository of a hub, and the folder they are kept in.

    The hub is Hugging Face's, or what the variable HF_ENDPOINT names.
    """
    address = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    return f"{address}/{name}/resolve/main", inside(cache_folder(cache), f"jukebox/huggingface/{name}")


def hub_shards(index: Path) -> list[str]:
    """The files that an index of shards names, plain names only. Raises DataError."""
    try:
        names = sorted(
            {str(name) for name in dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"]).values()}
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{index}: not an index of shards; remove it and fetch again") from None
    for name in names:
        inside(index.parent, name)
        if "/" in name:
            raise DataError(f"{index}: {printable(name)!r} is not a plain file name")
    return names


def mirrored(url: str, mirror: str) -> str:
    """The address of the same file at a mirror: its path below the mirror's address or folder."""
    if not mirror:
        return url
    base = mirror if "://" in mirror else Path(mirror).expanduser().absolute().as_uri()
    return base.rstrip("/") + urlsplit(url).path


def _model_set(model: str) -> tuple[Path, dict[str, Any]]:
    path = presets.find_model_set(model) or (Path(model) if model.endswith(".toml") else None)
    if path is None:
        raise UsageError(
            f"--model={printable(model)}: there is no such model set; known: {', '.join(presets.model_sets())}."
        )
    return path, presets.read_model_set(path)
