"""The restricted reader of weight files: tensors, numbers and text; nothing in a file can run, and nothing is copied.

torch.load with its restricted unpickler notices neither odd layouts, nor views larger than their storage, nor a flipped
bit, and its refusals advise to switch the check off. This module closes those gaps; every weight file is read here.
"""

import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from jukebox.errors import CheckpointError
from jukebox.files import printable

MAX_LEAVES = 2_000_000  # the largest real file holds some ten thousand; a bomb of shared lists holds any number
MAX_DEPTH = 64
LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # opens files written before torch 1.6
VALUES = "(values)"  # the digest of everything that is not a tensor

Leaf = torch.Tensor | int | float | str | None


def load(path: Path) -> Any:
    """A torch file (zip or legacy) or a safetensors file as a tree of dict, list, tuple, tensors, numbers and text.

    Zip and safetensors files are memory-mapped: a tensor costs memory once it is copied. Raises CheckpointError with
    the reason when the file is no weight file, is cut short, or holds anything else.
    """
    kind = _sniff(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the very things refused below
            if kind == "safetensors":
                tree: Any = _load_safetensors(path)
            else:
                tree = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except Exception as error:  # a hostile file can raise anything from inside the unpickler
        raise CheckpointError(f"{path}: {_reason(error)}") from None
    return plain(tree, str(path))


def plain(tree: Any, source: str) -> Any:
    """The same tree with plain containers and detached tensors; raises CheckpointError, naming the place, for the rest."""
    leaves = 0

    def visit(value: Any, where: str, depth: int) -> Any:
        nonlocal leaves
        leaves += 1
        if depth > MAX_DEPTH or leaves > MAX_LEAVES:
            raise CheckpointError(f"{source}: refused at {printable(where)[:200]}: nested too deeply or endlessly")
        if isinstance(value, torch.Tensor):
            return _checked(value, f"{source}: {printable(where)}")
        if isinstance(value, dict):
            if not all(isinstance(key, str | int) for key in value):
                raise CheckpointError(
                    f"{source}: refused: {printable(where)} has keys that are neither text nor numbers"
                )
            return {key: visit(item, f"{where}/{key}" if where else str(key), depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [visit(item, f"{where}/{i}", depth + 1) for i, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if value is None or type(value) in (int, float, bool, str):
            return value
        raise CheckpointError(
            f"{source}: refused: {printable(where)} is a {type(value).__name__}; only tensors, numbers and text are read"
        )

    return visit(tree, "", 0)


def leaves(tree: Any, where: str = "") -> Iterator[tuple[str, Leaf]]:
    """Every (path, leaf) of a plain tree, in its own order."""
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in pairs:
            yield from leaves(value, f"{where}/{key}" if where else str(key))
    else:
        yield where, tree


def digests(tree: Any) -> dict[str, int]:
    """CRC-32 of each tensor's bytes by path, and one for all other values together."""
    found = {}
    values = 0
    for where, leaf in leaves(tree):
        if isinstance(leaf, torch.Tensor):
            found[where] = zlib.crc32(leaf.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            values = zlib.crc32(f"{where}={leaf!r}\n".encode("utf-8", "surrogatepass"), values)
    return {**found, VALUES: values}


def storage_bytes(tree: Any) -> int:
    """Bytes that the tensors of a tree take in a file; tied ones count once."""
    tensors = [leaf for _, leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _checked(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """The tensor without its autograd side, if it is an ordinary dense one inside its own storage."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_nested:
        raise CheckpointError(f"{where} is a {tensor.layout} tensor: refused, only dense ones are read")
    if tensor.is_quantized or tensor.is_complex():
        raise CheckpointError(f"{where} has the type {tensor.dtype}: refused, only real numbers are read")
    if tensor.is_meta:
        raise CheckpointError(f"{where} has a shape but no data: refused")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape, stored = tuple(tensor.shape), tensor.untyped_storage().nbytes()
        raise CheckpointError(f"{where} claims the shape {shape} over {stored} stored bytes: refused")
    return tensor.detach()


def _sniff(path: Path) -> str:
    """ "zip", "legacy" or "safetensors", by content; raises CheckpointError for what is plainly something else."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; copy or download it again")
    if head.startswith(b"PK"):
        _refuse_compressed(path)
        return "zip"
    if LEGACY_MAGIC in head[:64]:
        return "legacy"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(path.stat().st_size, 100_000_000):
        return "safetensors"
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path}: a tar archive, not a torch file; files of torch before 0.1.10 are not read")
    if head.lstrip()[:1] in (b"<", b"{") or head.startswith(b"version https://git-lfs"):
        shown = printable(head.lstrip()[:40].decode("ascii", "replace"))
        raise CheckpointError(f"{path}: a text or web page ({shown!r}), not a weight file; download it again")
    raise CheckpointError(f"{path}: neither a torch nor a safetensors file (starts with {head[:8].hex(' ')})")


def _refuse_compressed(path: Path) -> None:
    """torch stores its members as they are; a compressed one is a bomb or a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            squeezed = [m.filename for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CheckpointError(f"{path}: the file is cut short or damaged; copy or download it again") from None
    if squeezed:
        raise CheckpointError(f"{path}: refused: {printable(squeezed[0])} is compressed, which torch never does")


def _load_safetensors(path: Path) -> dict[str, Any]:
    """The tensors; of a file that our export wrote (models/export.py), `model`, `hps` and `step`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safe_open is no mapping)
        described = (file.metadata() or {}).get("jukebox")
    return {**json.loads(described), "model": tensors} if described else tensors


def _reason(error: Exception) -> str:
    """Our words for a failure of the loader; torch's own would advise to switch the check off."""
    text = str(error)
    name = re.search(r"GLOBAL\s+`?([\w.]+)", text) or re.search(r"(?:class|function) `?([\w.]+\.[\w.]+)", text)
    if name:
        shown = re.sub(r"^(posix|nt)\.", "os.", name[1])
        return f"refused: contains {shown}; only tensors, numbers and text are read"
    if type(error).__name__ == "UnpicklingError":
        return "refused: holds something else than tensors, numbers and text, or is damaged"
    if isinstance(error, MemoryError) or "allocate" in text:
        return "refused: claims more data than fits into memory"
    if isinstance(error, EOFError) or re.search(
        r"EOF|central directory|corrupt|truncat|Incomplete", text, re.IGNORECASE
    ):
        return "the file is cut short or damaged; copy or download it again"
    first = printable(text.splitlines()[0] if text else type(error).__name__)
    return f"the file is damaged ({first[:160]})"
