"""What is known about a song apart from its sound: one type below training, encoding and sampling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jukebox.errors import DataError

CharTime = tuple[float, float]  # start and end of one lyric character in the song, in seconds


@dataclass(frozen=True)
class SongMeta:
    """Artist, genre, lyrics and title of a song; what is not known is "unknown" (artist, genre) or empty.

    `times` gives one (start_sec, end_sec) per character of `lyrics` as they stand here, before any cleaning, or is None.
    `extra` keeps further fields of a metadata file untouched.
    """

    artist: str = "unknown"
    genre: str = "unknown"
    lyrics: str = ""
    title: str = ""
    times: tuple[CharTime, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields that say something, in plain types; `from_json` gives the same song back."""
        found: dict[str, Any] = {**self.extra, "artist": self.artist, "genre": self.genre}
        found |= {name: text for name, text in (("lyrics", self.lyrics), ("title", self.title)) if text}
        if self.times is not None:
            found["times"] = [list(pair) for pair in self.times]
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "metadata") -> "SongMeta":
        """A song from the fields of a JSON object; a missing field and null mean "not known".

        Raises DataError, beginning with `where`, for a field of another type or a number of times that does not fit.
        """
        fields: dict[str, Any] = {}
        for name in ("artist", "genre", "lyrics", "title"):
            text = value.get(name)
            if text is None or text == "":
                continue
            if name == "lyrics" and isinstance(text, list):  # one entry per line
                text = "\n".join(str(line) for line in text)
            if isinstance(text, (int, float)) and not isinstance(text, bool):
                text = str(text)
            if not isinstance(text, str):
                raise DataError(f"{where}: {name} must be a text, not {type(text).__name__}")
            fields[name] = text
        if value.get("times") is not None:
            fields["times"] = _times(value["times"], len(fields.get("lyrics", "")), where)
        known = {"artist", "genre", "lyrics", "title", "times"}
        return cls(**fields, extra={name: item for name, item in value.items() if name not in known})


def _times(value: Any, characters: int, where: str) -> tuple[CharTime, ...]:
    try:
        times = tuple((float(start), float(end)) for start, end in value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: times must be a list of [start_sec, end_sec]") from None
    if len(times) != characters:
        raise DataError(f"{where}: {len(times)} times for {characters} characters of lyrics; give one per character")
    late = next((i for i, (start, end) in enumerate(times) if not 0 <= start <= end < float("inf")), None)
    if late is not None:
        raise DataError(f"{where}: time {late} is {times[late]}, it must be 0 <= start <= end")
    return times
