"""Tags in Ogg Vorbis and FLAC files, put in by hand, and a look at whether an Ogg file ends where it should.

FFmpeg could copy the sound into a new container with tags, but then sets wrong end positions in short Ogg files (measured
with FFmpeg 8.1), and libsndfile writes only a few tags and a random stream number.
Sources: RFC 3533 (Ogg pages), the Vorbis I specification sec. 5 (comments), RFC 9639 sec. 8 (FLAC metadata blocks).
"""

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import IO

_HEADER = struct.Struct("<4sBBqIIIB")  # OggS, version, flags, granule position, stream, page number, checksum, segments
_SERIAL = 1
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def comments(tags: Mapping[str, str]) -> bytes:
    """A Vorbis comment block: vendor, then NAME=text for each tag."""
    entries = [f"{name.upper()}={text}".encode("utf-8", "replace") for name, text in tags.items()]
    parts = [b"jukebox", *entries]
    packed = [struct.pack("<I", len(part)) + part for part in parts]
    return packed[0] + struct.pack("<I", len(entries)) + b"".join(packed[1:])


def tagged_flac(data: bytes, tags: Mapping[str, str]) -> bytes:
    """A FLAC file with these tags in place of its own."""
    blocks, at, last = [], 4, False
    while not last:
        last, kind = bool(data[at] & 0x80), data[at] & 0x7F
        end = at + 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        if kind not in (1, 4):  # padding and old comments
            blocks.append((kind, data[at + 4 : end]))
        at = end
    blocks.insert(1, (4, comments(tags)))
    headed = [
        bytes([kind | (0x80 if number == len(blocks) - 1 else 0)]) + len(block).to_bytes(3, "big") + block
        for number, (kind, block) in enumerate(blocks)
    ]
    return data[:4] + b"".join(headed) + data[at:]


def tagged_vorbis(data: bytes, tags: Mapping[str, str]) -> bytes:
    """An Ogg Vorbis file with these tags in place of its own and a fixed stream number, so equal sound is equal bytes."""
    pages = list(_pages(data))
    first, rest = pages[0], pages[1:]
    packets: list[bytes] = [b""]
    while len(packets) < 3:  # the comment and the setup packet; sound begins on a page of its own
        _, _, lacing, body = rest.pop(0)
        for size in lacing:
            packets[-1] += body[:size]
            body = body[size:]
            if size < 255:
                packets.append(b"")
    packets[0] = b"\x03vorbis" + comments(tags) + b"\x01"
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets[:2])
    body = packets[0] + packets[1]
    headers = []
    for begin in range(0, len(lacing), 255):
        part = lacing[begin : begin + 255]
        continued = 1 if begin and lacing[begin - 1] == 255 else 0
        ends_packet = any(size < 255 for size in part)
        headers.append((continued, 0 if ends_packet else -1, part, body[: sum(part)]))
        body = body[sum(part) :]
    return b"".join(_page(number, *page) for number, page in enumerate([first, *headers, *rest]))


def _pages(data: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(flags, granule position, segment sizes, body) of each page."""
    at = 0
    while at < len(data):
        _, _, flags, granule, _, _, _, count = _HEADER.unpack_from(data, at)
        start = at + _HEADER.size
        lacing = data[start : start + count]
        end = start + count + sum(lacing)
        yield flags, granule, lacing, data[start + count : end]
        at = end


def _page(number: int, flags: int, granule: int, lacing: bytes, body: bytes) -> bytes:
    def packed(checksum: int) -> bytes:
        header = _HEADER.pack(b"OggS", 0, flags, granule, _SERIAL, number, checksum, len(lacing))
        return header + lacing + body

    # Ogg's checksum is zlib's with all bits the other way round and without its inversions.
    crc = zlib.crc32(packed(0).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return packed(int(f"{crc:032b}"[::-1], 2))


def cut_short(file: IO[bytes]) -> bool:
    """Whether the last page of an Ogg file reaches beyond the file's end."""
    tail = _tail(file)
    page = tail.rfind(b"OggS")
    header = tail[page : page + _HEADER.size]
    if page < 0 or len(header) < _HEADER.size:
        return page >= 0
    start = page + _HEADER.size
    lacing = tail[start : start + header[-1]]
    return len(lacing) < header[-1] or start + len(lacing) + sum(lacing) > len(tail)


def last_page_start(file: IO[bytes]) -> int:
    """The position in samples where the last page begins, which is where the one before it ends; 0 if in doubt."""
    tail = _tail(file)
    at, positions = tail.find(b"OggS"), [0]
    while 0 <= at <= len(tail) - _HEADER.size:
        positions.append(_HEADER.unpack_from(tail, at)[3])
        at = tail.find(b"OggS", at + 1)
    ended = sorted({position for position in positions if position >= 0})
    return ended[-2] if len(ended) > 1 else 0


def _tail(file: IO[bytes]) -> bytes:
    """The end of a file, with its last two pages (one has at most 65,307 bytes); the file's position stays."""
    before = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 3 * (1 << 16)))
    tail = file.read()
    file.seek(before)
    return tail
