"""The order of batches: free of ranks and workers, resumable; and what is done about files that fail."""

import os
import signal
import time
from itertools import islice

import failing_reads
import numpy as np
import pytest
import torch

from jukebox.data.audio_dataset import AudioDataset
from jukebox.data.loaders import Order, batches, evaluation_batches, to_mono
from jukebox.errors import DataError

SR, L = 8000, 4000


@pytest.fixture(scope="module")
def data(admitted):
    return AudioDataset(admitted, sr_hz=SR, sample_length=L, part="all", aug_shift=True, aug_blend=True)


def seen(iterator, steps):
    return [list(zip(b.indices.tolist(), b.offsets.tolist(), strict=True)) for b in islice(iterator, steps)]


def test_an_epoch_is_every_item_once():
    order = Order(10, 5, seed=1)
    assert order.steps_per_epoch == 2
    for epoch in (0, 1, 7):
        steps = range(2 * epoch, 2 * epoch + 2)
        found = [order.item(*position) for step in steps for position in order.positions(step)]
        assert sorted(index for index, _ in found) == list(range(10)) and {draw for _, draw in found} == {epoch}
    rows = [[order.item(epoch, p)[0] for p in range(10)] for epoch in range(3)]
    assert rows[0] != rows[1] != rows[2]
    assert rows[0] == [Order(10, 5, seed=1).item(0, p)[0] for p in range(10)]
    assert rows[0] != [Order(10, 5, seed=2).item(0, p)[0] for p in range(10)]
    assert [Order(10, 5, shuffle=False).item(3, p)[0] for p in range(10)] == list(range(10))


def test_a_set_smaller_than_a_batch_is_gone_through_again():
    order = Order(3, 8)
    found = [order.item(*position) for position in order.positions(4)]
    assert order.steps_per_epoch == 1 and len(set(found)) == 8, "the same item, but shifted anew"
    assert sorted(index for index, _ in found[:3]) == sorted(index for index, _ in found[3:6]) == [0, 1, 2]


def test_ranks_share_the_global_batch(data):
    alone = seen(batches(data, bs=4, seed=5), 6)
    ranks = [seen(batches(data, bs=2, seed=5, comm_rank=r, comm_size=2), 6) for r in (0, 1)]
    four = [seen(batches(data, bs=1, seed=5, comm_rank=r, comm_size=4), 6) for r in range(4)]
    for step in range(6):
        assert alone[step][0::2] == ranks[0][step] and alone[step][1::2] == ranks[1][step]
        assert [rank[step][0] for rank in four] == alone[step]


def test_any_step_can_be_gone_on_from(data):
    whole = seen(batches(data, bs=3, seed=2), 15)
    for start in (1, 6, 7, 13):
        assert seen(batches(data, bs=3, seed=2, start_step=start), 15 - start) == whole[start:]


def test_workers_change_nothing(data):
    for here, there in islice(zip(batches(data, bs=3), batches(data, bs=3, workers=2), strict=True), 8):
        assert torch.equal(here.audio, there.audio) and torch.equal(here.mix, there.mix)
        assert here.files == there.files and here.songs == there.songs
        assert (here.step, here.epoch) == (there.step, there.epoch)


def test_what_a_batch_holds(data):
    batch = next(batches(data, bs=3))
    assert batch.audio.shape == (3, L, 2) and batch.audio.dtype == torch.float32
    assert batch.to_mono().shape == (3, L, 1) and batch.to_mono().dtype == torch.float32
    for i in range(3):
        item = data.item(int(batch.indices[i]))
        assert np.array_equal(batch.audio[i], item.audio)
        assert (batch.files[i], int(batch.offsets[i]), int(batch.totals[i])) == (
            item.file, item.offset_samples, item.total_samples)  # fmt: skip
    audio, mix = torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]]), torch.tensor([0.5, 0.25])
    assert to_mono(audio, mix).flatten().tolist() == [2.0, 2.5]


def test_evaluation_sees_each_item_once(admitted):
    test = AudioDataset(admitted, sr_hz=SR, sample_length=L, part="test", train_test_split=0.5, aug_shift=True)
    for size in (1, 2, 3):
        found = [seen(evaluation_batches(test, bs=2, comm_rank=r, comm_size=size), 99) for r in range(size)]
        items = [item for rank in found for step in rank for item in step]
        assert sorted(items) == [(n, test.place(n)[1]) for n in range(len(test))]


# ---- files that fail ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read, workers", [(failing_reads.read_but_c, 0), (failing_reads.read_but_c, 2), (failing_reads.read_but_c_kills, 2)]
)
def test_a_bad_file_is_left_out_and_the_next_of_the_order_takes_its_place(data, read, workers):
    iterator = batches(data, bs=2, seed=1, workers=workers, read=read, max_bad=0.2)
    found = list(islice(iterator, 12))
    order = Order(len(data), 2, seed=1)
    for batch in found:
        assert len(batch.files) == 2 and "c.wav" not in batch.files
        for (epoch, position), index in zip(order.positions(batch.step), batch.indices.tolist(), strict=True):
            wanted = order.item(epoch, position)[0]
            while data.files[data.place(wanted)[0]].entry.file == "c.wav":
                position += 1
                wanted = order.item(epoch, position)[0]
            assert index == wanted
    assert found[-1].bad_reads >= 1


def test_a_bad_file_stops_the_run_when_asked_to(data):
    with pytest.raises(DataError, match="c.wav: damaged .--on_bad_file=skip"):
        list(islice(batches(data, bs=2, read=failing_reads.read_but_c, on_bad_file="error"), 20))


def test_too_many_bad_files_stop_the_run(data):
    with pytest.raises(DataError, match="2 of 6 files failed while they were read, more than --max_bad=0.2"):
        list(islice(batches(data, bs=2, read=failing_reads.read_nothing, max_bad=0.2), 20))


def test_evaluation_leaves_bad_items_out(data):
    found = list(evaluation_batches(data, bs=4, read=failing_reads.read_but_c, max_bad=0.2))
    files = [name for batch in found for name in batch.files]
    assert len(files) == len(data) - 2 and "c.wav" not in files and found[-1].bad_reads >= 1


def test_a_frozen_read_is_named(data):
    started = time.monotonic()
    with pytest.raises(DataError, match="c.wav: not read within 1 s"):
        list(islice(batches(data, bs=2, workers=2, timeout_sec=1, read=failing_reads.read_but_c_hangs), 40))
    assert time.monotonic() - started < 10


def test_our_own_mistakes_are_not_blamed_on_files(data):
    with pytest.raises(RuntimeError, match="no_such_field"):
        next(batches(data, bs=1, workers=1, read=failing_reads.read_with_a_mistake))


def test_a_worker_killed_from_outside_is_replaced(data):
    import multiprocessing

    before = {child.pid for child in multiprocessing.active_children()}
    iterator = batches(data, bs=2, workers=2, seed=9, max_bad=1.0)
    plain = seen(batches(data, bs=2, seed=9), 2)
    assert seen(iterator, 2) == plain
    for child in multiprocessing.active_children():
        if child.pid not in before:
            os.kill(child.pid, signal.SIGKILL)
    assert all(len(batch.files) == 2 for batch in islice(iterator, 10))
    iterator.close()
    time.sleep(0.1)
    assert {child.pid for child in multiprocessing.active_children()} <= before
