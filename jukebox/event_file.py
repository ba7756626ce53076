"""TensorBoard event files, written through tensorboardX's message types but not through its writer.

That one writes from a thread, which dies when the disk is full and takes the process with it at exit, and it computes
its checksums at 4 MB/s, half a minute for the clips of one log step.
"""

import functools
import io
import os
import socket
import struct
import time
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox.files import Appender, PathLike


class EventFile:
    """One event file in a folder, for one process; whatever is added is on its way to the disk when the call returns.

    `purge_step`: TensorBoard forgets what earlier files of the folder say about this step and later ones.
    Methods raise OSError; the file stays readable.
    """

    def __init__(self, folder: PathLike, purge_step: int | None = None) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2

        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = Appender(folder / _next_name(folder))
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(step=purge_step, session_log=start)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """One number per tag."""
        self._summary([self._value(tag, simple_value=value) for tag, value in values.items()], step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Text, shown as markdown, under the tag `<tag>/text_summary`."""
        from tensorboardX import summary

        self._add(step=step, summary=summary.text(tag, text.encode("utf-8", "backslashreplace").decode()))

    def audio(self, tag: str, audio: NDArray[Any], sr_hz: int, step: int) -> None:
        """A clip `[T]` or `[T, C]` in [-1, 1], clipped there, as 16-bit wav."""
        wav, (length_samples, channels) = _wav(audio, sr_hz)
        clip = self._summaries.Summary.Audio(
            sample_rate=sr_hz,
            num_channels=channels,
            length_frames=length_samples,
            encoded_audio_string=wav,
            content_type="audio/wav",
        )
        self._summary([self._value(tag, audio=clip)], step)

    def image(self, tag: str, image: NDArray[Any], step: int) -> None:
        """A picture `[height, width]` or `[height, width, 3]`, uint8 or floats in [0, 1]."""
        png, (height, width, colours) = _png(image)
        picture = self._summaries.Summary.Image(
            height=height, width=width, colorspace=colours, encoded_image_string=png
        )
        self._summary([self._value(tag, image=picture)], step)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _value(self, tag: str, **content: Any) -> Any:
        return self._summaries.Summary.Value(tag=tag, **content)

    def _summary(self, values: list[Any], step: int) -> None:
        self._add(step=step, summary=self._summaries.Summary(value=values))

    def _add(self, **content: Any) -> None:
        self._file.append(_record(self._events.Event(wall_time=time.time(), **content).SerializeToString()))


def _next_name(folder: Path) -> str:
    """A name that sorts behind all others there, even if the clock was set back: TensorBoard reads in that order."""
    prefix = "events.out.tfevents."
    earlier = [path.name.removeprefix(prefix).split(".")[0] for path in folder.glob(prefix + "*")]
    latest = max((int(text) for text in earlier if text.isdigit()), default=0)
    return f"{prefix}{max(int(time.time()), latest + 1):010d}.{socket.gethostname()}.{os.getpid()}"


def _record(data: bytes) -> bytes:
    """The TFRecord frame: length, its checksum, data, their checksum."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", _masked(length)), data, struct.pack("<I", _masked(data))))


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


# --- CRC-32C ----------------------------------------------------------------------------------------------------------
#
# A long message is cut into lanes of equal length that run side by side in numpy; their checksums are then joined in
# pairs, as zlib's crc32_combine does: crc(ab) = zeros(crc(a), len(b)) ^ crc(b), where `zeros` is linear over GF(2).

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_LANES = 2048


@functools.cache
def _table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (table & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    return table


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4) of bytes; 60 MB/s for long ones."""
    table = _table()
    length = len(data) // _LANES  # bytes of a lane
    crc = 0
    if length > 16:
        lanes = np.frombuffer(data, np.uint8, length * _LANES).reshape(_LANES, length).T.copy()  # [length, lane]
        state = np.full(_LANES, 0xFFFFFFFF, np.uint32)
        for row in lanes:
            state = table[(state ^ row) & 0xFF] ^ (state >> 8)
        crc = _join(~state, length)
        data = data[length * _LANES :]
    crc ^= 0xFFFFFFFF
    small = table.tolist()
    for byte in data:
        crc = small[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _join(crcs: NDArray[np.uint32], length: int) -> int:
    """The checksum of messages of `length` bytes each, one behind the other; their number is a power of two."""
    zeros = _power(_ZERO_BIT, 8 * length)
    while len(crcs) > 1:
        crcs = _apply(zeros, crcs[0::2]) ^ crcs[1::2]
        zeros = _apply(zeros, zeros)  # twice the length
    return int(crcs[0])


# A linear map is the images of the 32 single bits. This one appends a zero bit to a message.
_ZERO_BIT = np.array([_POLYNOMIAL, *(1 << bit for bit in range(31))], np.uint32)


def _apply(linear: NDArray[np.uint32], values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    result = np.zeros_like(values)
    for bit, image in enumerate(linear):
        result ^= np.where(values >> np.uint32(bit) & np.uint32(1), image, np.uint32(0))
    return result


def _power(linear: NDArray[np.uint32], times: int) -> NDArray[np.uint32]:
    result = np.array([1 << bit for bit in range(32)], np.uint32)
    while times:
        if times & 1:
            result = _apply(linear, result)
        linear = _apply(linear, linear)
        times >>= 1
    return result


# --- wav and png ------------------------------------------------------------------------------------------------------


def _wav(audio: NDArray[Any], sr_hz: int) -> tuple[bytes, tuple[int, int]]:
    clip = np.nan_to_num(np.atleast_2d(np.asarray(audio, np.float32).T).T)  # [T] or [T, C] -> [T, C]
    samples = (clip.clip(-1, 1) * 32767).round().astype("<i2")
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sr_hz)
        file.writeframes(samples.tobytes())
    return stream.getvalue(), (samples.shape[0], samples.shape[1])


def _png(image: NDArray[Any]) -> tuple[bytes, tuple[int, int, int]]:
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        pixels = (np.nan_to_num(pixels.astype(np.float32)).clip(0, 1) * 255).round().astype(np.uint8)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, colours = pixels.shape
    assert colours in (1, 3), f"a picture has 1 or 3 colours, not {colours}"
    rows = np.zeros((height, 1 + width * colours), np.uint8)  # each begins with its filter, 0 = none
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0 if colours == 1 else 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows.tobytes())), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts), (height, width, colours)
