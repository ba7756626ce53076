"""Windows of a store for training a prior."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from jukebox.codestore.geometry import Geometry
from jukebox.codestore.layout import ItemFacts, Source
from jukebox.codestore.writer import StoreWriter
from jukebox.data.code_dataset import CodeDataset
from jukebox.data.split import held_out
from jukebox.errors import DataError, StoreError

GEOMETRY = Geometry(8000, (8, 32, 128), 2048)
LENGTHS = [5_000, 900, 12_345, 4_096, 8_192]  # samples


def ramp(song: int, level: int, length_samples: int) -> np.ndarray:
    """Codes that tell song and place: song * 300 + the top code they lie under."""
    n = GEOMETRY.codes_for(level, length_samples)
    return song * 300 + np.arange(n) // GEOMETRY.ratio(level, 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    sources = [Source(f"{i}.wav") for i in range(len(LENGTHS))]
    root = tmp_path_factory.mktemp("codes") / "s"
    with StoreWriter.create_or_resume(root, GEOMETRY, "abc", sources) as writer:
        for song, length in enumerate(LENGTHS):
            codes = {level: ramp(song, level, length) for level in range(3)}
            extra = {"song": {"artist": f"singer {song}", "lyrics": "la"}}
            writer.add(song, codes, ItemFacts(length, length, extra=extra))
        return writer.finish()


@pytest.mark.parametrize(("level", "n_ctx"), [(2, 32), (1, 128), (0, 512)])
def test_windows_of_all_levels_line_up(store, level, n_ctx):
    data = CodeDataset(store, level, n_ctx, part="all", aug_shift=True, seed=1)
    assert data.sample_length == 4096 and len(data) == 1 + 0 + 3 + 1 + 2 and data.songs == [0, 2, 3, 4]
    assert [name for name, _ in data.left_out] == ["1.wav"]
    for index in range(len(data)):
        item = data.item(index, draw=3)
        song = int(item.file[0])
        assert item.song.artist == f"singer {song}" and item.total_samples == LENGTHS[song]
        assert item.offset_samples % 128 == 0 and 0 <= item.offset_samples <= LENGTHS[song] - 4096
        first = song * 300 + item.offset_samples // 128
        assert item.codes.shape == (n_ctx,) and item.codes.dtype == np.int64
        np.testing.assert_array_equal(item.codes, first + np.arange(n_ctx) // GEOMETRY.ratio(level, 2))
        if level == 2:
            assert item.upper is None
        else:
            assert item.upper is not None
            np.testing.assert_array_equal(np.repeat(item.upper, 4), item.codes)


def test_windows_of_an_epoch_are_a_function_of_seed_epoch_and_index(store):
    data, again = (CodeDataset(store, 2, 16, part="all", aug_shift=True, seed=7) for _ in range(2))
    starts = {epoch: [data.item(i, epoch).offset_samples for i in range(len(data))] for epoch in (0, 1, 2)}
    for epoch, expected in starts.items():
        assert [again.item(i, epoch).offset_samples for i in reversed(range(len(data)))][::-1] == expected
    assert len({tuple(offsets) for offsets in starts.values()}) == 3
    assert [
        CodeDataset(store, 2, 16, part="all", aug_shift=True, seed=8).item(i).offset_samples for i in range(len(data))
    ] != starts[0]
    assert pickle.loads(pickle.dumps(data)).item(3, 1).offset_samples == starts[1][3]


def test_shifted_windows_start_everywhere_equally_often(store):
    data = CodeDataset(store, 2, 16, part="all", aug_shift=True)
    song = 2  # 12,345 samples: 96 top codes are whole, 16 make a window
    seen = Counter(
        item.offset_samples // 128
        for epoch in range(400)
        for item in (data.item(i, epoch) for i in range(len(data)))
        if item.file == f"{song}.wav"
    )
    assert set(seen) == set(range(96 - 16 + 1)) and max(seen.values()) < 4 * min(seen.values())


def test_without_shifts_windows_follow_one_another_as_chunks_of_audio_do(store):
    data = CodeDataset(store, 2, 16, part="all")
    starts = [data.item(i).offset_samples for i in range(len(data)) if data.item(i).file == "2.wav"]
    assert starts == [2048 * window for window in range(12_345 // 2048)]
    test = CodeDataset(store, 2, 16, part="test", aug_shift=True)
    assert [test.place(i, 5) for i in range(len(test))] == [test.place(i) for i in range(len(test))]


def test_parts_share_no_song_and_hold_everything(store):
    parts = {
        part: CodeDataset(store, 2, 16, part=part, train_test_split=0.6, seed=3) for part in ("train", "test", "all")
    }
    songs = {part: {data.item(i).file for i in range(len(data))} for part, data in parts.items()}
    assert not songs["train"] & songs["test"] and songs["train"] | songs["test"] == songs["all"]
    assert len(parts["train"]) + len(parts["test"]) == len(parts["all"])


def test_held_out_songs_are_a_function_of_names_and_seed():
    windows = {f"album {i % 7}/song {i}.flac": 1 + i % 3 for i in range(500)}
    test = held_out(windows, 0.9, 0)
    assert sum(windows[name] for name in test) == round(sum(windows.values()) * 0.1)
    assert held_out(dict(reversed(windows.items())), 0.9, 0) == test and held_out(windows, 0.9, 1) != test
    for seed in range(30):
        assert len(held_out(dict.fromkeys("abc", 1), 0.97, seed)) == 1
        assert len(held_out(dict.fromkeys("abc", 1), 0.01, seed)) == 2
    assert not held_out(dict.fromkeys("ab", 1), 1.0, 0) and not held_out({"a": 3}, 0.9, 0)


def test_the_fingerprint_follows_the_windows(store):
    prints = [
        CodeDataset(store, level, n_ctx, part="all", seed=seed).fingerprint()
        for level, n_ctx, seed in ((2, 16, 0), (1, 64, 0), (2, 32, 0), (2, 16, 1))
    ]
    assert len(set(prints)) == 4 and prints[0] == CodeDataset(store, 2, 16, part="all").fingerprint()


def test_lengths_that_fit_nothing_are_named(store):
    with pytest.raises(DataError, match="--n_ctx=30 is not a multiple of the 4 codes"):
        CodeDataset(store, 1, 30)
    with pytest.raises(DataError, match="none of 5 songs.*--n_ctx .now 500"):
        CodeDataset(store, 2, 500)
    with pytest.raises(DataError, match="1 songs leave nothing for the test part"):
        CodeDataset(store, 2, 80, part="test")
    with pytest.raises(StoreError, match="level 7 is not in this store"):
        CodeDataset(store, 7, 16)
    limited = CodeDataset(store, 2, 16, part="all", min_duration=0.5625, max_duration=1.125)
    assert [limited.item(i).file for i in range(len(limited))] == ["0.wav", "0.wav", "4.wav", "4.wav", "4.wav", "4.wav"]
    assert [name for name, _ in limited.left_out] == ["1.wav", "2.wav", "3.wav"]
    assert limited.left_out[1][1] == "1.54 s, not below 1.12 s"
