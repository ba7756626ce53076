"""Reading and writing the `.npy` arrays of a store: strict about the header, unable to crash on a bad file.

Only what `numpy.save` writes for plain little-endian numbers is read. Ranges are read with positioned reads, not
through a memory map: a file that is cut while it is mapped kills the process without a message.
Shapes: Q quantisers (1 for a level of a VQ-VAE), N codes or frames, D latent channels.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jukebox.errors import StoreError

CODE_DTYPES = ("<i2", "<i4", "<i8")
LATENT_DTYPES = ("<f2", "<f4")
AXES = ("QN", "NQ", "DN")
_HEADER = re.compile(
    r"^\{'descr': '(?P<dtype>[^'\\]{1,16})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[0-9, ]{0,64})\), \} *\n$"
)
_BLOCK = 1 << 20  # values per block when an array is written or searched


@dataclass(frozen=True)
class ArraySpec:
    """What every array of a level looks like: dtype, meaning of its two axes, and its rows (Q or D)."""

    dtype: str
    axes: str = "QN"
    rows: int = 1

    def __post_init__(self) -> None:
        fits = LATENT_DTYPES if self.axes == "DN" else CODE_DTYPES
        if self.axes not in AXES or self.dtype not in fits:
            raise StoreError(f"arrays of type {self.dtype!r} with axes {self.axes!r} are not kept in stores")
        if isinstance(self.rows, bool) or not isinstance(self.rows, int) or not 1 <= self.rows <= 2**20:
            raise StoreError(f"an array cannot have {self.rows!r} rows")

    @classmethod
    def for_codes(cls, bins: int, *, compat: bool = False) -> ArraySpec:
        """One code per time step, in int16 when the bins allow; `compat` asks for int64."""
        if compat:
            return cls("<i8")
        return cls("<i2" if bins <= 2**15 else "<i4")

    def shape(self, frames: int) -> tuple[int, int]:
        """Shape of an array that covers this many time steps."""
        return (frames, self.rows) if self.axes == "NQ" else (self.rows, frames)

    def frames(self, shape: tuple[int, ...]) -> int:
        """Time steps of an array of this shape."""
        return shape[0] if self.axes == "NQ" else shape[1]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {"dtype": self.dtype, "axes": self.axes, "rows": self.rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArraySpec:
        """The reverse of `to_json`; raises StoreError on anything else."""
        return cls(str(data.get("dtype")), str(data.get("axes")), data.get("rows", 0))


@dataclass(frozen=True)
class Header:
    """What the head of an `.npy` file says, checked against the size of the file."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    data_start: int


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read, never waiting on a pipe; raises StoreError when it is missing or no plain file."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as cause:
        raise StoreError(f"{path}: cannot be opened ({cause.strerror}). {_CURE}") from cause
    except ValueError as cause:
        raise StoreError(f"{str(path)!r}: not a file name") from cause
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise StoreError(f"{path}: is not a plain file. {_CURE}")
    return os.fdopen(handle, "rb")


_CURE = "`codes.py verify` lists every damaged item; with --repair the same pre_encode command makes them again."


def read_header(file: BufferedReader, path: Path) -> Header:
    """Read and check the head of an open `.npy` file; raises StoreError with the reason."""
    head = file.read(10)
    if len(head) < 10 or head[:6] != b"\x93NUMPY":
        raise StoreError(f"{path}: not an .npy file. {_CURE}")
    version, (length,) = (head[6], head[7]), struct.unpack("<H", head[8:10])
    if version != (1, 0):
        raise StoreError(f"{path}: .npy format {version[0]}.{version[1]} is not read, only 1.0")
    text = file.read(length).decode("latin-1")
    if len(text) < length:
        raise StoreError(f"{path}: ends inside its header. {_CURE}")
    match = _HEADER.match(text)
    if match is None:
        raise StoreError(f"{path}: has a header that numpy.save does not write: {text[:120]!r}. {_CURE}")
    dtype, sizes = match["dtype"], match["shape"].replace(" ", "").rstrip(",").split(",")
    if "O" in dtype:
        raise StoreError(f"{path}: holds Python objects; only plain numbers are read")
    if not re.fullmatch(r"<[if][248]|\|[iu]1", dtype):
        raise StoreError(f"{path}: holds {dtype!r}; only little-endian whole numbers and floats are read")
    if any(len(size) > 15 or not size.isdigit() for size in sizes if size):
        raise StoreError(f"{path}: has the impossible shape ({match['shape']})")
    shape = tuple(int(size) for size in sizes if size)
    data_start = 10 + length
    expected, actual = prod(shape) * np.dtype(dtype).itemsize, os.fstat(file.fileno()).st_size - data_start
    if expected != actual:
        raise StoreError(f"{path}: shape {shape} of {dtype} needs {expected} bytes, the file has {actual}. {_CURE}")
    return Header(dtype, shape, match["fortran"] == "True", data_start)


def check_header(header: Header, spec: ArraySpec, path: Path, frames: int | None = None) -> int:
    """Compare a header with what the store says; returns the time steps, raises StoreError naming both."""
    fits = header.dtype == spec.dtype and len(header.shape) == 2 and not header.fortran
    if fits:
        found = spec.frames(header.shape)
        fits = header.shape == spec.shape(found) and frames in (None, found)
    if not fits:
        wanted = f"{spec.dtype} {spec.shape(frames)}" if frames is not None else f"{spec.dtype}, axes {spec.axes}"
        order = ", Fortran order" if header.fortran else ""
        raise StoreError(f"{path}: expected {wanted}, found {header.dtype} {header.shape}{order}. {_CURE}")
    return found


def read_window(
    path: Path, spec: ArraySpec, start: int = 0, stop: int | None = None, frames: int | None = None
) -> NDArray[Any]:
    """Time steps [start, stop) of an array, in its own dtype and axes; reads no more than these bytes.

    Raises StoreError when the file is damaged, is not what `spec` and `frames` say, or is shorter than `stop`.
    """
    with open_regular(path) as file:
        header = read_header(file, path)
        check_header(header, spec, path, frames)
        return _read_steps(file, header, path, 0 if spec.axes == "NQ" else 1, start, stop)


def read_any(path: Path, time_axis: int = 1, start: int = 0, stop: int | None = None) -> NDArray[Any]:
    """Time steps [start, stop) of any array with two axes, as another program may have written it (Fortran order too).

    Raises StoreError when the file is damaged, holds objects, or is shorter than `stop`.
    """
    with open_regular(path) as file:
        header = read_header(file, path)
        if len(header.shape) != 2:
            raise StoreError(f"{path}: expected two axes, found the shape {header.shape}")
        return _read_steps(file, header, path, time_axis, start, stop)


def _read_steps(
    file: BufferedReader, header: Header, path: Path, time_axis: int, start: int, stop: int | None
) -> NDArray[Any]:
    total = header.shape[time_axis]
    stop = total if stop is None else stop
    if not 0 <= start <= stop <= total:
        raise StoreError(f"{path}: codes {start} to {stop} were asked for, it has {total}")
    width = header.shape[1 - time_axis]
    time_first = (time_axis == 0) != header.fortran  # as the bytes lie
    rows, step = (1, width) if time_first else (width, 1)
    values = np.empty((rows, (stop - start) * step), dtype=header.dtype)
    for row in range(rows if values.size else 0):
        file.seek(header.data_start + (row * total + start) * step * values.itemsize)
        if file.readinto(memoryview(values[row]).cast("B")) != values[row].nbytes:
            raise StoreError(f"{path}: was cut while it was read. {_CURE}")
    values = values.reshape((stop - start, width) if time_first else (width, stop - start))
    return values.T if header.fortran else values


def write_array(file: BinaryIO, values: NDArray[Any], spec: ArraySpec) -> None:
    """Write as `numpy.save` does (format 1.0, C order), block by block, converting to the dtype of `spec`."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": spec.dtype, "fortran_order": False, "shape": tuple(values.shape)}
    )
    flat = np.ascontiguousarray(values).reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        file.write(flat[start : start + _BLOCK].astype(spec.dtype).tobytes())


def check_range(values: NDArray[Any], bins: int, what: object) -> None:
    """Raise StoreError unless all codes are in [0, bins); in one pass without copies."""
    if values.size and (int(values.min()) < 0 or int(values.max()) >= bins):
        raise StoreError(
            f"{what}: holds codes from {values.min()} to {values.max()}, expected 0 to {bins - 1}. {_CURE}"
        )
