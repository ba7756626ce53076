"""Names and numbers: tables of artists and genres, and the alphabets of lyrics. All are text files that users can edit.

A table has one `name;id` per line; id 0 is "unknown". Version 2 (5b, 5b_lyrics, the upsamplers) reduces names to
a-z, 0-9 and `_` and gives each word of a genre its own id; version 3 (1b_lyrics) takes names as they are, lower-cased,
and one id for a whole genre. A folder without these files may hold those of the Hugging Face port's tokenizer instead:
artists.json, genres.json and lyrics.json, names (characters) to ids, with `.v2` behind the names of version 2.
"""

import difflib
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jukebox.errors import DataError, HparamsError
from jukebox.files import printable
from jukebox.hparams.presets import share_folder

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
MOST_WARNINGS = 10  # unknown names told one by one
PORT = {"artist": "artists.json", "genre": "genres.json", "alphabet": "lyrics.json"}
PORT_VOCAB = {2: 80, 3: 79}  # entries of lyrics.json: which version it is the alphabet of
ESCAPES = {"t": "\t", "n": "\n", "\\": "\\", "s": " "}

# What anyascii spells otherwise than the transliteration the published models were trained with.
_OVERRIDES = {"—": "--", "―": "--", "‒": "-", "…": "..."}
_SPACED = ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH")  # each becomes a word of its own


@dataclass(frozen=True)
class IdTable:
    """Names, lower-cased, to ids. Several names may share one."""

    path: Path
    ids: dict[str, int]

    @property
    def bins(self) -> int:
        """The smallest number of classes of a model that has room for all ids."""
        return max(self.ids.values(), default=0) + 1

    def names(self, id_: int) -> list[str]:
        """All names of an id, sorted; none for an id without a name."""
        return sorted(name for name, found in self.ids.items() if found == id_)


def read_table(path: Path) -> IdTable:
    """Read a `name;id` file; of a name given twice the later line wins. Raises DataError naming file and line."""
    ids = {}
    for number, line in _lines(path):
        if not (text := line.strip()):
            continue
        name, separator, id_ = text.partition(";")
        if not separator or ";" in id_ or not id_.strip().isdecimal():
            raise DataError(f"{path}, line {number}: {printable(text)[:60]!r} is not `name;id` with an id from 0 up")
        ids[name.strip().lower()] = int(id_)
    if not ids:
        raise DataError(f"{path}: the table is empty; it needs one `name;id` per line, {UNKNOWN};0 first")
    return IdTable(path, ids)


def find_table(folder: Path, version: int, kind: str) -> IdTable:
    """The table of a kind ("artist" or "genre") in a folder: a text file, else the port's. Raises DataError."""
    own, port = folder / f"v{version}_{kind}_ids.txt", folder / PORT[kind]
    return read_port_table(port, version) if port.is_file() and not own.is_file() else read_table(own)


def read_port_table(path: Path, version: int) -> IdTable:
    """The names of one version in a JSON file of the port: those that end in `.v2`, or the others. Raises DataError."""
    ids = {
        name.removesuffix(".v2").strip().lower(): id_
        for name, id_ in _port_ids(path).items()
        if name.endswith(".v2") == (version == 2)
    }
    if not ids:
        raise DataError(f"{path}: no name in it is of version {version} (v2 names end in `.v2`)")
    return IdTable(path, ids)


def _port_ids(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(found, dict) or not all(type(id_) is int and id_ >= 0 for id_ in found.values()):
        raise DataError(f"{path}: needs one object of names and ids from 0 up, as the port's tokenizer has it")
    return found


def write_table(table: IdTable) -> str:
    """The text of a table file, sorted by id."""
    return "".join(f"{name};{id_}\n" for name, id_ in sorted(table.ids.items(), key=lambda item: (item[1], item[0])))


@dataclass
class LabelIds:
    """The tables of one version, and what was already said about names that are in none."""

    version: int  # 2 or 3
    artists: IdTable
    genres: IdTable
    strict: bool = False  # an unknown name is an error
    blends: dict[tuple[str, str], int] = field(
        default_factory=dict
    )  # ("artist" or "genre", name) -> id behind the table
    told: set[str] = field(
        default_factory=set, repr=False
    )  # what was warned of; may be shared, so that it is said once
    aloud: bool = True  # of several processes with the same songs one warns

    @classmethod
    def open(cls, folder: Path | str = "", version: int = 3, *, strict: bool = False, aloud: bool = True) -> "LabelIds":
        """`v<version>_artist_ids.txt` and `v<version>_genre_ids.txt` of a folder, by default the shipped one; or what the
        port calls them."""
        root = Path(folder) if folder else share_folder() / "data" / "ids"
        artists, genres = (find_table(root, version, kind) for kind in ("artist", "genre"))
        return cls(version, artists, genres, strict, aloud=aloud)

    def check(self, y_bins: tuple[int, int]) -> None:
        """Refuse tables with ids that a model of (genres, artists) classes has no room for. Raises HparamsError."""
        for kind, table, bins in zip(("genres", "artists"), (self.genres, self.artists), y_bins, strict=True):
            if table.bins > bins:
                needed = f"{self.genres.bins},{self.artists.bins}"
                raise HparamsError(
                    f"{table.path} has ids up to {table.bins - 1}, the model only {bins} {kind}; "
                    f"train with --y_bins={needed}, or give the tables of this model by --ids_dir"
                )
            if table.bins * 2 < bins and self.aloud:
                log.warning("%s names only %d of the model's %d %s: are they its own? (--ids_dir)",
                            table.path, table.bins, bins, kind)  # fmt: skip

    def artist_id(self, artist: str) -> int:
        """The id of an artist; 0 when unknown. Raises DataError when strict."""
        if ("artist", artist) in self.blends:
            return self.blends["artist", artist]
        return self._find("artist", artist, normalised(artist) if self.version == 2 else artist.lower())

    def genre_ids(self, genre: str, most: int) -> list[int]:
        """One id per word (version 2; words beyond `most` are left out) or one for all (version 3)."""
        if ("genre", genre) in self.blends:
            return [self.blends["genre", genre]]
        if self.version == 3:
            return [self._find("genre", genre, genre.lower())]
        words = normalised(genre).split("_")
        if len(words) > most:
            fault = f"has {len(words)} words, this model takes {most} (max_bow_genre_size)"
            self._tell(f"genre {printable(genre)!r}", lambda: fault, "; the rest is left out")
        return [self._find("genre", genre, word) for word in words[:most]]

    def artist_name(self, id_: int) -> str:
        """What an artist id is called in the table."""
        return "_".join(self.artists.names(id_))

    def genre_name(self, ids: list[int]) -> str:
        """What genre ids are called in the table; -1 stands for no word."""
        return "_".join("_".join(self.genres.names(id_)) for id_ in ids if id_ >= 0)

    def _find(self, kind: str, given: str, name: str) -> int:
        table = self.artists if kind == "artist" else self.genres
        if name not in table.ids and name not in ("", UNKNOWN):
            self._tell(
                f"{kind} {printable(given)!r}" + (f" (word {name!r})" if self.version == 2 and kind == "genre" else ""),
                lambda: f"is not in {table.path} ({_nearest(name, table)})",
                "; taken as unknown",
            )
        return table.ids.get(name, 0)

    def _tell(self, subject: str, fault: Callable[[], str], consequence: str) -> None:
        """Say once what is wrong with a name, and in all no more than a screenful; an error when strict."""
        if self.strict:
            raise DataError(f"{subject} {fault()}. Correct it, or leave out --strict_labels.")
        if not self.aloud or subject in self.told or len(self.told) > MOST_WARNINGS:
            return
        self.told.add(subject)
        if len(self.told) > MOST_WARNINGS:
            log.warning("More artists and genres are unknown or too long; they are not listed.")
        else:
            log.warning("%s %s%s", subject, fault(), consequence)


def _nearest(name: str, table: IdTable) -> str:
    near = difflib.get_close_matches(name, table.ids, n=3)
    return f"nearest: {', '.join(near)}" if near else "nothing like it there"


def normalised(name: str) -> str:
    """Version 2's form of a name: runs of anything but a-z and 0-9 become one `_`, none at the ends.

    Accented letters are such runs too: the published tables were made that way.
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@dataclass(frozen=True)
class Alphabet:
    """The characters of lyrics: the first has token 1, token 0 is padding and everything else.

    `transliterate` gives an ASCII spelling of one character.
    """

    characters: str
    transliterate: Callable[[str], str]

    @property
    def n_vocab(self) -> int:
        """Tokens, 0 included."""
        return len(self.characters) + 1

    @classmethod
    def open(cls, folder: Path | str = "", version: int = 3, *, text_compat: str = "anyascii") -> "Alphabet":
        """`alphabet_v<version>.txt` of a folder, or what the port calls it, or the shipped one where it has neither."""
        name, spelled = f"alphabet_v{version}.txt", transliterator(text_compat)
        if folder and (own := Path(folder) / name).is_file():
            return cls(read_alphabet(own), spelled)
        if folder and (port := Path(folder) / PORT["alphabet"]).is_file():
            characters = read_port_alphabet(port)
            if len(characters) + 1 == PORT_VOCAB[version]:
                return cls(characters, spelled)
        return cls(read_alphabet(share_folder() / "data" / "ids" / name), spelled)

    def check(self, n_vocab: int) -> None:
        """Raises HparamsError when a model was made for another number of characters."""
        if n_vocab != self.n_vocab:
            raise HparamsError(
                f"the alphabet has {self.n_vocab} tokens, the model n_vocab={n_vocab}; see data/ids/alphabet_*.txt"
            )

    def clean(self, text: str) -> tuple[str, list[int]]:
        """Text in this alphabet, and for each of its characters the index it comes from.

        Transliterated to ASCII, every backslash a new line, characters outside the alphabet dropped.
        """
        known = frozenset(self.characters)
        cleaned, sources = [], []
        for index, character in enumerate(text):
            for c in (character if character.isascii() else self.transliterate(character)).replace("\\", "\n"):
                if c in known:
                    cleaned.append(c)
                    sources.append(index)
        return "".join(cleaned), sources

    def tokens(self, cleaned: str) -> list[int]:
        """One token per character of cleaned text."""
        number = {c: i for i, c in enumerate(self.characters, 1)}
        return [number[c] for c in cleaned]

    def text(self, tokens: list[int]) -> str:
        """The characters of tokens; padding disappears."""
        return "".join(self.characters[token - 1] for token in tokens if token > 0)


def read_alphabet(path: Path) -> str:
    r"""One line of characters in the order of their tokens; `\t`, `\n`, `\s` (blank) and `\\` stand for those.

    Raises DataError for a second line, a character given twice or an unknown escape.
    """
    lines = [line.removesuffix("\r") for _, line in _lines(path) if line.strip()]
    if len(lines) != 1:
        raise DataError(f"{path}: needs exactly one line of characters, has {len(lines)}")
    characters = ""
    for escape, plain in re.findall(r"\\(.?)|([^\\])", lines[0]):
        if not plain and escape not in ESCAPES:
            raise DataError(rf"{path}: \{escape} is not one of \t \n \s \\")
        character = plain or ESCAPES[escape]
        if character in characters:
            raise DataError(f"{path}: {character!r} stands there twice")
        characters += character
    return characters


def read_port_alphabet(path: Path) -> str:
    """The characters of the port's lyrics.json in the order of their tokens. Raises DataError."""
    named = {character: id_ for character, id_ in _port_ids(path).items() if id_}
    by_token = {id_: character for character, id_ in named.items()}
    if not max(by_token, default=0) == len(by_token) == len(named) or any(len(c) != 1 for c in named):
        raise DataError(f"{path}: needs one character for every id from 1 up, as the port's tokenizer has it")
    return "".join(by_token[token] for token in range(1, len(by_token) + 1))


def transliterator(text_compat: str = "anyascii") -> Callable[[str], str]:
    """The ASCII spelling of one character. "unidecode" needs that package, which is not among our requirements."""
    if text_compat == "unidecode":
        try:
            from unidecode import unidecode
        except ImportError:
            raise HparamsError(
                "--text_compat=unidecode: that package is not installed (pip install unidecode)"
            ) from None
        return cache(lambda c: str(unidecode(c)))
    if text_compat != "anyascii":
        raise HparamsError(f"--text_compat={text_compat}: choose anyascii or unidecode")
    return _spell


@cache
def _spell(character: str) -> str:
    from anyascii import anyascii

    spelled = _OVERRIDES.get(character)
    if spelled is None:
        spelled = str(anyascii(character))
        if unicodedata.name(character, "").startswith(_SPACED):
            spelled += " "
    return spelled


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of a UTF-8 file. Raises DataError naming file and line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); --ids_dir names the folder of the tables"
        ) from None
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{path}, line {number}: not UTF-8; save the file in that encoding") from None
