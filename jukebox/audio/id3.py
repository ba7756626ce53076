"""A small ID3v2.4 tag writer: FFmpeg stores lyrics in MP3 files where no player looks for them."""

from collections.abc import Mapping

_FRAMES = {"title": "TIT2", "artist": "TPE1", "album": "TALB", "genre": "TCON", "date": "TDRC"}


def id3_tag(tags: Mapping[str, str]) -> bytes:
    """The tag to put before the first MP3 frame; empty bytes without tags.

    `lyrics` becomes USLT and `comment` COMM, known names their own frame, any other name TXXX.
    Source: https://id3.org/id3v2.4.0-structure and id3v2.4.0-frames (all text in UTF-8).
    """
    frames = b"".join(_frame(name, text) for name, text in tags.items() if text)
    return b"ID3\x04\x00\x00" + _synchsafe(len(frames)) + frames if frames else b""


def _frame(name: str, text: str) -> bytes:
    value = text.replace("\0", "").encode("utf-8", "replace")
    if name in _FRAMES:
        return _packed(_FRAMES[name], b"\x03" + value)
    if name in ("lyrics", "comment"):
        return _packed("USLT" if name == "lyrics" else "COMM", b"\x03und\0" + value)
    return _packed("TXXX", b"\x03" + name.encode("utf-8", "replace") + b"\0" + value)


def _packed(kind: str, body: bytes) -> bytes:
    return kind.encode() + _synchsafe(len(body)) + b"\0\0" + body


def _synchsafe(number: int) -> bytes:
    """Four bytes of seven bits each, so that no size looks like the start of an MP3 frame."""
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))
