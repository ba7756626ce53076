"""Times of words from attention: a known ridge gives the known times, flat attention little confidence."""

import numpy as np
import pytest

from jukebox.labels import timed
from jukebox.labels.ids import Alphabet
from jukebox.sampling import align_files
from jukebox.sampling.alignment import character_times, word_times

LYRICS = "Größe of ships\n\nsail\\away — now"
CODE_SEC = 0.01


def ridge(starts, length_sec=8.0):
    """Attention that reads the cleaned lyrics of each word over 0.5 s from its start."""
    cleaned, _ = Alphabet.open("", 3).clean(LYRICS)
    words, at = [], 0
    for word in cleaned.split():
        at = cleaned.index(word, at)
        words.append((at, at + len(word)))
        at += len(word)
    weights = np.full((int(length_sec / CODE_SEC), len(cleaned)), 1e-4, np.float32)
    for (first, last), start in zip(words, starts, strict=True):
        for i, column in enumerate(range(first + 1, min(last + 1, len(cleaned)))):
            begin = int((start + 0.5 * i / (last - first)) / CODE_SEC)
            weights[begin : int((start + 0.5) / CODE_SEC), column] += 0.5
    return weights


def test_words_get_their_times():
    starts = [0.5, 1.5, 2.0, 4.0, 4.5, 5.5, 6.0]  # Groesse of ships, sail away -- now
    found = word_times(ridge(starts), LYRICS, Alphabet.open("", 3), CODE_SEC)
    assert [(word.text, word.line) for word in found] == [
        ("Größe", 0), ("of", 0), ("ships", 0), ("sail\\away", 2), ("—", 2), ("now", 2),
    ]  # fmt: skip
    for word, start in zip(found, [0.5, 1.5, 2.0, 4.0, 5.5, 6.0], strict=True):
        assert word.start_sec == pytest.approx(start, abs=0.11), word
        assert word.confidence > 0.8
        assert word.end_sec > word.start_sec
    assert all(a.end_sec <= b.start_sec for a, b in zip(found, found[1:], strict=False))


def test_characters_get_their_times():
    weights = np.full((400, 6), 1e-4, np.float32)  # column c carries character c - 1, so the sixth has none
    for character, start in enumerate((0.5, 1.0, 1.5, 2.5, 3.0)):
        weights[int(start / CODE_SEC) : int((start + 0.5) / CODE_SEC), character + 1] = 0.9
    found = character_times(weights, CODE_SEC)
    assert found[5] is None
    for span, start in zip(found, (0.5, 1.0, 1.5, 2.5, 3.0), strict=False):
        assert span is not None and span[0] == pytest.approx(start, abs=0.06) and span[0] < span[1]
    assert character_times(np.zeros((0, 3), np.float32), CODE_SEC) == [None] * 3


def test_only_what_is_sung_has_times():
    weights = ridge([0.5, 1.5, 2.0, 9, 9, 9, 9], 4.0) * (np.arange(len(ridge([9] * 7)[0])) < 15)
    found = word_times(weights.astype(np.float32), LYRICS, Alphabet.open("", 3), CODE_SEC)
    assert [word.text for word in found] == ["Größe", "of", "ships"]


def test_flat_attention_is_doubtful():
    weights = np.full((500, len(Alphabet.open("", 3).clean(LYRICS)[0])), 0.03, np.float32)
    assert all(word.confidence < 0.5 for word in word_times(weights, LYRICS, Alphabet.open("", 3), CODE_SEC))


@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (1, 1), (3, 2)])
def test_odd_shapes(shape):
    assert isinstance(word_times(np.ones(shape, np.float32), "la la", Alphabet.open("", 3), CODE_SEC), list)


def test_subtitles_read_back(tmp_path):
    found = word_times(ridge([0.5, 1.5, 2.0, 4.0, 4.5, 5.5, 6.0]), LYRICS, Alphabet.open("", 3), CODE_SEC)
    (tmp_path / "a.vtt").write_text(align_files.vtt(found))
    lyrics, times = timed.read(tmp_path / "a.vtt")
    assert lyrics == "Größe of ships\nsail\\away — now"
    assert times[0][0] == pytest.approx(found[0].start_sec, abs=0.01)


def test_blur_and_resizing_are_pillows():
    image_module = pytest.importorskip("PIL.Image")
    from PIL import ImageFilter

    random = np.random.default_rng(0)
    for _ in range(30):
        height, width, other = (int(n) for n in random.integers(1, 80, 3))
        image = (random.random((height, width)) ** 3 * 255).astype(np.uint8)
        picture = image_module.fromarray(image)
        assert (np.array(picture.resize((other, height))) == align_files.resized(image, height, other)).all()
        assert (np.array(picture.resize((width, other))) == align_files.resized(image, other, width)).all()
        blurred = np.array(picture.filter(ImageFilter.GaussianBlur(1.5)))
        assert (blurred == align_files.blurred(image, 1.5)).all()
