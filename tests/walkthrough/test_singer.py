"""The singer that comes along sings what it is asked for; how one is trained stands in tests/training/test_singing.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jukebox.corpus import collection, listen
from jukebox.walkthrough import figures, run, singing
from jukebox.walkthrough.hps import WalkthroughHps

ROOT = Path(__file__).resolve().parents[2]
SINGER = ROOT / "data" / "singer"


def test_requests_are_of_characters_and_words_that_no_song_has(tmp_path: Path) -> None:
    known = [song.meta.lyrics for song in map(collection.Order.make, collection.order(40, 3, min_sec=6, max_sec=6))]
    asked = singing.ask(tmp_path / "songs.jsonl", 16, length_sec=6, unlike=known, seed=7)
    assert len({(song.artist, song.genre) for song in asked}) == 16
    words = {word for text in known for word in text.split()}
    runs = {text[i : i + 4] for text in known for i in range(len(text) - 3)}
    for song in asked:
        assert len(song.lyrics) == singing.characters(song.genre, 6)
        assert not words & set(song.lyrics.split())
        assert not runs & {song.lyrics[i : i + 4] for i in range(len(song.lyrics) - 3)}
    lines = [json.loads(line) for line in (tmp_path / "songs.jsonl").read_text().splitlines()]
    assert [line["lyrics"] for line in lines] == [song.lyrics for song in asked]


def test_the_songs_themselves_are_heard_without_a_mistake_and_others_are_not() -> None:
    songs = [one.make() for one in collection.order(8, 5, min_sec=6, max_sec=6, sr_hz=8000)]
    asked = [singing.SongMeta(artist=s.meta.artist, genre=s.meta.genre, lyrics=s.meta.lyrics) for s in songs]
    found = singing.compare(asked, [listen.listen(song.audio, 8000) for song in songs])
    assert found.error_rate == 0 and found.artist == found.genre == 1
    assert found.control > 0.75


def test_the_singer_weighs_less_than_5_mb() -> None:
    assert sum(path.stat().st_size for path in SINGER.iterdir()) < 5e6


@pytest.fixture(scope="module")
def sung(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first step of the demo."""
    root = tmp_path_factory.mktemp("singer")
    step = run.steps(root, WalkthroughHps())[0]
    subprocess.run([sys.executable, str(ROOT / "jukebox" / f"{step.entry}.py"), *step.flags], cwd=ROOT, check=True)
    return root / "singing"


def test_the_singer_sings_what_it_is_asked(sung: Path) -> None:
    found = singing.compare(singing.asked_of(sung), singing.heard(sung, 0))
    assert found.error_rate <= figures.MISHEARD and found.control >= 0.75, found


def test_its_page_follows_the_lyrics(sung: Path) -> None:
    words = json.loads((sung / "level_0" / "item_0" / "song.json").read_text())
    assert [word["word"] for line in words["lines"] for word in line["words"]] == ["sing", "me", "a", "song"]
