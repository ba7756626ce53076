"""Weights in the layout of the Hugging Face port: one folder, all nets in one file or in shards, .bin or .safetensors."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from jukebox import files
from jukebox.errors import CheckpointError
from jukebox.interop import huggingface
from jukebox.interop.published import Entry
from jukebox.models import restricted
from jukebox.models.checkpoint import Checkpoint

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = tuple(f"{name}.index.json" for name in _WHOLE)


def is_port(path: Path | str) -> bool:
    """Whether a folder holds such a file."""
    return any((Path(path) / name).is_file() for name in (*_WHOLE, *_INDEX))


class Port:
    """A folder of the port, its tensors mapped from the files: they take memory when copied.

    Raises CheckpointError when files are missing, damaged, or hold anything else than tensors.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.tensors: Mapping[str, Tensor] = {}
        for file, names in self._shards().items():
            tree = restricted.load(file)
            held = tree if isinstance(tree, dict) and all(isinstance(t, Tensor) for t in tree.values()) else {}
            absent = [name for name in names or held or ["tensors"] if name not in held]
            if absent:
                raise CheckpointError(f"{file}: lacks {files.printable(absent[0])}; download the folder again")
            self.tensors = {**self.tensors, **{name: held[name] for name in names or held}}

    def matches(self, table: Sequence[Entry], level: int | None, levels: int) -> bool:
        """Whether the net of a level (None: the VQ-VAE) is the one of this table, by names and shapes."""
        return huggingface.matches(table, huggingface.prefix_of(level, levels), self._shapes())

    def read(self, table: Sequence[Entry], level: int | None, levels: int) -> Checkpoint:
        """The net of a level (None: the VQ-VAE) under its published names. Raises CheckpointError when it is another."""
        prefix = huggingface.prefix_of(level, levels)
        if not huggingface.matches(table, prefix, self._shapes()):
            raise CheckpointError(
                f"{self.folder}: the net {prefix.rstrip('.')} has other tensors or shapes than asked for"
            )
        published = huggingface.to_published(table, prefix)
        model = {name: self.tensors[theirs] for theirs, name in published.items() if theirs in self.tensors}
        return Checkpoint(path=self.folder, model=model)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def _shards(self) -> dict[Path, list[str]]:
        """File -> the tensors the index promises in it (none named: all it has)."""
        for name in _INDEX:
            if (self.folder / name).is_file():
                return self._indexed(self.folder / name)
        for name in _WHOLE:
            if (self.folder / name).is_file():
                return {self.folder / name: []}
        raise CheckpointError(f"{self.folder}: holds neither {' nor '.join(_WHOLE)} nor an index of shards")

    def _indexed(self, index: Path) -> dict[Path, list[str]]:
        try:
            placed = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{index}: not an index of shards; download it again") from None
        shards: dict[Path, list[str]] = {}
        for name, file in placed.items():
            shards.setdefault(files.inside(self.folder, str(file), CheckpointError), []).append(name)
        return shards
