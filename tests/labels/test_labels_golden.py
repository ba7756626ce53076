"""Label vectors exact to the golden file: ids, alphabets, cleaning, windows, vectors and their description."""

import json
from pathlib import Path

import numpy as np
import pytest

from jukebox.errors import DataError, HparamsError
from jukebox.labels import vector
from jukebox.labels.ids import Alphabet, LabelIds, normalised, read_table
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Labeller

FOLDER = Path(__file__).parents[1] / "fixtures" / "golden" / "jukebox"
GOLDEN = json.loads((FOLDER / "labeller.json").read_text(encoding="utf-8"))
LYRICS = GOLDEN["lyrics"]


@pytest.fixture(params=[2, 3])
def version(request) -> int:
    return request.param


@pytest.fixture
def golden(version) -> dict:
    return GOLDEN[f"v{version}"]


@pytest.fixture
def labeller(version, golden) -> Labeller:
    tables = (read_table(FOLDER / GOLDEN["id_files"][f"v{version}_{kind}"]) for kind in ("artist", "genre"))
    shape = {name: golden[name] for name in ("max_genre_words", "n_tokens", "sample_length")}
    return Labeller(LabelIds(version, *tables), Alphabet.open(version=version), **shape)


def song(row: dict) -> SongMeta:
    return SongMeta(
        artist=row["artist"], genre=row["genre"], lyrics=row.get("lyrics", LYRICS.get(row.get("lyrics_key")))
    )


def test_tables(labeller, golden):
    assert labeller.ids.artists.ids == golden["artist_ids"] and labeller.ids.genres.ids == golden["genre_ids"]
    assert {str(i): labeller.ids.artist_name(i) for i in range(labeller.ids.artists.bins)} == golden["artists"]
    assert {str(i): labeller.ids.genre_name([i]) for i in range(labeller.ids.genres.bins)} == golden["genres"]


def test_alphabet(labeller, golden):
    assert labeller.alphabet.n_vocab == golden["n_vocab"]
    vocab = {c: i for i, c in enumerate(labeller.alphabet.characters, 1)}
    assert vocab | {"<unk>": 0} == golden["vocab"]


def test_cleaning(labeller, golden):
    for key, (text, tokens) in golden["clean"].items():
        cleaned, sources = labeller.alphabet.clean(LYRICS[key])
        assert cleaned == text and labeller.alphabet.tokens(cleaned) == tokens
        assert len(sources) == len(cleaned) and sources == sorted(sources)


def test_label_vectors(labeller, golden):
    assert [labeller.columns] == golden["label_shape"]
    checked = 0
    for row in golden["get_label"]:
        if row["artist"] is None:
            continue  # a song's text is never None here
        if "error" in row:  # more genre words than slots: there an assertion, here cut, or an error when strict
            labeller.ids.strict = True
            with pytest.raises(DataError, match="artist 'x' is not in"):
                labeller.label(song(row), 60000, 0)
            continue
        found = labeller.full(song(row), row.get("total_length", 60000), row.get("offset", 0))
        assert found.y.tolist() == row["y"] and found.y.dtype == np.int64
        if "described" in row:
            assert labeller.describe(found.y) == row["described"]
            assert (found.lyrics, len(found.tokens)) == (row["clean_lyrics"], row["n_full_tokens"])
        checked += 1
    assert checked == 49 + (labeller.ids.version == 3)


def test_windows_of_a_song(labeller, golden):
    case = golden["get_y"]
    labels = [labeller.full(song(meta), meta["total_length"], meta["offset"]) for meta in case["metas"]]
    assert vector.batch(labels).tolist() == case["y0"]
    for window in case["cases"]:
        start, length = window["start"] * case["raw_to_tokens"], case["prior_sample_length"]
        found = [labeller.at(label, start, length) for label in labels]
        assert [y.tolist() for y, _ in found] == window["y"]
        assert [indices for _, indices in found] == window["indices"]


def test_from_ids(labeller, golden):
    expected = golden["get_y_from_ids"]
    genres = [1, 2] if labeller.ids.version == 2 else [2]
    words = 4 + labeller.max_genre_words
    genres = [id_ for id_ in expected[4:words] if id_ >= 0]
    y = labeller.from_ids(expected[3], genres, expected[words:], expected[0], expected[1])
    assert y.tolist() == expected


def test_normalised_names():
    assert {name: normalised(name) for name in GOLDEN["norm"]} == GOLDEN["norm"]


def test_window_rule():
    for row in GOLDEN["get_relevant_lyric_tokens"]:
        numbers = [row[name] for name in ("n_full", "n_tokens", "total_length", "offset", "duration")]
        if "error" in row:
            if row["n_tokens"] % 2:
                with pytest.raises(HparamsError, match="must be even"):
                    Labeller(None, None, max_genre_words=1, n_tokens=row["n_tokens"], sample_length=1)
            else:
                with pytest.raises(DataError, match="outside its song"):
                    vector.lyric_window(*numbers)
            continue
        indices = vector.lyric_window(*numbers)
        assert (indices[:1], indices[-1:]) == (row["first_index"], row["last_index"])
        assert row["tensor_first_index"] == row["first_index"] and indices.count(-1) == row["n_pad"]
        assert len(indices) == row["n_tokens"]
