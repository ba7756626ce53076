"""The page in a real browser, point by point of what a listener may expect."""

import io
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest

from jukebox.pages.render import Item, Page, Take, write_page

pytestmark = pytest.mark.browser


def index(folder):
    return folder / "index.html"


# ------------------------------------------------------------------------------- opening, network, hostile text


def test_opens_by_double_click_and_asks_for_nothing_else(run_folder, open_page):
    page = open_page(index(run_folder))
    page.locator(".player .play").first.click()
    page.wait("document.querySelector('audio').closest('article').querySelectorAll('audio')[2].currentTime > 0.1")
    assert not page.faults
    for address in page.requests:
        assert address.startswith(("file:", "data:", "blob:"))
        assert address.startswith("data:") or str(run_folder) in unquote(address)
    assert index(run_folder).stat().st_size < 200_000
    text = index(run_folder).read_text("utf-8")
    assert "AudioContext" not in text  # Chromium does not decode on file://: waveforms and times come with the page
    assert "<" not in page.locator("#data").text_content()
    assert page.evaluate("JSON.parse(document.getElementById('data').textContent).songs.length") == 3


@pytest.mark.parametrize("how", ["file", "no ranges", "ours"])
def test_hostile_text_is_shown_and_never_runs(how, hostile_folder, kit, open_page, serve_plainly, serve_ours):
    def check(address):
        page = open_page(address)
        page.wait("document.documentElement.classList.contains('live')")
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        page.evaluate("document.querySelector('#song-1 .listen').scrollIntoView()")
        page.locator(".player .play").first.click()
        page.wait("document.querySelectorAll('audio')[2].currentTime > 0.1")
        page.locator("#song-1").get_by_role("button", name="Keep this take").click()
        page.locator("#song-1").get_by_role("button", name="Branch off here").click()
        page.evaluate("document.querySelector('#song-3').scrollIntoView()")
        page.locator("#song-3 .beside").click()
        page.keyboard.press("x")
        for written in (".kept-takes code", ".branch-box code", ".grown", ".twig", ".partial"):
            assert "<img src=x onerror=window.PWN=1>" in page.locator(written).first.text_content(), written
        assert page.evaluate("window.PWN") is None
        assert not page.faults
        assert page.locator("article img:not([alt])").count() == 0
        assert page.locator("script").count() == 2
        shown = page.locator("h1").text_content()
        assert "</script><script>window.PWN=1</script><img src=x onerror=window.PWN=1>" in shown
        assert "{{{data}}}" in shown and "\x00" not in shown and "\ufffd" in shown
        own = address if isinstance(address, str) else hostile_folder.as_uri()
        assert all(asked.startswith((own, "data:", "blob:")) for asked in page.requests)

    index(hostile_folder).read_bytes().decode("utf-8")  # valid as it stands
    if how == "file":
        check(index(hostile_folder))
    else:
        with (serve_plainly if how == "no ranges" else serve_ours)(hostile_folder) as address:
            check(address + "/")


@pytest.mark.parametrize("how", ["no ranges", "ours"])
def test_any_server_lets_one_seek(how, run_folder, open_page, serve_plainly, serve_ours):
    with (serve_plainly if how == "no ranges" else serve_ours)(run_folder) as address:
        page = open_page(address + "/")
        page.locator(".wave").first.press("End")
        page.locator(".wave").first.press("PageDown")
        page.wait("document.querySelectorAll('audio')[2].currentTime === 5")
        assert page.evaluate("document.querySelectorAll('audio')[2].seekable.end(0)") == pytest.approx(20, abs=0.01)
        blob = page.evaluate("document.querySelectorAll('audio')[2].currentSrc").startswith("blob:")
        assert blob == (how == "no ranges")
        page.locator(".player .play").first.click()
        page.wait("document.querySelectorAll('audio')[2].currentTime > 5.1")
        assert not page.faults


def test_an_injected_handler_is_stopped_by_the_policy_itself(run_folder, open_page):
    page = open_page(index(run_folder))
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x: onerror=\"window.PWN=1\">')")
    page.wait_for_timeout(150)
    assert page.evaluate("window.PWN") is None
    assert any("Content Security Policy" in fault for fault in page.faults)


def test_without_scripts_all_is_there(run_folder, kit, open_page):
    page = open_page(index(run_folder), java_script_enabled=False)
    assert page.locator("article audio[controls][preload=metadata]").count() == 9
    assert page.locator("article audio").first.is_visible()
    for line in filter(None, kit.LYRICS.split("\n")):
        assert page.locator("#song-1").get_by_text(line, exact=True).is_visible()
    assert page.locator("#song-1 a[download]").count() == 3 + 2  # a wav per level, lrc and json
    assert page.locator(".player").count() == 0


# ------------------------------------------------------------------------------- keys, screen readers


def test_the_waveform_is_a_slider_with_keys(run_folder, open_page):
    page = open_page(index(run_folder))
    wave = page.get_by_role("slider").first
    assert wave.get_attribute("aria-label") == "Position in Song of 0, Level 0"
    for key, expected in [
        ("ArrowRight", 5), ("PageUp", 20), ("ArrowLeft", 15), ("PageDown", 0), ("End", 20), ("Home", 0), ("ArrowUp", 5),
        ("ArrowDown", 0),
    ]:  # fmt: skip
        wave.press(key)
        page.wait(f"Math.abs(document.querySelectorAll('audio')[2].currentTime - {expected}) < 0.01")
        assert wave.get_attribute("aria-valuetext") == f"0:{expected:02d} of 0:20"
        assert wave.get_attribute("aria-valuenow") == f"{expected}.0"
    wave.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    wave.press("Space")
    page.wait("!document.querySelectorAll('audio')[2].paused")
    wave.press("Space")
    page.wait("document.querySelectorAll('audio')[2].paused")
    seen = page.locator("#song-1").aria_snapshot()
    for name in ('button "Play Song of 0"', 'slider "Position in Song of 0, Level 0"', 'group "Level"',
                 'button "Level 0" [pressed]', 'button "Keep as A to compare"', 'link "Download Song of 0, Level 0, wav"'):  # fmt: skip
        assert name in seen


def test_a_click_on_the_waveform_seeks(run_folder, open_page):
    page = open_page(index(run_folder))
    wave = page.locator(".wave").first
    box = wave.bounding_box()
    wave.click(position={"x": box["width"] / 2, "y": 20})
    page.wait("Math.abs(document.querySelectorAll('audio')[2].currentTime - 10) < 0.1")


def test_j_and_k_walk_through_the_songs_and_one_plays_at_a_time(run_folder, open_page):
    page = open_page(index(run_folder))
    page.keyboard.press("j")
    page.keyboard.press("Space")
    page.wait("!document.querySelectorAll('audio')[2].paused")
    page.keyboard.press("j")
    page.wait("!document.querySelectorAll('audio')[5].paused")
    assert page.playing() == [5]
    page.keyboard.press("k")
    page.keyboard.press("k")  # from the first to the last
    page.wait("!document.querySelectorAll('audio')[8].paused")
    assert page.playing() == [8]
    page.locator("#song-2 .play").click()
    page.wait("!document.querySelectorAll('audio')[5].paused")
    assert page.playing() == [5]
    assert page.locator(".bar-song").text_content() == "Song of 1"
    page.get_by_role("button", name="Next song").click()
    page.wait("!document.querySelectorAll('audio')[8].paused")
    assert page.playing() == [8]


# ------------------------------------------------------------------------------- comparing


def test_levels_switch_at_the_same_position(run_folder, open_page):
    page = open_page(index(run_folder))
    page.locator(".wave").first.press("PageUp")
    page.get_by_role("button", name="Level 2").first.click()  # in silence: exactly
    page.wait("document.querySelectorAll('audio')[0].currentTime === 15")
    page.locator(".wave").first.press("PageDown")
    page.locator(".player .play").first.click()
    page.wait("document.querySelectorAll('audio')[0].currentTime > 0.3")
    page.wait("[...document.querySelectorAll('#song-1 audio')].every(a => a.readyState >= 3)")
    for take in (1, 2, 0, 2):
        gone, elapsed = page.evaluate(
            """async (k) => {
                const song = document.querySelector('#song-1');
                const audios = [...song.querySelectorAll('audio')];
                const from = audios.find((a) => !a.paused);
                const to = audios[k];
                const heard = new Promise((done) => to.addEventListener('playing', done, { once: true }));
                const before = from.currentTime;
                const clock = performance.now();
                song.querySelectorAll('.levels button')[k].click();
                const stopped = from.currentTime;  // where the old one fell silent
                const started = to.currentTime;    // where the new one will set in
                await heard;
                if (!from.paused || Math.abs(from.currentTime - stopped) > 0.05) throw new Error('two at once');
                return [started - before, (performance.now() - clock) / 1000 - (to.currentTime - started)];
            }""",
            take,
        )
        assert abs(gone) <= 0.05, f"the new level starts {gone:+.3f} s off"
        assert elapsed < 1.0
        assert page.playing() == [take]
        page.wait_for_timeout(60)


def test_a_and_b_swap_at_the_same_position(run_folder, open_page):
    page = open_page(index(run_folder))
    page.locator("#song-1 .pin[data-pin=A]").click()
    page.locator("#song-3").scroll_into_view_if_needed()
    page.locator("#song-3 .levels button").first.click()
    page.locator("#song-3 .pin[data-pin=B]").click()
    page.locator("#song-1 .wave").press("ArrowRight")
    swap = page.get_by_role("button", name="A ⇄ B")
    page.locator("#song-1 .play").click()
    page.wait("document.querySelectorAll('audio')[2].currentTime > 5.1")
    swap.click()
    page.wait("!document.querySelectorAll('audio')[6].paused && document.querySelectorAll('audio')[6].currentTime > 5")
    assert page.playing() == [6]
    positions = page.positions()
    assert positions[2] - 0.05 <= positions[6] <= positions[2] + 1.5
    assert page.locator(".bar-take").text_content() == "B: Level 2"
    page.keyboard.press("x")
    page.wait("!document.querySelectorAll('audio')[2].paused")
    assert page.playing() == [2]
    assert page.locator(".bar-take").text_content() == "A: Level 0"


def test_the_tree_of_takes_and_a_comparison_at_the_moment_they_part(run_folder, open_page):
    page = open_page(index(run_folder))
    tree = page.get_by_role("navigation", name="How they grew")
    assert tree.locator("ul ul .twig").inner_text().split("\n")[:2] == ["2", "Song of 2"]
    assert "from 0:12" in tree.locator("ul ul .twig").inner_text()
    kept, own = (tree.locator(f"ul ul rect.{kind}") for kind in ("kept", "own"))
    assert (kept.get_attribute("width"), own.get_attribute("x")) == ("600.0", "600.0")  # 12 of 20 s
    tree.get_by_role("link", name="Song of 2").click()
    page.wait("location.hash === '#song-3'")
    page.get_by_role("button", name="Compare Song of 2 with Song of 0, from where they part").click()
    page.wait("!document.querySelectorAll('audio')[8].paused")
    page.wait("document.querySelectorAll('audio')[8].currentTime >= 9")
    assert page.locator(".bar-take").text_content() == "B: Level 0"
    page.keyboard.press("x")
    page.wait("!document.querySelectorAll('audio')[2].paused")
    assert page.playing() == [2]
    assert 9 <= page.positions()[2] < 12
    page.keyboard.press("x")
    page.wait("!document.querySelectorAll('audio')[8].paused")
    assert not page.faults


def test_takes_are_kept_and_sung_on_by_commands_of_the_page(run_folder, open_page):
    page = open_page(index(run_folder))
    assert not page.locator(".kept-takes").is_visible()
    page.locator("#song-1").get_by_role("button", name="Keep this take").click()
    page.locator("#song-3").get_by_role("button", name="Keep this take").click()
    kept = page.locator(".kept-takes")
    assert "2 takes kept" in kept.inner_text()
    assert kept.locator("code").text_content() == "python jukebox/codes.py keep songs:0 songs:2 --out=best"
    page.reload()
    assert page.locator("#song-3 .keep").get_attribute("aria-pressed") == "true"
    page.locator("#song-3 .keep").click()
    assert kept.locator("code").text_content() == "python jukebox/codes.py keep songs:0 --out=best"
    page.locator("#song-1 .wave").press("PageUp")
    page.locator("#song-1").get_by_role("button", name="Branch off here").click()
    command = page.locator("#song-1 .branch-box code").text_content()
    assert command == "python jukebox/sample.py --codes_file=songs:0 --prompt_length_in_seconds=15.00"
    assert not page.faults


def test_loop_and_speed(run_folder, open_page):
    page = open_page(index(run_folder))
    loop = page.locator(".loop").first
    page.locator(".wave").first.press("ArrowRight")
    loop.click()
    width = page.locator(".wave").first.bounding_box()["width"]
    page.locator(".wave").first.click(position={"x": width * 5.6 / 20, "y": 20})
    page.wait("document.querySelectorAll('audio')[2].currentTime > 5.25")
    loop.click()
    assert loop.get_attribute("aria-pressed") == "true" and loop.text_content() == "Loop 0:05–0:05"
    page.locator(".player .play").first.click()
    page.get_by_label("Speed").select_option("1.25")
    assert page.evaluate("document.querySelectorAll('audio')[2].playbackRate") == 1.25
    page.evaluate("""() => { const a = document.querySelectorAll('audio')[2]; window.turns = 0;
        a.addEventListener('seeked', () => window.turns++); }""")
    page.wait("window.turns >= 3")
    assert 4.9 <= page.positions()[2] <= 8
    loop.click()
    assert loop.text_content() == "Loop"
    page.get_by_role("button", name="Level 1").first.click()
    page.wait("!document.querySelectorAll('audio')[1].paused")
    assert page.evaluate("document.querySelectorAll('audio')[1].playbackRate") == 1.25


# ------------------------------------------------------------------------------- lyrics


def test_lyrics_follow_and_seek(run_folder, open_page):
    page = open_page(index(run_folder))
    lines = page.locator("#song-1 button.line")
    assert lines.count() == 16
    assert lines.nth(0).text_content() == "The river runs beneath the hill,"  # punctuation and spaces as written
    lines.nth(1).focus()
    lines.nth(1).press("Enter")
    page.wait("document.querySelectorAll('audio')[2].currentTime === 2.5")
    assert page.locator("[aria-current=true]").text_content() == "and carries what we knew."
    assert page.locator(".word.now").text_content() == "and"
    page.locator("#song-1 .word").nth(4).click()  # a word, by pointer
    page.wait("document.querySelectorAll('audio')[2].currentTime === 2")
    now = page.locator(".word.now")
    assert now.text_content() == "the"
    page.wait_for_timeout(250)  # the colour fades in
    style = "(e => { const s = getComputedStyle(e); return [s.backgroundColor, s.borderBottomColor, s.borderBottomStyle]; })"
    background, underline, kind = page.evaluate(f"{style}(document.querySelector('.word.now'))")
    plain = page.evaluate(f"{style}(document.querySelector('.word:not(.now)'))")
    assert background != plain[0] and underline != plain[1] and kind == "solid"
    page.locator(".player .play").first.click()
    page.wait("document.querySelector('.word.now')?.textContent === 'hill'")


@pytest.mark.parametrize("width", [320, 1280])
def test_the_bar_of_the_current_line_is_seen(width, run_folder, open_page):
    """It hangs into the margin, where a song is not drawn unless it says so."""
    from PIL import Image

    page = open_page(index(run_folder), viewport={"width": width, "height": 800})
    page.locator("#song-1 button.line").nth(1).press("Enter")
    page.wait_for_timeout(300)  # the colour fades in
    seen = page.evaluate(
        """(() => { const e = document.querySelector('[aria-current=true]'), box = e.getBoundingClientRect();
        return [box.left, box.top + box.height / 2, getComputedStyle(e).borderInlineStartColor]; })()"""
    )
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    assert f"rgb{picture.getpixel((int(seen[0]) + 1, int(seen[1])))}" == seen[2]


def test_uncertain_words_are_faint_and_said_to_be(run_folder, open_page):
    page = open_page(index(run_folder))
    words, faint = page.locator("#song-1 .word").count(), page.locator("#song-1 .word.faint").count()
    assert 0 < faint < words and faint == words // 5
    assert f"{faint} of {words} words are faint" in page.locator("#song-1 .timing").text_content()
    assert page.locator("#song-1 .word.faint").first.get_attribute("title") == "time uncertain: 20 % sure"


def test_lyrics_scroll_along_until_the_listener_scrolls(run_folder, open_page):
    page = open_page(index(run_folder))
    scrolled = "document.querySelector('#song-1 .text').scrollTop"
    page.locator(".wave").first.press("PageUp")
    page.wait(f"{scrolled} > 50")
    page.locator("#song-1 .text").hover()
    page.mouse.wheel(0, -2000)
    page.wait(f"{scrolled} === 0")
    page.locator(".wave").first.press("ArrowLeft")
    page.wait_for_timeout(200)
    assert page.evaluate(scrolled) == 0
    page.get_by_role("button", name="Follow the song").click()
    page.wait(f"{scrolled} > 50")


def test_nothing_scrolls_by_itself_under_reduced_motion(run_folder, open_page):
    page = open_page(index(run_folder), reduced_motion="reduce")
    page.locator(".wave").first.press("PageUp")
    page.wait("document.querySelector('#song-1 [aria-current=true]')")
    page.wait_for_timeout(200)
    assert page.evaluate("document.querySelector('#song-1 .text').scrollTop") == 0


# ------------------------------------------------------------------------------- look

CONTRAST = """() => {
    const parse = (c) => c.match(/[\\d.]+/g).map(Number);
    const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const faults = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const element = walk.currentNode.parentElement;
        if (!walk.currentNode.textContent.trim() || !element.checkVisibility() || element.closest(':disabled, script')) continue;
        let ground = element;
        while (ground && (parse(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) ground = ground.parentElement;
        const [a, b] = [light(parse(getComputedStyle(element).color)), light(parse(getComputedStyle(ground ?? document.body).backgroundColor))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) faults.push(`${ratio.toFixed(2)} ${element.className} ${walk.currentNode.textContent.slice(0, 30)}`);
    }
    return faults;
}"""

SMALL_TARGETS = """() => [...document.querySelectorAll('button, select, summary, .links a, .bar a, [role=slider]')]
    .filter((e) => e.checkVisibility())
    .map((e) => [e.className || e.tagName, e.textContent.slice(0, 20), e.getBoundingClientRect()])
    .filter(([, , box]) => box.width < 43.9 || box.height < 43.9)
    .map(([name, text, box]) => `${name} ${text} ${box.width}x${box.height}`)"""


@pytest.mark.parametrize("width", [320, 800, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_and_scheme(width, scheme, run_folder, open_page):
    page = open_page(index(run_folder), viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.locator("#song-1 .wave").press("ArrowRight")
    page.locator("#song-1 .pin").first.click()
    for summary in page.locator("summary").all()[:3]:
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        "[...document.querySelectorAll('.player *, .bar *')].every(e => e.getBoundingClientRect().right <= innerWidth + 1)"
    )
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(SMALL_TARGETS) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in dark[4:-1].split(",")) < 200) == (scheme == "dark")
    drawn = page.evaluate(
        """() => { const c = document.querySelector('.wave');
        return new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size; }"""
    )
    assert drawn > 3  # ground, played, not yet played, the head


def test_pictures_are_lazy_have_words_and_a_playhead(run_folder, open_page):
    page = open_page(index(run_folder))
    assert not [asked for asked in page.requests if asked.endswith(".png")]
    pictures = page.locator("#song-1 .pictures")
    pictures.locator("summary").click()
    shown = pictures.locator("img:visible")
    assert shown.count() == 2  # this level's spectrogram, and the alignment
    page.wait("[...document.querySelectorAll('#song-1 figure:not([hidden]) img')].every(i => i.naturalWidth > 50)")
    assert "Spectrogram, Level 0" in shown.nth(0).get_attribute("alt")
    assert "Alignment" in shown.nth(1).get_attribute("alt")
    page.locator(".wave").first.press("ArrowRight")
    page.wait("document.querySelector('#song-1 figure:not([hidden]) .playhead').style.left === '25%'")
    box = shown.nth(1).bounding_box()
    shown.nth(1).click(position={"x": box["width"] / 2, "y": 20})
    page.wait("Math.abs(document.querySelectorAll('audio')[2].currentTime - 10) < 0.1")
    page.get_by_role("button", name="Level 2").first.click()
    assert "Level 2" in shown.nth(0).get_attribute("alt")


def test_facts_and_command(run_folder, open_page):
    page = open_page(index(run_folder))
    page.locator("#song-1 summary", has_text="Facts").click()
    facts = page.locator("#song-1 .facts").inner_text()
    for said in ("temperature", "0.98", "seed", "40", "20 November 2026", "160,000 samples at 8,000 Hz", "LUFS",
                 "No rights reserved.", "AI-generated"):  # fmt: skip
        assert said in facts
    command = page.locator("#song-1 .command")
    assert command.text_content() == "python jukebox/sample.py --name=evening --seed=40"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#song-1 .copy").click()
    page.wait("document.querySelector('#song-1 .copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == "python jukebox/sample.py --name=evening --seed=40"
    assert page.locator("#song-3 .grown a").get_attribute("href") == "#song-1"


def test_downloads(run_folder, open_page, serve_ours):
    link = open_page(index(run_folder)).locator("#song-1 .links a:visible", has_text="lrc")
    assert link.get_attribute("target") == "_blank"  # a file beside a file is shown, not saved: the page stays
    with serve_ours(run_folder) as address:
        page = open_page(address + "/")
        with page.expect_download() as waiting:
            page.locator("#song-1 .links a:visible", has_text="lrc").click()
        lrc = waiting.value.path().read_text("utf-8")
        assert "[ti:Song of 0]" in lrc and "[00:02.50]<00:02.50>and <00:02.75>carries" in lrc


def test_lock_screen_language_and_paper(run_folder, open_page):
    page = open_page(index(run_folder))
    text = page.locator("#song-1 .text")
    assert (text.get_attribute("lang"), text.get_attribute("dir")) == ("en", "auto")
    page.locator(".player .play").first.click()
    page.wait("navigator.mediaSession.metadata?.title === 'Song of 0'")
    assert page.evaluate("navigator.mediaSession.metadata.artist") == "Ada Vale"
    assert page.evaluate("navigator.mediaSession.playbackState") == "playing"
    page.emulate_media(media="print")
    assert not page.locator(".bar").is_visible() and not page.locator(".player").first.is_visible()
    assert page.locator("#song-1 .text").is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('#song-1 .text')).overflowY") == "visible"
    assert len(page.pdf()) > 10_000


# ------------------------------------------------------------------------------- many songs, one file, faults


def test_two_hundred_songs_stay_fast(tmp_path, kit, open_page):
    kit.write_wav(tmp_path / "a.wav", kit.sound(0, 0))
    peaks = np.tile(np.array([[-0.5, 0.5]], np.float32), (1000, 1))
    takes = tuple(Take(level, "", "a.wav", kit.SR_HZ, kit.SR_HZ * kit.LENGTH_SEC, peaks, -20.0) for level in (2, 1, 0))
    items = tuple(Item(k, f"Song {k}", "Ada", "folk", kit.LYRICS, seed=k, takes=takes) for k in range(200))
    path = write_page(tmp_path, Page("Many", items=items))
    assert path.stat().st_size < 1_500_000
    page = open_page(path)
    session = page.context.new_cdp_session(page.tab)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time: the machine may be busy
    page.reload()
    page.wait("document.documentElement.classList.contains('live')")
    found = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < found["TaskDuration"] < 3 and found["ScriptDuration"] < 1, found
    assert not [asked for asked in page.requests if asked.endswith(".wav")]
    assert page.locator("audio[preload=none]").count() == 600
    assert page.locator(".player").count() < 20  # the others are built when they come near
    page.keyboard.press("k")
    page.wait("document.activeElement.closest('article')?.id === 'song-200'")
    page.keyboard.press("Space")
    page.wait("[...document.querySelectorAll('audio')].at(-1).currentTime > 0")
    assert not page.faults


def test_one_file_holds_everything(run_folder, kit, tmp_path, open_page):
    made = tmp_path / "made"
    page_data = kit.make_page(made, levels=(1, 0))
    whole = write_page(made, page_data, embed=True, name="whole.html").rename(tmp_path / "whole.html")
    page = open_page(whole)
    page.locator("#song-1 .wave").press("ArrowRight")
    page.locator(".player .play").first.click()
    page.wait("document.querySelectorAll('audio')[1].currentTime > 5.1")
    page.locator("#song-1 summary").first.click()
    page.wait("document.querySelector('#song-1 figure:not([hidden]) img').naturalWidth > 50")
    assert all(asked.startswith("data:") for asked in page.requests[1:])
    assert not page.faults
    links = page.locator("#song-1 .links a:visible")
    assert links.all_text_contents() == ["wav", "lrc", "json"]
    with page.expect_download() as waiting:
        links.first.click()
    assert waiting.value.suggested_filename == "item_0.wav"
    assert waiting.value.path().read_bytes() == (made / "level_0/item_0.wav").read_bytes()


def test_the_page_is_there_while_the_songs_are_sung(kit, tmp_path, open_page):
    whole = kit.make_page(tmp_path, levels=(0,))
    first, second, third = whole.all_items
    path = write_page(tmp_path, replace(whole, groups=(), items=(first, second, replace(third, takes=()))))
    page = open_page(path)
    assert page.locator("#song-2 .partial").text_content() == "partial, 12 of 33 windows"
    assert page.locator("#song-3").get_by_text("Not sung yet.").is_visible()
    page.locator("#song-1 .play").click()
    page.wait("document.querySelector('audio').currentTime > 0.1")
    finished = replace(whole, groups=(), items=(first, replace(second, partial=""), third))
    assert write_page(tmp_path, finished).read_bytes() == write_page(tmp_path, finished).read_bytes()
    page.reload()
    assert page.locator(".partial").count() == 0 and page.locator(".player").count() == 3
    assert not page.faults


def test_how_far_a_song_is_stands_within_a_narrow_screen(kit, tmp_path, open_page):
    whole = kit.make_page(tmp_path, levels=(0,))
    far = "level 2 whole, level 1 12.3 of 20.0 s, level 0 10.1 of 20.0 s"
    path = write_page(tmp_path, replace(whole, groups=(), items=(replace(whole.all_items[0], partial=far),)))
    page = open_page(path, viewport={"width": 320, "height": 800})
    assert page.evaluate("document.querySelector('.partial').getBoundingClientRect().right") <= 320 - 16


def test_a_missing_sound_is_told(run_folder, kit, tmp_path, open_page):
    data = kit.make_page(tmp_path, levels=(0,))
    (tmp_path / "level_0/item_0.wav").unlink()
    path = write_page(tmp_path, replace(data, items=(Item(9, "Not yet"),)))
    page = open_page(path)
    assert page.locator("#song-1").get_by_text("Not sung yet.").is_visible()
    page.locator("#song-2 .play").click()
    page.wait("document.querySelector('#song-2 .trouble').textContent.startsWith('This sound does not play')")
    assert page.locator("#song-2 .play").get_attribute("aria-label") == "Play Song of 0"
    page.locator("#song-3 .play").click()
    page.wait("!document.querySelectorAll('audio')[1].paused")


def test_the_picture_of_the_page_is_not_blank(run_folder, open_page):
    from PIL import Image

    page = open_page(index(run_folder))
    page.locator("#song-1 .wave").press("ArrowRight")
    colours = Image.open(io.BytesIO(page.screenshot())).convert("RGB").getcolors(1 << 20)
    assert colours is not None and len(colours) > 20
