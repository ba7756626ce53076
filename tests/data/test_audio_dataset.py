"""Which item lies where, in both ways to deal songs; what chance may change; what is read."""

import os

import numpy as np
import pytest

from jukebox.audio import io
from jukebox.data.audio_dataset import AudioDataset, chunk_table, duration_range, locate, read_chunk
from jukebox.errors import DataError
from jukebox.labels.song import SongMeta

SR, L = 8000, 4000  # the songs of `admitted`: 0.5, 3, 1, 2.05, 1.5, 2 s are 1, 6, 2, 4, 3, 4 chunks


def dataset(index, **options):
    return AudioDataset(index, **{"sr_hz": SR, "sample_length": L, "part": "all", **options})


def test_the_published_mapping(golden):
    for case in golden("dataset.json")["cases"]:
        config = case["config"]
        shortest, longest = duration_range(config["L"], config["sr"], config["min_d"], config["max_d"])
        lengths = [int(sec * config["sr"]) for sec in config["durs"] if shortest <= sec < longest]
        assert lengths == case["durations"]
        assert len(chunk_table(lengths, config["L"])) == case["length"]
        for n, shift, file, offset in [*case["items"], *case["extreme_items"]]:
            if isinstance(offset, float | int):  # odd lengths failed in some
                assert locate(n, shift, case["cumsum"], config["L"]) == (file, int(offset))


@pytest.mark.parametrize("length", [2, 3, 7, 8])
def test_every_chunk_lies_inside_its_file(length):
    lengths = [length, length + 1, 3 * length - 1, 2 * length, 5 * length + 2]
    ends = np.cumsum(lengths).tolist()
    for n in range(ends[-1] // length):
        for shift in range(-(length // 2), length // 2 + 1):
            file, offset = locate(n, shift, ends, length)
            assert 0 <= offset <= lengths[file] - length


def test_chunk_split_cuts_the_row_of_items(admitted):
    train, test = (dataset(admitted, split="chunk", part=part, aug_shift=True) for part in ("train", "test"))
    whole = dataset(admitted, split="chunk")
    lengths = [entry.length_samples for entry in admitted.usable if entry.length_sec >= 1]
    assert len(whole) == sum(lengths) // L == len(train) + len(test) and len(train) == int(len(whole) * 0.9)
    assert [whole.place(n) for n in range(len(whole))] == chunk_table(lengths, L)
    assert [test.place(n, draw=5) for n in range(len(test))] == chunk_table(lengths, L)[len(train) :], "not shifted"


def test_file_split_keeps_a_song_in_one_part(admitted):
    for seed in range(5):
        parts = {
            part: dataset(admitted, part=part, seed=seed, train_test_split=0.7) for part in ("train", "test", "all")
        }
        names = {part: {file.entry.file for file in data.files} for part, data in parts.items()}
        assert not names["train"] & names["test"] and names["train"] | names["test"] == names["all"]
        assert len(parts["train"]) + len(parts["test"]) == len(parts["all"]) == 20
        assert 3 <= len(parts["test"]) <= 9
        again = dataset(admitted, part="test", seed=seed, train_test_split=0.7)
        assert {file.entry.file for file in again.files} == names["test"]
    assert len({tuple(f.entry.file for f in dataset(admitted, part="test", seed=s).files) for s in range(9)}) > 1


def test_exactly_one_chunk_is_one_item(admitted):
    whole = dataset(admitted)
    assert [whole.place(n) for n in range(3)] == [(0, 0), (1, 0), (1, L)]
    assert not whole.left_out
    longer = dataset(admitted, sample_length=L + 1)
    assert longer.left_out == [("a.wav", "0.50 s, shorter than 0.50 s")] or len(longer.left_out) == 1
    ranged = dataset(admitted, min_duration=1.0, max_duration=2.0)
    assert [name for name, _ in ranged.left_out] == ["a.wav", "b.wav", "d.wav", "f.wav"]
    assert "not below 2.00 s" in ranged.left_out[-1][1]


def test_what_cannot_be_dealt_is_said(admitted):
    with pytest.raises(DataError, match="none of 6 usable files has a length that fits"):
        dataset(admitted, sample_length=10 * SR)
    with pytest.raises(DataError, match="nothing for the test part"):
        dataset(admitted, part="test", train_test_split=1.0)
    with pytest.raises(DataError, match="nothing for the test part.*--split=chunk"):
        dataset(admitted, part="test", min_duration=2.5)


def test_shifts_cover_songs_evenly_and_belong_to_the_draw(admitted):
    data = dataset(admitted, aug_shift=True, seed=3)
    for n in range(len(data)):
        for draw in range(20):
            file, offset = data.place(n, draw)
            assert file == dataset(admitted).place(n)[0]
            assert 0 <= offset <= data.files[file].length_samples - L
    offsets = np.array([data.place(n, draw)[1] for n in range(1, 7) for draw in range(300)])  # the song of 3 s
    share = np.histogram(offsets, bins=10, range=(0, 24000 - L))[0] / len(offsets)
    assert share.min() > 0.07 and share.max() < 0.13, "edges are no more likely than the middle"
    assert data.place(2, 1) == dataset(admitted, aug_shift=True, seed=3).place(2, 1)
    assert len({data.place(2, draw) for draw in range(9)}) > 5
    assert data.place(2, 1) != dataset(admitted, aug_shift=True, seed=4).place(2, 1)


def test_blend(admitted):
    data = dataset(admitted, aug_blend=True)
    mixes = [data.mix(n, draw) for n in range(20) for draw in range(20)]
    assert 0 <= min(mixes) < 0.1 and 0.9 < max(mixes) < 1 and len(set(mixes)) == 400
    assert dataset(admitted).mix(3) == dataset(admitted, part="test", aug_blend=True).mix(3) == 0.5


def test_an_item_is_that_piece_of_the_song(admitted):
    songs = [SongMeta(artist=entry.file) for entry in admitted.usable]
    for sr_hz in (SR, 12000):
        data = AudioDataset(admitted, songs, sr_hz=sr_hz, sample_length=L // 2, part="all", aug_shift=True)
        for n in (0, 3, len(data) - 1):
            item = data.item(n, 1)
            whole = io.read(admitted.root / item.file, sr_hz=sr_hz, channels=2)
            assert item.song.artist == item.file and item.total_samples == len(whole)
            piece = whole[item.offset_samples : item.offset_samples + L // 2]
            assert item.audio.shape == (L // 2, 2) and np.abs(item.audio - piece).max() < 2e-6


def test_a_file_that_changed_since_the_scan_is_not_read(make_songs, tmp_path):
    from jukebox.data.admission import scan
    from jukebox.parallel.comm import SoloComm

    folder = make_songs(tmp_path / "songs", (1, 1, 1))
    data = dataset(scan(folder, tmp_path / "index.json", SoloComm(), workers=0))
    size = (folder / "a.wav").stat().st_size
    make_songs(folder, (2,))
    with pytest.raises(io.AudioError, match=rf"a.wav: changed since the scan \(size {size} ->"):
        data.item(0)
    os.utime(folder / "b.wav", ns=(1, 1))
    with pytest.raises(io.AudioError, match="written anew"):
        data.item(2)
    (folder / "c.wav").unlink()
    with pytest.raises(io.AudioError, match="gone since the scan"):
        data.item(4)


def test_requests_need_nothing_else(admitted):
    import pickle

    data = dataset(admitted)
    request = pickle.loads(pickle.dumps(data.request(3)))
    assert np.array_equal(read_chunk(request), data.item(3).audio)


def test_the_fingerprint_follows_what_matters(admitted):
    prints = {
        dataset(admitted, **options).fingerprint()
        for options in (
            {},
            {"sr_hz": 4000},
            {"sample_length": 2000},
            {"part": "train"},
            {"seed": 1},
            {"split": "chunk"},
        )
    }
    assert len(prints) == 6
    assert dataset(admitted).fingerprint() == dataset(admitted).fingerprint()
