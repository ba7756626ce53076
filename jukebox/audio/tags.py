"""Tags in sound files, under one set of names whatever the format calls them. Writing is `io.write(..., tags=...)`."""

import os

from jukebox.audio import io

_NAMES = {"artist": "artist", "author": "artist", "album_artist": "album_artist", "title": "title", "genre": "genre",
          "lyrics": "lyrics", "unsyncedlyrics": "lyrics", "unsynced lyrics": "lyrics", "comment": "comment",
          "album": "album", "date": "date"}  # fmt: skip
_MAX_CHARACTERS = 1 << 20


def read(path: str | os.PathLike[str]) -> dict[str, str]:
    """artist, title, genre, lyrics, comment, album, album_artist, date: those that the file has and that say something.

    Raises AudioError for what is no sound file.
    """
    found: dict[str, str] = {}
    for key, value in io.metadata(path).items():
        name = _NAMES.get("lyrics" if key.startswith("lyrics-") else key)  # ID3's USLT comes as lyrics-eng and the like
        text = value.replace("\r\n", "\n").replace("\r", "\n").strip().strip("\0")
        if name and text:
            found.setdefault(name, text[:_MAX_CHARACTERS])
    return found
