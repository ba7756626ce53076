"""make_ids.py: tables that the labeller reads back, flags that fit the songs, nothing written over."""

import json

import numpy as np
import pytest

from jukebox import settings
from jukebox.audio import io
from jukebox.data.make_ids import main, proposal, tables
from jukebox.errors import DataError, UsageError
from jukebox.labels.ids import LabelIds
from jukebox.labels.song import SongMeta


def test_from_a_folder_to_flags(tmp_path, capsys):
    music, out = tmp_path / "music", tmp_path / "ids"
    music.mkdir()
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (24000, 1)).astype(np.float32)
    rows = []
    for name, artist, genre, length in (("a", "Céline Dion", "Pop Rock", 1.5), ("b", "AC/DC", "Rock", 2.5)):
        io.write(music / f"{name}.wav", noise[: int(length * 8000)], 8000)
        rows.append({"file": f"{name}.wav", "artist": artist, "genre": genre, "lyrics": "la ☃ la"})
    (music / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = settings.parse("make_ids", [f"--audio_files_dir={music}", f"--out={out}"])
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "--labels_v3 --y_bins=3,3 --max_bow_genre_size=1 --min_duration=1 --max_duration=3" in said
    assert "--y_bins=3,3 --max_bow_genre_size=2" in said and f"--ids_dir={out}" in said
    for version in (2, 3):
        ids = LabelIds.open(out, version, strict=True)
        assert sorted(ids.artist_id(row["artist"]) for row in rows) == [1, 2]
        assert all(0 not in ids.genre_ids(row["genre"], 2) for row in rows)
    assert main(asked) == 0  # the same again
    rows.pop()
    (music / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="is there already"):
        main(asked)


def test_rare_and_unwritable_names(caplog):
    songs = [SongMeta("a;b", "x"), SongMeta("A", "x"), SongMeta("a", "y z"), SongMeta()]
    made = tables(songs)
    assert made["v3_artist_ids.txt"] == "unknown;0\na;1\n" and "semicolon" in caplog.text
    assert made["v2_artist_ids.txt"] == "unknown;0\na;1\na_b;2\n"
    assert made["v2_genre_ids.txt"] == "unknown;0\nx;1\ny;2\nz;3\n"
    assert tables(songs, 2)["v3_genre_ids.txt"] == "unknown;0\nx;1\n"


@pytest.mark.parametrize(("longest", "bins"), [(10, 16), (200, 32), (599, 128), (4000, 128)])
def test_timing_bins(tmp_path, longest, bins):
    assert f"--t_bins={bins}" in "\n".join(proposal([SongMeta()], [longest], tmp_path))


def test_a_folder_is_needed():
    with pytest.raises(UsageError, match="--audio_files_dir"):
        main(settings.parse("make_ids", []))
