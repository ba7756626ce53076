"""Id tables and alphabets as files of users: what is wrong with them is said with file and line."""

import json
import logging

import pytest

from jukebox.errors import DataError, HparamsError
from jukebox.labels import ids
from jukebox.labels.ids import Alphabet, LabelIds, read_alphabet, read_table


@pytest.fixture
def table(tmp_path):
    def make(content: str | bytes, name: str = "t.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def test_a_table_as_the_published_ones(table):
    found = read_table(table("\ufeffunknown;0\r\nvarious;0\n;0\n AC/DC ;3\nCéline;2\ncéline;4\n\n"))
    assert found.ids == {"unknown": 0, "various": 0, "": 0, "ac/dc": 3, "céline": 4}
    assert found.bins == 5 and found.names(0) == ["", "unknown", "various"] and found.names(2) == []
    assert read_table(table(ids.write_table(found), "again.txt")).ids == found.ids


@pytest.mark.parametrize("line", ["no semicolon", "a;b;3", "a;-1", "a;1.5", "a;", "\x1b[31m;x"])
def test_a_broken_line_is_named(table, line):
    with pytest.raises(DataError, match=r"t\.txt, line 2: ") as error:
        read_table(table(f"unknown;0\n{line}\n"))
    assert "\x1b" not in str(error.value)


def test_other_broken_tables(table, tmp_path):
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_table(table(b"unknown;0\nC\xe9line;1\n"))
    with pytest.raises(DataError, match="empty"):
        read_table(table("\n"))
    with pytest.raises(DataError, match="--ids_dir"):
        read_table(tmp_path / "absent.txt")


def test_the_shipped_tables_name_the_corpus():
    synth = pytest.importorskip("jukebox.corpus.synth")
    for version in (2, 3):
        found = LabelIds.open(version=version, strict=True)
        assert sorted(found.artist_id(name) for name in synth.ARTISTS) == [1, 2, 3, 4]
        genres = [tuple(found.genre_ids(name, 5)) for name in synth.GENRES]
        assert len(set(genres)) == 4 and all(0 not in words for words in genres)
        assert found.artist_id("unknown") == 0 and found.genre_ids("unknown", 5) == [0]
        assert not set(synth.ALPHABET) - set(Alphabet.open(version=version).characters)


def test_the_files_of_the_port(tmp_path):
    """artists.json, genres.json and lyrics.json of a tokenizer folder; text files beside them win."""
    (tmp_path / "artists.json").write_text('{"unknown": 0, "AC/DC": 2, "unknown.v2": 0, "ac_dc.v2": 7, ".v2": 0}')
    (tmp_path / "genres.json").write_text('{"unknown": 0, "hard rock": 5, "unknown.v2": 0, "hard.v2": 1, "rock.v2": 3}')
    v2, v3 = LabelIds.open(tmp_path, 2, strict=True), LabelIds.open(tmp_path, 3, strict=True)
    assert (v2.artist_id("AC/DC"), v2.genre_ids("Hard Rock", 5), v2.artist_id("")) == (7, [1, 3], 0)
    assert (v3.artist_id("AC/DC"), v3.genre_ids("Hard Rock", 1)) == (2, [5])
    assert v2.artists.bins == 8 and v3.artists.bins == 3
    shipped = Alphabet.open(version=3).characters
    characters = shipped[::-1]
    (tmp_path / "lyrics.json").write_text(json.dumps({"": 0} | {c: i for i, c in enumerate(characters, 1)}))
    assert Alphabet.open(tmp_path, 3).characters == characters
    assert Alphabet.open(tmp_path, 2).n_vocab == 80  # of the other version: the shipped one
    (tmp_path / "v3_artist_ids.txt").write_text("unknown;0\nac/dc;1\n")
    assert LabelIds.open(tmp_path, 3).artist_id("AC/DC") == 1


@pytest.mark.parametrize("content", ["[1]", '{"a": "b"}', '{"a": -1}', "{", '{"a.v2": 1}'])
def test_broken_files_of_the_port(tmp_path, content):
    for name in ("artists.json", "genres.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"artists\.json"):
        LabelIds.open(tmp_path, 3)
    for characters in ('{"a": 1, "bc": 2}', '{"a": 1, "b": 3}', '{"a": 1, "b": 1}', f'{{"a": {10**30}}}'):
        (tmp_path / "lyrics.json").write_text(characters)
        with pytest.raises(DataError, match=r"lyrics\.json"):
            Alphabet.open(tmp_path, 3)


def test_unknown_names_are_class_0_with_one_warning_and_the_nearest(caplog):
    found = LabelIds.open(version=3)
    with caplog.at_level(logging.WARNING):
        assert [found.artist_id("Otto Ferm") for _ in range(3)] == [0, 0, 0]
        assert found.genre_ids("\x1b[2Jzzz", 1) == [0] and found.artist_id("") == 0
    assert len(caplog.records) == 2 and "\x1b" not in caplog.text
    assert "artist 'Otto Ferm' is not in" in caplog.text and "nearest: otto fern" in caplog.text
    caplog.clear()
    for n in range(100):
        found.artist_id(f"nobody {n}")
    assert len(caplog.records) == 9 and "not listed" in caplog.records[-1].message
    with pytest.raises(DataError, match="nearest: otto fern"):
        LabelIds.open(version=3, strict=True).artist_id("Otto Ferm")


def test_of_several_processes_one_warns(caplog):
    other = LabelIds.open(version=3, aloud=False)
    assert other.artist_id("Otto Ferm") == 0
    other.check((604, 7898))
    assert not caplog.records
    with pytest.raises(DataError, match="nearest: otto fern"):
        LabelIds.open(version=3, strict=True, aloud=False).artist_id("Otto Ferm")


def test_too_many_genre_words(caplog):
    found = LabelIds.open(version=2)
    assert found.genre_ids("tin gallop harbour", 2) == [1, 2] and "3 words" in caplog.text
    with pytest.raises(DataError, match="max_bow_genre_size"):
        LabelIds.open(version=2, strict=True).genre_ids("tin gallop harbour", 2)


def test_tables_and_alphabets_are_checked_against_the_model(caplog):
    found = LabelIds.open(version=3)
    found.check((5, 5))
    assert not caplog.records
    found.check((604, 7898))
    assert "are they its own? (--ids_dir)" in caplog.text
    with pytest.raises(HparamsError, match="--y_bins=5,5"):
        found.check((5, 3))
    Alphabet.open(version=2).check(80)
    with pytest.raises(HparamsError, match="79 tokens, the model n_vocab=80"):
        Alphabet.open(version=3).check(80)


def test_alphabets_are_files(table, tmp_path):
    table("abc\\s\\\\\\t\\n\n", "alphabet_v3.txt")
    own = Alphabet.open(tmp_path, 3)
    assert own.characters == "abc \\\t\n" and own.n_vocab == 8
    assert Alphabet.open(tmp_path, 2).n_vocab == 80  # the shipped one where the folder has none
    for content, message in (
        ("ab\ncd\n", "exactly one line"),
        ("aba\n", "'a' stands there twice"),
        ("a\\x\n", r"\\x is not one"),
    ):
        with pytest.raises(DataError, match=message):
            read_alphabet(table(content))


def test_transliteration():
    alphabet = Alphabet.open(version=2)
    assert alphabet.clean("Łódź — straße")[0] == "Lodz -- strasse"
    cleaned, sources = alphabet.clean("ßa%東b")
    assert (cleaned, sources) == ("ssaDong b", [0, 0, 1, 3, 3, 3, 3, 3, 4])
    assert alphabet.text(alphabet.tokens(cleaned)) == cleaned
    with pytest.raises(HparamsError, match="choose anyascii or unidecode"):
        Alphabet.open(version=2, text_compat="magic")


def test_unidecode_only_on_request(monkeypatch):
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "unidecode":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(HparamsError, match="pip install unidecode"):
        Alphabet.open(version=2, text_compat="unidecode")
