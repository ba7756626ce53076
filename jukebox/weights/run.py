"""The command that fetches published weights."""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jukebox import settings
from jukebox.errors import UsageError
from jukebox.hparams import presets
from jukebox.resources import size_text
from jukebox.weights import download
from jukebox.weights.catalogue import Catalogue, Remote, catalogue, hub_folder, hub_shards, mirrored
from jukebox.weights.hps import FetchHps

log = logging.getLogger(__name__)

INDEX = "pytorch_model.bin.index.json"
EVERY_SEC = 10.0


def main(argv: list[str] | None = None) -> int:
    """Fetch what a model set needs. Raises UsageError, FetchError."""
    hps = settings.parse("fetch", sys.argv[1:] if argv is None else argv).section(FetchHps)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not hps.model:
        raise UsageError(f"Name a model set: python jukebox/fetch.py {'|'.join(presets.model_sets())}.")
    wanted = catalogue(hps.model, hps.cache)
    print(f"{wanted.model}: {wanted.licence or 'no licence stated'}")
    if hps.source == "huggingface":
        return _fetch_port(hps, wanted)
    remotes = [remote for remote in wanted.remotes if hps.only in ("all", remote.part)]
    if hps.show:
        return _show(remotes, hps.mirror)
    for remote in remotes:
        _fetch(remote, hps.mirror)
    if hps.only == "all":
        print(f"Ready: python jukebox/sample.py --model={hps.model} ...")
    return 0


def _fetch_port(hps: FetchHps, wanted: Catalogue) -> int:
    """The port keeps all nets in shards that an index names; the id tables are those of the published files."""
    if hps.only != "all":
        raise UsageError(f"--only={hps.only}: the port holds all nets in the same files; leave out --source or --only.")
    address, folder = hub_folder(hps.model, hps.cache)
    index = Remote("index of shards", f"{address}/{INDEX}", folder / INDEX)
    tables = [remote for remote in wanted.remotes if remote.what == "id table"]
    if hps.show:
        return _show((index, *tables), hps.mirror)
    _fetch(index, hps.mirror)
    shards = [Remote("shard", f"{address}/{name}", folder / name) for name in hub_shards(index.path)]
    for remote in (*shards, *tables):
        _fetch(remote, hps.mirror)
    print(f"Ready in {folder}")
    return 0


def _show(remotes: Sequence[Remote], mirror: str) -> int:
    for remote in remotes:
        url = mirrored(remote.url, mirror)
        size = download.size_of(url)
        here = " (is there)" if remote.path.is_file() else ""
        print(f"{remote.what}: {url}, {'size unknown' if size is None else size_text(size)}, to {remote.path}{here}")
    return 0


def _fetch(remote: Remote, mirror: str) -> Path:
    said = time.monotonic()

    def report(done: int, total: int | None) -> None:
        nonlocal said
        if time.monotonic() - said >= EVERY_SEC:
            said = time.monotonic()
            log.info("%s: %s of %s", remote.path.name, size_text(done), size_text(total) if total else "?")

    print(f"{remote.what}: {remote.path}", flush=True)
    return download.fetch(mirrored(remote.url, mirror), remote.path, report=report)
