"""Curating: takes are kept, cut, branched and sung on; each knows what it grew from, and the page shows the tree."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from jukebox import settings
from jukebox.audio import io, tags
from jukebox.codestore.store import CodeStore
from jukebox.encoding.store_commands import main as codes
from jukebox.errors import UsageError
from jukebox.models import restricted
from jukebox.parallel.world import job
from jukebox.sampling import lineage
from jukebox.sampling.run import main

LYRICS = "I met a traveller from an antique land,\nwho said nothing at all."
HOP_SEC = 16 / 8000  # a top code
KEPT = 30  # top codes


def sample(tiny, name: Path, **more) -> Path:
    flags = {
        "model": tiny.model, "name": name, "ids_dir": tiny.ids_dir, "hop_fraction": "0.5,0.5,0.25", "device": "cpu",
        "total_sample_length_in_seconds": 0.36, "sample_length": 960,
    } | more  # fmt: skip
    given = [f"--{key}={value}" for key, value in flags.items() if value is not None]
    job.comm = None  # each run is a program of its own
    assert main(settings.parse("sample", given)) == 0
    return name


@pytest.fixture(scope="module")
def songs(tiny, tmp_path_factory) -> Path:
    """Three takes of one song."""
    folder = tmp_path_factory.mktemp("logs") / "songs"
    return sample(tiny, folder, n_samples=3, artist="Alan Jackson", genre="country", lyrics=LYRICS)


@pytest.fixture(scope="module")
def branches(tiny, songs) -> Path:
    """Take 1 up to its 30th top code, sung on in two ways, by the words of the README."""
    return sample(
        tiny, songs.with_name("branches"), mode="continue", codes_file=f"{songs}:1", n_samples=2, seed=7,
        prompt_length_in_seconds=KEPT * HOP_SEC + 0.0005, total_sample_length_in_seconds=None,
        temp="1,1,0.9", top_k="0,0,9", min_p="0.03,0.02,0.01",
    )  # fmt: skip


def parent_of(run: Path, item: int) -> dict:
    return CodeStore.open(run / "codes").item(item).meta["take"]["request"]["parent"]


def test_branches_keep_the_beginning_and_remember_their_parent(songs, branches):
    before, after = CodeStore.open(songs / "codes"), CodeStore.open(branches / "codes")
    assert len(after) == 2
    for level, ratio in ((2, 1), (1, 2), (0, 4)):
        end = KEPT * ratio
        for i in range(2):
            np.testing.assert_array_equal(after.codes(level, i, 0, end), before.codes(level, 1, 0, end))
        one, other, old = after.codes(level, 0), after.codes(level, 1), before.codes(level, 1)
        assert len(one) == len(old) and not np.array_equal(one, other) and not np.array_equal(one, old)
    key = f"{lineage.run_id((songs / 'run.json').read_text())}:1"
    for item in (0, 1):
        assert parent_of(branches, item) == {
            "name": "songs:1", "start_sec": 0.0, "end_sec": KEPT * HOP_SEC, "key": key,
        }  # fmt: skip
    (elder,) = lineage.ancestors(branches)
    assert (elder.key, elder.name, elder.level) == (key, "songs:1", 0)
    assert (elder.folder / "sound.wav").read_bytes() == (songs / "level_0/item_1.wav").read_bytes()


def test_a_branch_sings_the_same_song_unless_told_otherwise(branches):
    song = CodeStore.open(branches / "codes").item(0).meta["song"]
    assert (song["artist"], song["genre"], song["lyrics"]) == ("Alan Jackson", "country", LYRICS)
    request = json.loads((branches / "progress/plan.json").read_text())["items"][0]
    assert request["total_sec"] == 0.36  # that of the whole song


def test_what_is_cut_kept_and_renamed_still_knows_its_take(tiny, songs, branches, tmp_path, capsys):
    assert codes(["keep", f"{branches}:1", f"{songs}:0", "--out", str(tmp_path / "best")]) == 0
    end_sec = 40 * HOP_SEC
    assert (
        codes(["cut", str(tmp_path / "best"), "--items=0", f"--end_sec={end_sec}", "--out", str(tmp_path / "cut")]) == 0
    )
    tail = ["cut", str(tmp_path / "best"), "--items=1", f"--start_sec={20 * HOP_SEC}", "--out", str(tmp_path / "tail")]
    assert codes(tail) == 0
    moved = branches.rename(branches.with_name("renamed"))
    try:
        third = sample(
            tiny, songs.with_name("third"), mode="continue", codes_file=tmp_path / "cut", seed=9,
            total_sample_length_in_seconds=None,
        )  # fmt: skip
        assert parent_of(third, 0)["name"] == "branches:1" and parent_of(third, 0)["end_sec"] == pytest.approx(end_sec)
        assert [one.name for one in lineage.ancestors(third)] == ["songs:1", "renamed:1"]  # the eldest first
        again = sample(tiny, songs.with_name("tail"), mode="continue", codes_file=tmp_path / "tail", sample_length=800)
        parent = parent_of(again, 0)
        assert (parent["name"], parent["start_sec"]) == ("songs:0", 20 * HOP_SEC)
    finally:
        moved.rename(branches)


def test_continuing_a_run_by_its_data_file_remembers_it_too(tiny, songs, caplog):
    grown = sample(
        tiny, songs.with_name("longer"), mode="continue", codes_file=songs / "level_0/data.pth.tar", sample_length=1088
    )  # fmt: skip
    assert [parent_of(grown, i)["name"] for i in range(3)] == ["songs:0", "songs:1", "songs:2"]
    assert "seed and the number" not in caplog.text  # it goes on where they ended: nothing is sung again
    assert "nothing is left to sing" not in caplog.text
    sample(tiny, songs.with_name("all"), mode="continue", codes_file=f"{songs}:0")
    assert "nothing is left to sing: what the songs begin with is as long" in caplog.text
    sample(tiny, songs.with_name("same"), mode="continue", codes_file=f"{songs}:0", prompt_length_in_seconds=0.05)
    assert "song 0 has the seed and the number of songs:0" in caplog.text


def test_fewer_songs_than_the_codes_have_is_a_question(tiny, songs):
    with pytest.raises(UsageError, match="holds 3 songs.*STORE:0,2"):
        sample(tiny, songs.with_name("no"), mode="continue", codes_file=songs, n_samples=2)


def test_everything_stands_beside_a_song(songs, branches):
    for suffix in ("wav", "flac", "mp3"):
        found = io.read(songs / f"level_0/item_1.{suffix}")
        assert abs(len(found) - 960) <= (0 if suffix != "mp3" else 2400)
    for suffix in ("flac", "mp3"):
        said = tags.read(songs / f"level_0/item_1.{suffix}")
        assert (said["artist"], said["genre"], said["album"]) == ("Alan Jackson", "country", "songs")
        assert said["lyrics"] == LYRICS
    page = (songs / "index.html").read_text()
    links = re.findall(r'<a href="([^"#]+)" download', page)
    assert all((songs / link).is_file() for link in links)
    kinds = {Path(link).suffix for link in links}
    assert kinds == {".wav", ".flac", ".mp3", ".npy", ".lrc", ".vtt", ".json"}
    np.testing.assert_array_equal(
        np.load(songs / next(link for link in links if link.endswith("0001.npy") and "level_2" in link)).ravel(),
        CodeStore.open(songs / "codes").codes(2, 1),
    )
    for said in ("level 2 drawing", "temperature 1", "VQ-VAE checkpoint", "prior 0 checkpoint", "--items=1", "LUFS",
                 "<dt>of a whole song of</dt><dd>0.36 s</dd>", "level 2: 0.25, level 1: 0.5, level 0: 0.5 of", "run.json",
                 time.strftime("%B %Y"), "AI-generated"):  # fmt: skip
        assert said in page, said
    drawn = (branches / "index.html").read_text()
    for said in ("level 2 drawing</dt><dd>temperature 0.9, top k 9, min p 0.01", "level 1 drawing</dt><dd>temperature 1, "
                 "min p 0.02", "seed</dt><dd>7"):  # fmt: skip
        assert said in drawn, said
    kwargs = restricted.load(branches / "level_0/data.pth.tar")["sampling_kwargs"]
    assert [(level["temp"], level["top_k"], level["min_p"], level["seed"]) for level in kwargs] == [
        (1, 0, 0.03, 7), (1, 0, 0.02, 7), (0.9, 9, 0.01, 7),
    ]  # fmt: skip
    song = json.loads((songs / "level_2/item_1/song.json").read_text())
    assert (song["item"], song["seed"], song["text"], song["codes"]) == (1, 0, LYRICS, f"{songs}:1")
    assert len(page) < 200_000


@pytest.mark.browser
def test_the_page_shows_the_tree_and_compares(branches, open_page):
    page = open_page(branches / "index.html")
    tree = page.get_by_role("navigation", name="How they grew")
    assert tree.locator("ul ul > li").count() == 2 and tree.locator("ul > li").count() == 3
    assert page.locator(".group h2").text_content() == "What they grew from"
    assert page.locator("#song-1 .grown a").text_content() == "songs:1"
    page.get_by_role("button", name="Compare").first.click()
    assert page.locator(".bar-take").text_content() == "B: Level 0"
    page.keyboard.press("x")
    assert page.locator(".bar-take").text_content() == "A: Level 0"
    page.locator("#song-2").get_by_role("button", name="Keep this take").click()
    assert page.locator(".kept-takes code").text_content() == (
        f"python jukebox/codes.py keep {branches}:1 --out={branches}-best"
    )
    page.locator("#song-2").get_by_role("button", name="Branch off here").click()
    command = page.locator(".branch-box code").text_content()
    assert f"--codes_file={branches}:1 --prompt_length_in_seconds=0.12 --seed=8" in command
    settings.parse("sample", command.removeprefix("python jukebox/sample.py ").split())
    assert not page.faults


@pytest.mark.browser
def test_a_single_file_by_mail(tiny, songs, tmp_path, open_page, caplog):
    caplog.set_level("INFO")
    job.comm = None
    assert main(settings.parse("sample", [f"--name={songs}", "--embed", "--device=cpu"])) == 0  # of a run that is done
    assert str(songs / "songs.html") in caplog.text
    alone = tmp_path / "mail.html"
    alone.write_bytes((songs / "songs.html").read_bytes())
    page = open_page(alone)
    page.locator("#song-3 .play").click()
    page.wait("document.querySelectorAll('audio')[8].ended || document.querySelectorAll('audio')[8].currentTime > 0")
    assert all(address.startswith("data:") for address in page.requests[1:])
    assert page.locator("audio").first.get_attribute("src").startswith("data:audio/mpeg")
    assert not page.faults
