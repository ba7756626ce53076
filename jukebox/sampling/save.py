"""What a sampling run leaves behind: codes after every window, and for each finished level sound, codes and the page.

The folder of a run:

    run.json                 what was asked, and of which model
    progress/item_<i>_level_<l>.npy   codes so far: the truth a restart goes on from; all else is made from them
    progress/trace_<rank>.jsonl       when each window was begun and finished
    progress/align_<i>.npz            attention on the lyrics
    level_<l>/item_<i>.wav, data.pth.tar, index.html    a wav grows with the codes; flac, mp3, data.pth.tar when whole
    level_<l>/item_<i>/      lyrics.json, align.json, align.png (as published), lyrics.lrc, lyrics.vtt, song.json
    parents/<take>/          the takes of other runs that songs grew from (jukebox/sampling/lineage.py)
    codes/                   a store of codes of the finished levels (jukebox/codestore)
    index.html               all levels together
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jukebox import files
from jukebox.audio import io as audio_io
from jukebox.codestore.layout import ItemFacts, Source
from jukebox.codestore.writer import StoreWriter
from jukebox.errors import DataError
from jukebox.labels.vector import Label
from jukebox.models import restricted
from jukebox.models.codec import Codec
from jukebox.pages.page import WordTime
from jukebox.sampling import lineage
from jukebox.sampling.levels import Codes, Song

FORMATS = (".flac", ".mp3")  # beside the wav of a whole song


@dataclass(frozen=True)
class Aligned:
    """Lyrics and time of one item: attention `[N, F]` on the cleaned lyrics, and the times of the words as given."""

    weights: NDArray[np.float32]
    lyrics: str
    words: tuple[WordTime, ...]


@dataclass(frozen=True)
class Remembered:
    """Which levels a run samples, highest first, for which items (requests as JSON), and the command that began it.

    created: the day it began; checkpoints: SHA-256 of the files that sing, by name.
    """

    levels: list[int]
    items: list[dict[str, Any]]
    command: str = ""
    created: str = ""
    checkpoints: dict[str, str] = field(default_factory=dict)


@dataclass
class RunFolder:
    """One sampling run on disk. asked: everything that decides the result, as plain JSON."""

    root: Path
    asked: Mapping[str, Any]

    @property
    def _text(self) -> str:
        return json.dumps(self.asked, indent=1, sort_keys=True)

    def key(self, item: int) -> str:
        """Names an item's take among the takes of all runs."""
        return f"{lineage.run_id(self._text)}:{item}"

    def is_same(self) -> bool:
        """Whether the folder holds this very run already, which then goes on."""
        path = self.root / "run.json"
        return path.exists() and path.read_text(encoding="utf-8") == self._text and self._state.exists()

    def begin(self) -> None:
        """Make the folder ready. Another run found there is moved to `earlier/<n>/`, not deleted. For one process."""
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in {path.parent for path in self.root.rglob(".tmp-*")}:
            files.remove_stale_temps(folder)
        if self.is_same():
            return
        begun, path = self.root / "progress", self.root / "run.json"
        if begun.exists() and not self._state.exists():  # killed before it sampled anything: given codes and no more
            for name in (begun, self.root / lineage.PARENTS):
                shutil.rmtree(name, ignore_errors=True)
            if path.exists() and path.read_text(encoding="utf-8") == self._text:
                path.unlink()
        self._set_aside()
        (self.root / "progress").mkdir()
        files.publish_text(self.root / "run.json", self._text)

    @property
    def _state(self) -> Path:
        return self.root / "progress" / "plan.json"

    def remember(self, remembered: Remembered) -> None:
        """Record, after the given codes are saved, what this run is."""
        files.publish_json(self._state, asdict(remembered))

    def remembered(self) -> Remembered:
        """What `remember` recorded."""
        return Remembered(**json.loads(self._state.read_text(encoding="utf-8")))

    def _set_aside(self) -> None:
        old = [p for p in self.root.iterdir() if p.name not in ("earlier", "LOCK") and not p.name.startswith(".tmp-")]
        if not old:
            return
        number = 1
        while (target := self.root / "earlier" / str(number)).exists():
            number += 1
        target.mkdir(parents=True)
        for path in sorted(old, key=lambda p: p.name == "run.json"):  # the name of the run goes last
            path.rename(target / path.name)

    def save(self, songs: Sequence[Song], level: int) -> None:
        """Publish the codes of a level of some songs as they are now; the disk is waited for once, not for each."""

        def save(song: Song) -> None:
            buffer = io.BytesIO()
            np.save(buffer, song.codes[level].astype(np.int32))
            files.publish_bytes(self._progress(song.request.item, level), buffer.getvalue())

        with ThreadPoolExecutor(len(songs)) as pool:
            list(pool.map(save, songs))
        files.fault_point("sample.after_window")

    def load(self, item: int, level: int) -> Codes | None:
        """The codes that a level of an item has, or None. Raises DataError when the file is damaged."""
        path = self._progress(item, level)
        try:
            return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False).astype(np.int64)  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is damaged ({error}). Delete it, and this level is sampled anew.") from None

    def stamp(self, item: int, level: int) -> int:
        """Changes when the codes of a level of an item do; 0 while there are none."""
        try:
            return self._progress(item, level).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def load_all(self, song: Song, levels: int) -> None:
        """Give a song the codes it had when the run was left."""
        for level in range(levels):
            codes = self.load(song.request.item, level)
            if codes is not None:
                song.codes[level] = codes

    def save_alignment(self, item: int, weights: NDArray[np.float32]) -> None:
        """Publish the attention of an item on its lyrics."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, weights=weights)
        files.publish_bytes(self._alignment(item), buffer.getvalue())

    def load_alignment(self, item: int) -> NDArray[np.float32] | None:
        """What `save_alignment` stored, or None. Raises DataError when the file is damaged."""
        found = _arrays(self._alignment(item), "this item is aligned anew")
        return None if found is None else found["weights"].astype(np.float32)

    def _alignment(self, item: int) -> Path:
        return self.root / "progress" / f"align_{item:04d}.npz"

    def _progress(self, item: int, level: int) -> Path:
        return self.root / "progress" / f"item_{item:04d}_level_{level}.npy"

    def trace(self, rank: int) -> Path:
        """The record of the windows that one process samples, one line of JSON each."""
        return self.root / "progress" / f"trace_{rank}.jsonl"

    def level(self, level: int) -> Path:
        """The folder of a level."""
        return self.root / f"level_{level}"

    def wav(self, item: int, level: int) -> Path:
        """The sound of an item at a level; FORMATS stand beside it once it is whole."""
        return self.level(level) / f"item_{item}.wav"

    def decode(self, song: Song, level: int, codec: Codec, tags: Mapping[str, str]) -> NDArray[np.float32]:
        """Write an item's sound at a level, as far as it has codes: from this level alone, cut to the length asked for."""
        folder = self.level(level)
        folder.mkdir(exist_ok=True)
        audio = codec.decode(song.codes[level], level)[: song.length_samples]
        audio_io.write(self.wav(song.request.item, level), audio, codec.geometry.sr_hz, tags=tags)
        return audio

    def decode_whole(self, song: Song, level: int, codec: Codec, tags: Mapping[str, str]) -> None:
        """The same of a level that is whole, in all formats, and its unclipped audio for `export`, whose file says that all
        are there."""
        audio = self.decode(song, level, codec, tags)
        for suffix in FORMATS:
            path = self.wav(song.request.item, level).with_suffix(suffix)
            audio_io.write(path, audio, codec.geometry.sr_hz, tags=tags)
        files.publish(self._array(song.request.item, level), lambda out: np.save(out, audio))

    def is_decoded(self, item: int, level: int) -> bool:
        """Whether the sound of an item that is whole at a level is there."""
        return self.finished(level) or self._array(item, level).exists()

    def _array(self, item: int, level: int) -> Path:
        return self.level(level) / f"x_{item:04d}.npy"

    def sound(self, item: int, level: int) -> NDArray[np.float32]:
        """An item's unclipped audio `[T]` at a level."""
        found: NDArray[np.float32] = np.load(self._array(item, level), allow_pickle=False)
        return found

    def finished(self, level: int) -> bool:
        """Whether the exports of a level are all there."""
        return (self.level(level) / "data.pth.tar").exists()

    def export(
        self, songs: Sequence[Song], level: int, levels: int, labels: Sequence[Mapping[str, Any]],
        settings: Sequence[Mapping[str, Any]],
    ) -> None:  # fmt: skip
        """`data.pth.tar` of a level: zs of all levels (empty below), labels, settings, x; loads with weights_only."""
        zs: list[torch.Tensor] = []
        none = np.zeros(0, np.int64)
        for i in range(levels):
            rows = [song.codes.get(i, none) if i >= level else none for song in songs]
            shortest = min(len(row) for row in rows)  # where lengths differ; codes/ has them whole
            zs.append(torch.from_numpy(np.stack([row[:shortest] for row in rows])))
        sounds = [self.sound(song.request.item, level) for song in songs]
        shortest = min(len(sound) for sound in sounds)
        x = torch.from_numpy(np.stack([sound[:shortest] for sound in sounds]))[..., None]
        tree = {"zs": zs, "labels": list(labels), "sampling_kwargs": list(settings), "x": x}
        files.publish(self.level(level) / "data.pth.tar", lambda out: torch.save(tree, out))

    def drop_arrays(self, level: int) -> None:
        """Remove the float copies that `export` and the page were made from."""
        for path in self.level(level).glob("x_*.npy"):
            path.unlink()

    def done(self) -> list[int]:
        """The levels whose exports are all there, highest first."""
        found = [int(path.parent.name.removeprefix("level_")) for path in self.root.glob("level_*/data.pth.tar")]
        return sorted(found, reverse=True)

    def audible(self) -> list[int]:
        """The levels of which there is any sound, highest first."""
        found = {int(path.parent.name.removeprefix("level_")) for path in self.root.glob("level_*/item_*.wav")}
        return sorted(found, reverse=True)

    def save_aligned_codes(self, level: int, aligned: Sequence[Aligned | None]) -> None:
        """`data_align.pth.tar` of a level: its data.pth.tar, and the attention of each item under `alignments`."""
        none = torch.zeros(0, 0)
        tree = restricted.load(self.level(level) / "data.pth.tar")
        tree["alignments"] = [none if found is None else torch.from_numpy(found.weights) for found in aligned]
        files.publish(self.level(level) / "data_align.pth.tar", lambda out: torch.save(tree, out))

    def store(self, songs: Sequence[Song], done: Sequence[int], codec: Codec, details: Mapping[str, Any]) -> None:
        """Publish `codes/` anew with all finished levels."""
        fresh, final, old = (self.root / name for name in (".codes-new", "codes", ".codes-old"))
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        sources = [Source(f"item_{song.request.item}", f"item_{song.request.item}") for song in songs]
        with StoreWriter.create_or_resume(
            fresh, codec.geometry, codec.fingerprint, sources, levels=sorted(done)
        ) as writer:  # fmt: skip
            for place, song in enumerate(songs):
                item = song.request.item
                extra = lineage.take_facts(f"{self.root.resolve().name}:{item}", self.key(item), song.request)
                facts = ItemFacts(song.length_samples, song.length_samples, audio_channels=1, extra=extra)
                padded = codec.geometry.padded_length(song.length_samples)
                codes = {level: song.codes[level][: codec.geometry.codes_for(level, padded)] for level in done}
                writer.add(place, codes, facts)
            writer.finish(details)
        if final.exists():
            final.rename(old)
        fresh.rename(final)
        shutil.rmtree(old, ignore_errors=True)


def asked_before(root: Path) -> dict[str, Any]:
    """What the run in a folder was asked for, as its run.json says; {} when there is none that can be read."""
    try:
        found = json.loads((root / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def labels_of(labels: Sequence[Label | None]) -> dict[str, Any]:
    """The labels of one level as published files have them: `y` `[B, columns]` and a description of each item."""
    known = [label for label in labels if label is not None]
    if len(known) < len(labels):
        nothing: dict[str, Any] = {"artist": "n/a", "genre": "n/a", "lyrics": [], "full_tokens": []}
        return {"y": torch.zeros(len(labels), 0, dtype=torch.int64), "info": [dict(nothing) for _ in labels]}
    info = [
        {"artist": label.artist, "genre": label.genre, "lyrics": label.lyrics, "full_tokens": list(label.tokens)}
        for label in known
    ]
    return {"y": torch.from_numpy(np.stack([label.y for label in known])), "info": info}


def _arrays(path: Path, consequence: str) -> dict[str, NDArray[Any]] | None:
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}). Delete it, and {consequence}.") from None
