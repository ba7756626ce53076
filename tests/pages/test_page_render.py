"""From data to files: escapes, templates, pictures, sound facts, and pages that are whole and always the same."""

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox.errors import DataError, WriteFailed
from jukebox.labels import timed
from jukebox.pages import escape, lyric_files, png, sound, template
from jukebox.pages.render import (
    Group,
    Item,
    Page,
    Parent,
    Take,
    WordTime,
    describe_audio,
    render_page,
    take,
    write_page,
    write_run,
)

PEAKS = np.zeros((10, 2), np.float32)


def plain_take(**changes) -> Take:
    return replace(Take(0, "", "a.wav", 8000, 80000, PEAKS, -20.0, {"wav": "a.wav"}), **changes)


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------- escapes, template


@given(st.text())
def test_escaped_text_is_inert_and_reads_the_same(text):
    escaped = escape.text(text)
    escaped.encode("utf-8")
    assert not set("<>\"'") & set(escaped)
    assert html.unescape(escaped) == escape.plain(text)


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_in_a_script_cannot_end_it(value):
    packed = escape.json_script(value)
    assert packed.isascii() and not set("<>&") & set(packed) and "\x00" not in packed
    assert json.loads(packed) == value


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a.wav", "a/../../b", "a\\b", "a\0b"])
def test_links_that_leave_the_folder_are_refused(path):
    with pytest.raises(DataError):
        escape.href(path)


def test_links_are_encoded():
    assert escape.href("level_0/a b#?%.wav") == "level_0/a%20b%23%3F%25.wav"
    assert escape.href("javascript:alert(1)") == "javascript%3Aalert%281%29"
    assert escape.href("a..b/\udcff.wav") == "a..b/%FF.wav"


def test_template_sections_and_escapes():
    text = (
        "{{#rows}}<{{name}}|{{{raw}}}>{{#more}}+{{.}}{{/more}}{{/rows}}{{^rows}}none{{/rows}}{{#last}}{{name}}{{/last}}"
    )
    rows = [{"name": "<&", "raw": "<b>", "more": ["x", "{{name}}"]}, {"name": "2", "raw": "", "more": []}]
    assert template.fill(text, {"rows": rows, "last": {"name": "end"}}) == "<&lt;&amp;|<b>>+x+{{name}}<2|>end"
    assert template.fill(text, {"rows": [], "last": None}) == "none"
    with pytest.raises(KeyError):
        template.fill("{{nothing}}", {})


# ------------------------------------------------------------------------------- pictures and sound


def read_png(data: bytes) -> np.ndarray:
    """Palette indices [height, width]; checks the check sums."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert zlib.crc32(name + body) == int.from_bytes(data[at + 8 + size : at + 12 + size], "big")
        chunks[name], at = body, at + 12 + size
    width, height = (int.from_bytes(chunks[b"IHDR"][k : k + 4], "big") for k in (0, 4))
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any() and rows[:, 1:].max() < len(chunks[b"PLTE"]) // 3
    return rows[:, 1:]


def test_heat_map_is_a_png():
    shades = read_png(png.heat_map(np.array([[0.0, 0.5, 1.0], [-1.0, 2.0, np.nan]])))
    assert shades.tolist() == [[0, 32, 63], [0, 63, 0]]
    dark_to_light = png.palette().astype(int) @ [299, 587, 114]
    assert (np.diff(dark_to_light) >= 0).all()  # reads in grey as well


def test_alignment_runs_from_bottom_left_to_top_right():
    picture = read_png(png.alignment_png(np.eye(3000, 700)))
    assert picture.shape == (512, 1024)
    assert picture[-1, 0] == 63 and picture[0, 0] == 0
    lit = picture > 0  # no character is lost in shrinking, and none stands twice
    assert lit.any(axis=1).all()
    assert read_png(png.alignment_png(np.zeros((4, 3)))).shape == (3, 4)


@pytest.mark.parametrize("sr_hz", [16_000, 44_100, 48_000])
def test_loudness_is_that_of_the_standard(sr_hz):
    time = np.arange(3 * sr_hz) / sr_hz
    tone = np.sin(2 * np.pi * 997 * time)
    # BS.1770: a full-scale 997 Hz sine in one channel reads -3.01
    assert sound.find_loudness(tone[:, None], sr_hz) == pytest.approx(-3.01, abs=0.06)
    both = np.stack([tone, tone], axis=1) * 10 ** (-23 / 20)
    assert sound.find_loudness(both, sr_hz) == pytest.approx(-23.0, abs=0.06)
    with_pause = np.concatenate([tone, np.zeros(3 * sr_hz)])[:, None]  # the gates leave silence out
    assert sound.find_loudness(with_pause, sr_hz) == pytest.approx(-3.01, abs=0.3)


@pytest.mark.parametrize("length", [0, 1, 7, 3000])
def test_short_and_silent_sounds_are_described(length):
    described = describe_audio(np.zeros(length), 8000)
    assert described.loudness_db is None and described.length_samples == length
    assert described.peaks.shape == (min(length, 1000), 2)
    read_png(described.spectrogram)
    loud = describe_audio(np.full((length, 2), np.nan), 8000)
    assert loud.loudness_db is None


def test_peaks_are_true_lows_and_highs():
    audio = np.random.default_rng(0).uniform(-2, 2, 12_345)
    peaks = sound.find_peaks(audio)
    assert peaks.shape == (1000, 2)
    assert peaks[:, 0].min() == -1 and peaks[:, 1].max() == 1
    assert peaks[0].tolist() == [max(audio[:12].min(), -1), min(audio[:12].max(), 1)] or np.allclose(
        peaks[0], np.clip([audio[:12].min(), audio[:12].max()], -1, 1)
    )


def test_spectrogram_shows_the_tone_where_it_is():
    sr_hz = 16_000
    tone = np.sin(2 * np.pi * 1000 * np.arange(2 * sr_hz) / sr_hz)
    tone[sr_hz:] = 0
    picture = sound.spectrogram(tone, sr_hz)
    edges = np.geomspace(50, 8000, 161)[::-1]
    row = int(picture[:, 10].argmax())
    assert edges[row + 1] * 0.97 <= 1000 <= edges[row] * 1.03
    assert picture[row, 5] > 0.95 and picture[row, -5] < 0.05


# ------------------------------------------------------------------------------- pages


def test_same_data_same_bytes_and_nothing_else_in_the_folder(tmp_path, kit):
    for name in ("one", "two"):
        write_run(tmp_path / name, kit.make_page(tmp_path / name))
    one = files_of(tmp_path / "one")
    assert one == files_of(tmp_path / "two")
    write_run(tmp_path / "one", kit.make_page(tmp_path / "one"))  # again, over what is there
    assert one == files_of(tmp_path / "one")
    own = {"align.png", "align.json", "lyrics.lrc"}
    expected = {"index.html"} | {f"level_{level}/index.html" for level in (0, 1, 2)}
    for level in (0, 1, 2):
        expected |= {f"level_{level}/item_{k}.wav" for k in range(3)}
        expected |= {f"level_{level}/item_{k}/spectrogram_{level}.png" for k in range(3)}
        expected |= {f"level_{level}/item_{k}/song.json" for k in range(3)}
        expected |= {f"level_{level}/item_0/{name}" for name in own}
    assert set(one) == expected


def test_every_link_leads_to_a_file(run_folder):
    pages = [run_folder / "index.html", *run_folder.glob("level_*/index.html")]
    assert len(pages) == 4
    for page in pages:
        text = page.read_text("utf-8")
        links = re.findall(r'(?:src|href)="([^"#][^"]*)"', text)
        own = [link for link in links if not link.startswith("data:")]
        assert len(own) > 8
        for link in own:
            assert (page.parent / link).is_file(), link


def test_policy_names_exactly_this_script_and_style(run_folder):
    text = (run_folder / "index.html").read_text("utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    script_hash, style_hash = (
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script, style)
    )
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{script_hash}'; style-src 'sha256-{style_hash}'; img-src 'self' data:; "
        "media-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    assert " style=" not in text.split("<body>")[1].split("<script>")[0] and "innerHTML" not in script


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    page = Page("One", items=(Item(0, takes=(plain_take(),)),))
    path = write_page(tmp_path, page)
    before = files_of(tmp_path)
    monkeypatch.setenv("JUKEBOX_FAULT", "publish.before_replace:1:raise")
    with pytest.raises((OSError, RuntimeError, WriteFailed)):
        write_page(tmp_path, replace(page, title="Two"))
    assert files_of(tmp_path) == before and path.name in before


def test_unfinished_runs_have_a_page_too(tmp_path):
    text = write_run(tmp_path, Page("Soon", items=(Item(0), Item(1, lyrics="la la")))).read_text("utf-8")
    assert text.count("Not sung yet.") == 2 and "la la" in text
    assert render_page(Page("Nothing at all"))


def test_titles_and_groups_and_parents():
    first = Item(
        7,
        lyrics="\n  The first line of a song that goes on and on and on without an end\nsecond",
        takes=(plain_take(),),
    )
    near, far = Parent("run:7", 0.0, 1.5, "a:7"), Parent("elsewhere:3", 2.0, 5.0, "b:3")
    first = replace(first, key="a:7")
    page = Page(
        "P", groups=(Group("From scratch", (first,)), Group("Continued", (Item(8, parent=near), Item(9, parent=far))))
    )
    data = data_of(render_page(page))
    assert [song["title"] for song in data["songs"]] == [
        "The first line of a song that goes on and on …", "Song 8", "Song 9",
    ]  # fmt: skip
    text = render_page(page)
    assert 'begins with the first 1.5 s of <a href="#song-1">run:7</a>' in text
    assert 'begins with 2 to 5 s of <b dir="auto">elsewhere:3</b>' in text
    assert 'href="#group-2">Continued' in text


def test_items_of_several_runs_may_share_their_numbers(tmp_path):
    picture = png.heat_map(np.zeros((2, 2)))
    items = tuple(
        Item(0, f"{k}", takes=(plain_take(spectrogram=picture), plain_take(spectrogram=picture))) for k in range(2)
    )
    write_page(tmp_path, Page("P", groups=tuple(Group(item.title, (item,)) for item in items)))
    assert set(files_of(tmp_path)) == {
        "index.html", "item_0/spectrogram_0.png", "item_0/spectrogram_0_.png", "item_0/song.json",
        "item_0_/spectrogram_0.png", "item_0_/spectrogram_0_.png", "item_0_/song.json",
    }  # fmt: skip


def test_waveforms_share_the_room():
    peaks = np.tile(np.array([[-1.0, 1.0]], np.float32), (1000, 1))
    few, many = (
        data_of(render_page(Page("P", items=tuple(Item(k, takes=(plain_take(peaks=peaks),)) for k in range(count)))))
        for count in (3, 40)
    )
    packed = base64.b64decode(few["songs"][0]["takes"][0]["peaks"])
    assert len(packed) == 2000 and set(np.frombuffer(packed, np.int8)) == {-127, 127}
    assert len(base64.b64decode(many["songs"][0]["takes"][0]["peaks"])) == 2 * 515


def test_sixteen_songs_of_three_levels_take_less_than_200_kb(tmp_path, kit):
    peaks = np.tile(np.array([[-0.5, 0.5]], np.float32), (1000, 1))
    downloads = {kind: f"level_0/item_0.{kind}" for kind in ("wav", "flac", "mp3")}
    takes = tuple(Take(level, "", "level_0/item_0.wav", 8000, 160_000, peaks, -20.0, downloads) for level in (2, 1, 0))
    facts = {f"level {level} drawing": "temperature 0.98, top p 0.9" for level in range(3)}
    items = [
        Item(
            k, f"Song {k}", "Ada Vale", "folk", kit.LYRICS, seed=k, settings=facts, takes=takes, words=kit.word_times()
        )
        for k in range(16)
    ]
    assert len(render_page(Page("Many", items=tuple(items))).encode()) < 200_000


def test_a_single_file_needs_no_other(tmp_path, kit):
    page = kit.make_page(tmp_path, levels=(0,))
    before = set(files_of(tmp_path))
    text = write_page(tmp_path, page, embed=True, name="whole.html").read_text("utf-8")
    assert set(files_of(tmp_path)) == before | {"whole.html"}
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(link.startswith(("data:", "#")) for link in links)
    wav = base64.b64encode((tmp_path / "level_0/item_1.wav").read_bytes()).decode()
    assert text.count(wav) == 1  # the sound stands once


def test_a_single_file_takes_the_smaller_sound_and_no_address_from_outside(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"long")
    (tmp_path / "a.mp3").write_bytes(b"short")
    downloads = {"wav": "a.wav", "mp3": "a.mp3", "bad": "data:text/html,<script>"}
    page = Page("P", items=(Item(0, takes=(plain_take(downloads=downloads),)),))
    text = write_page(tmp_path, page, embed=True).read_text("utf-8")
    assert 'src="data:audio/mpeg;base64,c2hvcnQ="' in text and "data:text/html" not in text
    assert text.count("c2hvcnQ=") == 1 and 'download="a.mp3"' in text  # the script takes it from the player
    with pytest.raises(DataError, match="missing.wav"):
        write_page(tmp_path, Page("P", items=(Item(0, takes=(plain_take(audio_href="missing.wav"),)),)), embed=True)


def test_lyric_files_are_read_back(tmp_path):
    words = (WordTime("Hello,", 1.0, 1.5, 0.9, 0), WordTime("you", 61.239, 62.0, 0.1, 0))
    item = Item(0, "A\nB]", "X", lyrics="Hello, you\n\nuntimed", words=words)
    assert lyric_files.lrc(item) == "[ti:A B)]\n[ar:X]\n[00:01.00]<00:01.00>Hello, <01:01.24>you\n[01:02.00]untimed\n"
    made = json.loads(lyric_files.song_json(item))
    assert [line["text"] for line in made["lines"]] == ["Hello, you", "untimed"]
    assert made["lines"][0]["words"][1] == {"word": "you", "start": 61.239, "end": 62.0, "confidence": 0.1}
    for name, text in (("a.lrc", lyric_files.lrc(item)), ("a.json", lyric_files.song_json(item))):
        (tmp_path / name).write_text(text, "utf-8")
        lyrics, times = timed.read(tmp_path / name)
        assert " ".join(lyrics.split()) == "Hello, you untimed"
        assert times[lyrics.index("y")][0] == pytest.approx(61.239, abs=0.01)
    assert lyric_files.read_words(lyric_files.song_json(item), item.lyrics) == words
    rows = json.loads(lyric_files.alignment_json(np.eye(2000, 5)))
    assert len(rows) == 512 and len(rows[0]) == 5 and rows[0][0] == 255


def test_take_knows_its_download():
    made = take(1, np.zeros(10), 100, "level_1/a.flac")
    assert (made.downloads, made.length_samples, made.length_sec) == ({"flac": "level_1/a.flac"}, 10, 0.1)


def test_pages_load_without_torch():
    code = "import sys, jukebox.pages.render, jukebox.pages.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
