"""Where takes come from: which take of which run saved codes belong to, and the takes a run grew from, kept with it.

Every take has a key, `<run>:<item>`, where `<run>` is a digest of the run's `run.json`: it stays with the codes through
`codes.py cut`, `keep` and `join`, and with the run when its folder is moved or renamed.

    <run>/parents/<key>/take.json, sound.wav, song.json     an ancestor, so that the page needs no other folder
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jukebox import files
from jukebox.codestore.store import CodeStore, find_store
from jukebox.errors import DataError, StoreError
from jukebox.labels.song import SongMeta
from jukebox.pages import lyric_files
from jukebox.pages.page import Parent, WordTime
from jukebox.sampling.requests import Request

log = logging.getLogger(__name__)

PARENTS = "parents"
_KEY = re.compile(r"[0-9a-f]{12}:[0-9]{1,9}")  # codes and records may come from strangers, and a key names files


@dataclass(frozen=True)
class Origin:
    """The take that saved codes belong to; they begin at start_sec of it, and it is length_sec long in all.

    request: what was asked for, None where nothing is known of the song. key: "" for codes that no run of ours sang.
    """

    name: str
    start_sec: float = 0.0
    length_sec: float = 0.0
    key: str = ""
    request: Request | None = None

    def kept(self, seconds: float) -> Parent:
        """The parent of a take that begins with so many seconds of these codes."""
        return Parent(self.name, self.start_sec, self.start_sec + seconds, self.key)

    def would_repeat(self, request: Request, kept_sec: float) -> bool:
        """Whether the item, from there on, would be drawn with the very noise that this take was drawn with."""
        if self.request is None or not self.key or self.start_sec or kept_sec >= self.length_sec:
            return False
        return (self.request.seed, self.request.item) == (request.seed, request.item)


def run_id(run_json: str) -> str:
    """The first half of a take's key: a digest of a run's run.json."""
    return files.digest_bytes(run_json.encode())[:12]


def split(where: str) -> tuple[Path, list[str]]:
    """`--codes_file` as a path and the items of it: STORE:3,5, where STORE may be the folder of a run."""
    path, _, items = (where, "", "") if Path(where).exists() else where.rpartition(":")
    if not path:
        path, items = where, ""
    found = find_store(path)
    return found, [item for item in items.split(",") if item]


def origins(where: str) -> list[Origin]:
    """What is known of the songs of `--codes_file`, in order; [] when it does not exist, or says nothing."""
    path, items = split(where)
    if path.is_dir():
        store = CodeStore.open(path)
        return [_of_item(store, i) for i in (map(store.find, items) if items else range(len(store)))]
    run = path.parent.parent
    recorded = _requests(run)
    if not recorded:
        return []
    own = run_id((run / "run.json").read_text(encoding="utf-8"))
    return [_of_request(request, run.resolve().name, own) for request in recorded]


def _of_item(store: CodeStore, i: int) -> Origin:
    item = store.item(i)
    meta, rate = item.meta, store.geometry.sr_hz
    start_sec, length_sec = item.offset_samples / rate, item.total_samples / rate
    take = meta.get("take")
    if isinstance(take, Mapping) and isinstance(meta.get("song"), Mapping):
        try:
            request = Request.from_json({**take["request"], "song": meta["song"]})
            return Origin(str(take["name"]), start_sec, length_sec, _checked(str(take["key"])), request)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{store.root}: item {item.id} says nothing useful of its take ({error}).") from None
    song = SongMeta.from_json(meta["song"], str(store.root)) if isinstance(meta.get("song"), Mapping) else None
    return Origin(item.relpath, start_sec, length_sec, "", Request(0, song, 0) if song else None)


def take_facts(name: str, key: str, request: Request) -> dict[str, Any]:
    """What the metadata of a store's item says of the take it is."""
    asked = request.to_json()
    return {"song": asked.pop("song"), "take": {"name": name, "key": key, "request": asked}}


def _checked(key: str) -> str:
    return key if _KEY.fullmatch(key) else ""


def _of_request(request: Request, name: str, run: str) -> Origin:
    return Origin(f"{name}:{request.item}", 0.0, 0.0, f"{run}:{request.item}", request)


def _requests(run: Path) -> list[Request]:
    """The items that a run of ours recorded; [] for any other folder."""
    try:
        if not (run / "run.json").is_file():
            return []
        recorded = json.loads((run / "progress" / "plan.json").read_text(encoding="utf-8"))
        return [Request.from_json(item) for item in recorded["items"]]
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return []


# ------------------------------------------------------------------------------------------------------- what is sung


def same_songs(where: str, seed: int) -> list[Request]:
    """Requests for the songs that `--codes_file` holds: artist, genre, lyrics with their times, length of the whole song.

    [] when nothing is known of them.
    """
    known = [origin.request for origin in origins(where)]
    return [Request(item, own.song, seed, own.blends, total_sec=own.total_sec) for item, own in enumerate(known) if own]


def grown(
    requests: Sequence[Request], kept_sec: Sequence[float], codes_file: str, recordings: Sequence[str]
) -> list[Request]:
    """The items of a run, each with what it begins with: so many seconds of a saved take or a recording, by turns."""
    known = origins(codes_file) if codes_file else [Origin(Path(name).name) for name in recordings]
    found = []
    for request, seconds in zip(requests, kept_sec, strict=True):
        origin = (
            Origin(Path(request.prompt).name) if request.prompt else known[request.item % len(known)] if known else None
        )
        if origin is None or not seconds:
            found.append(request)
            continue
        if origin.would_repeat(request, seconds):
            log.warning(
                "song %d has the seed and the number of %s, which it grew from: with the same settings it is sung as that "
                "one was. Another --seed gives another.", request.item, files.printable(origin.name),
            )  # fmt: skip
        found.append(replace(request, parent=origin.kept(seconds)))
    return found


# ------------------------------------------------------------------------------------------------------ the ancestors


@dataclass(frozen=True)
class Ancestor:
    """A take of another run, kept in `folder` with its sound of one level; parent: what it grew from itself."""

    key: str
    name: str
    request: Request
    level: int
    folder: Path

    def words(self) -> tuple[WordTime, ...]:
        """When its words are sung; () where that is not known."""
        try:
            text = (self.folder / "song.json").read_text(encoding="utf-8")
            return lyric_files.read_words(text, self.request.song.lyrics)
        except (OSError, ValueError, KeyError, TypeError):
            return ()


def adopt(root: Path, parents: Sequence[Parent], codes_file: str) -> None:
    """Keep the takes that a run grew from, and those they grew from, in the run's own folder, as far as they are found.

    They are looked for in the run of `codes_file`, and in the runs beside this one and those set aside in them. Their
    sound becomes a hard link where the disk knows such.
    """
    todo = [parent.key for parent in parents if parent.key]
    runs = dict(_runs_around(root, codes_file)) if todo else {}
    seen = set[str]()
    while todo:
        key = todo.pop()
        if key in seen or not _checked(key):
            continue
        seen.add(key)
        known = _ancestor(_folder_of(root, key)) or _take_in(root, key, runs)
        if known and known.request.parent:
            todo.append(known.request.parent.key)


def ancestors(root: Path) -> list[Ancestor]:
    """What `adopt` kept, the eldest first."""
    left = {one.key: one for one in map(_ancestor, sorted((root / PARENTS).glob("*"))) if one}
    found: list[Ancestor] = []
    while left:
        eldest = [one for one in left.values() if not (one.request.parent and one.request.parent.key in left)]
        for one in sorted(eldest or left.values(), key=lambda one: (one.name, one.key)):
            found.append(left.pop(one.key))
    return found


def _take_in(root: Path, key: str, runs: Mapping[str, Path]) -> Ancestor | None:
    """The take of that key with what belongs to it, now in the folder of `root`; None when no run here has its sound."""
    run, _, item = key.partition(":")
    target = _folder_of(root, key)
    for folder in runs.values():
        if known := _ancestor(_folder_of(folder, key)):
            return _copy(known, known.folder / "sound.wav", known.folder / "song.json", target)
    if run not in runs:
        return None
    sounds = sorted(runs[run].glob(f"level_*/item_{item}.wav"))
    request = next((one for one in _requests(runs[run]) if str(one.item) == item), None)
    if not sounds or request is None:
        return None
    folder = sounds[0].parent
    level = int(folder.name.removeprefix("level_"))
    known = Ancestor(key, f"{runs[run].resolve().name}:{item}", request, level, folder)
    return _copy(known, sounds[0], folder / f"item_{item}" / "song.json", target)


def _copy(known: Ancestor, sound: Path, words: Path, target: Path) -> Ancestor:
    target.mkdir(parents=True, exist_ok=True)
    files.link_or_copy(sound, target / "sound.wav")
    if words.is_file():
        files.link_or_copy(words, target / "song.json")
    record = {"key": known.key, "name": known.name, "level": known.level, "request": known.request.to_json()}
    files.publish_json(target / "take.json", record, indent=1)  # last: with it the ancestor is whole
    return replace(known, folder=target)


def _ancestor(folder: Path) -> Ancestor | None:
    try:
        record = json.loads((folder / "take.json").read_text(encoding="utf-8"))
        request = Request.from_json(record["request"])
        return Ancestor(str(record["key"]), str(record["name"]), request, int(record["level"]), folder)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def _folder_of(run: Path, key: str) -> Path:
    return run / PARENTS / key.replace(":", "-")


def _runs_around(root: Path, codes_file: str) -> Iterator[tuple[str, Path]]:
    """Runs by the first half of their takes' keys."""
    path, _ = split(codes_file) if codes_file else (root, [])
    beside = sorted(root.resolve().parent.glob("*/run.json"))
    for record in [*beside, *(set_aside for run in beside for set_aside in sorted(run.parent.glob("earlier/*/run.json"))),
                   path.parent / "run.json", path.parent.parent / "run.json"]:  # fmt: skip
        try:
            yield run_id(record.read_text(encoding="utf-8")), record.parent
        except (OSError, ValueError):
            continue
