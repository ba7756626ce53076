"""Label vectors, lyric windows and id tables against golden files."""

import numpy as np
import pytest

from jukebox.errors import DataError, HparamsError
from jukebox.labels.ids import Alphabet, LabelIds, normalised, read_table
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Labeller, batch, lyric_window

VERSIONS = (2, 3)


class Case:
    """One version of the labels of a golden file: what was recorded and our labeller."""

    def __init__(self, golden, version: int):
        if f"v{version}" not in golden.info:
            pytest.skip(f"no labels of version {version} in this file")
        self.recorded, self.lyrics = golden.info[f"v{version}"], golden.info["lyrics"]
        files = (golden.info["id_files"][f"v{version}_{kind}"] for kind in ("artist", "genre"))
        tables = (read_table(golden.path.with_name(file)) for file in files)
        shape = {name: self.recorded[name] for name in ("max_genre_words", "n_tokens", "sample_length")}
        self.labeller = Labeller(LabelIds(version, *tables), Alphabet.open(version=version), **shape)

    def song(self, row: dict) -> SongMeta:
        lyrics = self.lyrics[row["lyrics_key"]] if "lyrics_key" in row else row["lyrics"]
        return SongMeta(artist=row["artist"] or "", genre=row["genre"] or "", lyrics=lyrics or "")


@pytest.fixture(params=VERSIONS, ids=["v2", "v3"])
def case(request, golden) -> Case:
    return Case(golden, request.param)


@pytest.mark.golden("labeller")
def test_id_tables(case):
    ids, recorded = case.labeller.ids, case.recorded
    assert (ids.artists.ids, ids.genres.ids) == (recorded["artist_ids"], recorded["genre_ids"])
    assert {i: ids.artist_name(int(i)) for i in recorded["artists"]} == recorded["artists"]
    assert {i: ids.genre_name([int(i)]) for i in recorded["genres"]} == recorded["genres"]


@pytest.mark.golden("labeller")
def test_alphabet_and_cleaning(case):
    alphabet, recorded = case.labeller.alphabet, case.recorded
    assert alphabet.n_vocab == recorded["n_vocab"]
    assert {character: i for i, character in enumerate(alphabet.characters, 1)} | {"<unk>": 0} == recorded["vocab"]
    for key, (text, tokens) in recorded["clean"].items():
        cleaned, sources = alphabet.clean(case.lyrics[key])
        assert (cleaned, alphabet.tokens(cleaned)) == (text, tokens), key
        assert len(sources) == len(cleaned) and sources == sorted(sources)


@pytest.mark.golden("labeller")
def test_label_vectors(case):
    labeller = case.labeller
    assert [labeller.columns] == case.recorded["label_shape"]
    for row in case.recorded["get_label"]:
        total, offset = row.get("total_length", 60000), row.get("offset", 0)
        found = labeller.full(case.song(row), total, offset)
        if "error" in row:  # crashes of the first implementation (tests/golden/DEFECTS.md)
            assert found.y.shape == (labeller.columns,)
            continue
        assert found.y.tolist() == row["y"] and found.y.dtype == np.int64
        if "described" in row:
            assert labeller.describe(found.y) == row["described"]
            assert (found.lyrics, len(found.tokens)) == (row["clean_lyrics"], row["n_full_tokens"])


@pytest.mark.golden("labeller")
def test_windows_of_songs(case):
    recorded = case.recorded["get_y"]
    labels = [case.labeller.full(case.song(meta), meta["total_length"], meta["offset"]) for meta in recorded["metas"]]
    assert batch(labels).tolist() == recorded["y0"]
    for window in recorded["cases"]:
        start, length = window["start"] * recorded["raw_to_tokens"], recorded["prior_sample_length"]
        found = [case.labeller.at(label, start, length) for label in labels]
        assert [y.tolist() for y, _ in found] == window["y"]
        assert [indices for _, indices in found] == window["indices"]


@pytest.mark.golden("labeller")
def test_vector_from_ids(case):
    expected, words = case.recorded["get_y_from_ids"], 4 + case.labeller.max_genre_words
    genres = [id_ for id_ in expected[4:words] if id_ >= 0]
    found = case.labeller.from_ids(expected[3], genres, expected[words:], expected[0], expected[1])
    assert found.tolist() == expected


@pytest.mark.golden("labeller")
def test_names_and_window_rule(golden):
    assert {name: normalised(name) for name in golden.info["norm"]} == golden.info["norm"]
    for row in golden.info["get_relevant_lyric_tokens"]:
        numbers = [row[name] for name in ("n_full", "n_tokens", "total_length", "offset", "duration")]
        if "error" not in row:
            indices = lyric_window(*numbers)
            assert (indices[:1], indices[-1:]) == (row["first_index"], row["last_index"])
            assert row["tensor_first_index"] == row["first_index"] and indices.count(-1) == row["n_pad"]
            assert len(indices) == row["n_tokens"]
        elif row["n_tokens"] % 2:
            with pytest.raises(HparamsError, match="must be even"):
                Labeller(None, None, max_genre_words=1, n_tokens=row["n_tokens"], sample_length=1)
        else:
            with pytest.raises(DataError, match="outside its song"):
                lyric_window(*numbers)
