"""Where artist, genre and lyrics come from, who wins, and how a mistake is named."""

import codecs
import json
import unicodedata
from pathlib import Path

import pytest

from jukebox.data.admission import Entry, Index
from jukebox.data.metadata import songs_of
from jukebox.errors import DataError
from jukebox.labels.song import SongMeta

NAMES = ("a.wav", "b.flac", "sub/c.mp3", "sub/deep/d.wav")


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def songs(folder, metadata="", **tags):
    entries = tuple(Entry(name, 1, 1, tags=tags) for name in NAMES)
    return dict(zip(NAMES, songs_of(Index(Path(folder), entries), str(metadata)), strict=True))


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_nothing_known_is_unknown(folder):
    assert set(map(repr, songs(folder).values())) == {repr(SongMeta())}
    assert SongMeta() == SongMeta("unknown", "unknown", "", "", None)


def test_a_table_beside_the_songs_and_nearer_ones_first(folder):
    jsonl(
        folder / "metadata.jsonl",
        {"file": "a.wav", "artist": "A", "genre": "Folk", "lyrics": "ab", "times": [[0, 1], [1.5, 2]], "bpm": 90},
        {"file": "sub/c.mp3", "artist": "far", "genre": "from above"},
        {"file": "sub/deep/d.wav", "artist": None, "lyrics": None, "title": 1999},
    )
    jsonl(folder / "sub" / "metadata.jsonl", {"file": "c.mp3", "artist": "near"})
    found = songs(folder)
    assert found["a.wav"] == SongMeta("A", "Folk", "ab", times=((0, 1), (1.5, 2)), extra={"bpm": 90})
    assert (found["sub/c.mp3"].artist, found["sub/c.mp3"].genre) == ("near", "from above")
    assert found["sub/deep/d.wav"] == SongMeta(title="1999")
    assert found["b.flac"] == SongMeta()


def test_side_files_of_a_song(folder):
    (folder / "a.json").write_text('{"artist": "A", "lyrics": ["one", "two"]}')
    (folder / "b.txt").write_bytes(codecs.BOM_UTF8 + "Grüße\r\nzwei\r\n".encode())
    (folder / "sub" / "c.lrc").write_text("[00:01.00]la\n[00:03.00]lo\n[00:05.00]\n")
    (folder / "sub" / "c.txt").write_text("other words")
    (folder / "sub" / "deep" / "d.json").write_text('{"genre": "G", "lines": [{"text": "hi", "start": 1, "end": 2}]}')
    found = songs(folder)
    assert found["a.wav"] == SongMeta("A", lyrics="one\ntwo")
    assert found["b.flac"].lyrics == "Grüße\nzwei"
    assert found["sub/c.mp3"].lyrics == "la\nlo" and len(found["sub/c.mp3"].times) == 5
    assert found["sub/c.mp3"].times[0][0] == 1.0
    assert (found["sub/deep/d.wav"].genre, found["sub/deep/d.wav"].lyrics) == ("G", "hi")
    assert found["sub/deep/d.wav"].times == ((1.0, 1.5), (1.5, 2.0))


def test_who_wins(folder):
    """Each source says its own name for every field it may; the first that says it holds."""
    tags = {"artist": "tag", "genre": "tag", "title": "tag", "lyrics": "tag", "album_artist": "no"}
    assert songs(folder, **tags)["a.wav"] == SongMeta("tag", "tag", "tag", "tag")
    assert songs(folder, album_artist="band")["a.wav"].artist == "band"
    (folder / "a.txt").write_text("text")
    assert songs(folder, **tags)["a.wav"] == SongMeta("tag", "tag", "text", "tag")
    (folder / "a.json").write_text('{"genre": "json", "lyrics": "json"}')
    assert songs(folder, **tags)["a.wav"] == SongMeta("tag", "json", "json", "tag")
    jsonl(folder / "metadata.jsonl", {"file": "a.wav", "genre": "table"})
    assert songs(folder, **tags)["a.wav"] == SongMeta("tag", "table", "json", "tag")
    given = jsonl(folder / "mine.jsonl", {"file": "a.wav", "artist": "given"})
    assert songs(folder, given, **tags)["a.wav"] == SongMeta("given", "table", "json", "tag")


def test_given_files(folder, tmp_path_factory, caplog):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    given = jsonl(elsewhere / "x.jsonl", {"file": "sub/c.mp3", "artist": "C"}, {"file": "gone.wav", "artist": "x"})
    assert songs(folder, given)["sub/c.mp3"].artist == "C"
    assert "names 1 files that are not there" in caplog.text
    table = elsewhere / "x.csv"
    table.write_text(
        'file,artist,genre,lyrics,year\na.wav,"Smith, John",Rock,"one\ntwo",1999\nb.flac,,Pop,,\n', encoding="utf-8"
    )
    found = songs(folder, table)
    assert found["a.wav"] == SongMeta("Smith, John", "Rock", "one\ntwo", extra={"year": "1999"})
    assert found["b.flac"] == SongMeta(genre="Pop")
    absolute = jsonl(elsewhere / "y.jsonl", {"path": str(folder / "a.wav"), "artist": "A"})
    assert songs(folder, absolute)["a.wav"].artist == "A"


def test_names_in_two_spellings_of_unicode(folder):
    name = unicodedata.normalize("NFD", "é.wav")
    (folder / name).touch()
    jsonl(folder / "metadata.jsonl", {"file": unicodedata.normalize("NFC", name), "artist": "É"})
    (song,) = songs_of(Index(folder, (Entry(name, 1, 1),)))
    assert song.artist == "É"


HOOKS = """
from jukebox.labels.song import SongMeta
def classic(name, test):
    return ("A", None, None) if name.endswith("a.wav") and test is False else None
def fields(name):
    return {"artist": "B", "bpm": 3}
def song(name):
    return SongMeta(genre="G")
def wrong(name):
    return 5
"""


def test_a_function_of_the_user(folder, tmp_path_factory):
    hook = tmp_path_factory.mktemp("hook") / "my.py"
    hook.write_text(HOOKS)
    assert songs(folder, f"{hook}:classic")["a.wav"] == SongMeta("A")
    assert songs(folder, f"{hook}:classic")["b.flac"] == SongMeta()
    assert songs(folder, f"{hook}:fields")["b.flac"] == SongMeta("B", extra={"bpm": 3})
    assert songs(folder, f"{hook}:song")["b.flac"].genre == "G"
    for name, message in (("wrong", "returned int; it must be"), ("missing", "has no function missing")):
        with pytest.raises(DataError, match=message):
            songs(folder, f"{hook}:{name}")
    with pytest.raises(DataError, match="there is no file"):
        songs(folder, f"{folder}/none.py:f")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metadata.jsonl", b'{"file": "a.wav"}\n{"file": \n', r"metadata.jsonl, line 2: not JSON"),
        ("metadata.jsonl", b'\n\n["a.wav"]\n', r"line 3: must be an object .* not list"),
        ("metadata.jsonl", b'{"artist": "x"}\n', r'line 1: no "file"'),
        ("metadata.jsonl", b'{"file": "a.wav", "artist": ["x"]}\n', r"line 1: artist must be a text, not list"),
        ("metadata.jsonl", b'{"file": "a.wav"}\n{"file": "./a.wav"}\n', r"line 2: ./a.wav was described in line 1"),
        (
            "metadata.jsonl",
            b'{"file": "a.wav", "lyrics": "ab", "times": [[0, 1]]}',
            r"line 1: 1 times for 2 characters",
        ),
        ("metadata.jsonl", b'{"file": "a.wav", "lyrics": "a", "times": [[2, 1]]}', r"line 1: time 0 is \(2.0, 1.0\)"),
        ("metadata.jsonl", b'{"file": "a.wav", "lyrics": "a", "times": [1]}', r"line 1: times must be a list"),
        ("metadata.jsonl", b'{"file": "a.wav"}\n\xff\xfe\n', r"line 2: not UTF-8"),
        ("a.json", b'{"artist": "A",\n}', r"a.json, line 2: not JSON"),
        ("a.json", b"[" * 100_000, r"a.json.*: not JSON"),
        ("a.txt", b"caf\xe9\n", r"a.txt, line 1: not UTF-8"),
        ("a.txt", b"x" * (20 << 20), r"a.txt: .* too m"),
        ("a.lrc", b"no times here", r"a.lrc, line 1"),
    ],
)
def test_mistakes_are_named_with_file_and_line(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        songs(folder)


def test_mistakes_in_given_files(folder):
    for value, message in (
        ("nowhere.jsonl", "no such file. Give FILE.jsonl"),
        (folder / "a.wav", "must end with .jsonl, .csv or"),
        (jsonl(folder / "x.jsonl", {"file": "zz.wav"}), "none of its 1 songs is below"),
    ):
        with pytest.raises(DataError, match=message):
            songs(folder, value)
    for text, message in (("artist\nx\n", "line 1: the header"), ("file,artist\na.wav,x,y\n", "line 2: more cells")):
        (folder / "x.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            songs(folder, folder / "x.csv")


def test_a_song_survives_json():
    song = SongMeta("A", "G", "ab", "T", ((0, 1), (1, 2)), {"bpm": 3})
    assert SongMeta.from_json(json.loads(json.dumps(song.to_json()))) == song
    assert SongMeta.from_json({"artist": None, "genre": "", "lyrics": None}) == SongMeta()


def test_a_megabyte_of_lyrics_and_wide_text_are_read(folder):
    (folder / "a.txt").write_text("la " * 350_000)
    (folder / "b.txt").write_bytes("wide ü".encode("utf-16"))
    found = songs(folder)
    assert len(found["a.wav"].lyrics) > 1_000_000 and found["b.flac"].lyrics == "wide ü"
