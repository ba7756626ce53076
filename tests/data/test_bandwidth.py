"""The normalisers of the losses."""

import numpy as np
import pytest

from jukebox.data.audio_dataset import AudioDataset
from jukebox.data.bandwidth import bandwidth_items, bandwidth_of, measure_bandwidth
from jukebox.errors import DataError
from jukebox.parallel.comm import SoloComm


class _OneOf(SoloComm):
    """One rank of two; the other one's share is worked out here as well, so that results can be compared."""

    def __init__(self, rank, shares):
        super().__init__()
        self.rank, self.size, self._shares = rank, 2, shares

    def gather_objects(self, value):
        self._shares[self.rank] = value
        return [share for share in self._shares if share is not None]


def test_golden(golden, pytestconfig):
    from safetensors.numpy import load_file

    cases = golden("audio_losses.json")["bandwidth"]
    arrays = load_file(next(pytestconfig.rootpath.glob("tests/fixtures/golden/**/audio_losses.safetensors")))
    for seconds, case in cases.items():
        assert bandwidth_items(47, 5000, 22050 * float(seconds)) == case["indices_read"]
        found = bandwidth_of([arrays[f"bw_item_{index}"] for index in case["indices_read"]])
        for name, value in case["bandwidth_without_dist"].items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-6)


def test_small_sets_are_gone_through_once():
    assert bandwidth_items(3, 100, 1e9) == [0, 1, 2]
    assert bandwidth_items(20, 100, 301) == [0, 16, 1, 17]
    assert sorted(bandwidth_items(100, 1, 1000)) == list(range(100))
    assert bandwidth_items(5, 100, 1) == [0]


def test_silence_divides_nothing_by_zero():
    found = bandwidth_of([np.zeros((4000, 2), np.float32)])
    assert min(found.l1, found.l2, found.spec) > 0
    with pytest.raises(DataError):
        bandwidth_of([])


def test_ranks_agree_and_the_result_is_kept(admitted, tmp_path, monkeypatch):
    data = AudioDataset(admitted, sr_hz=8000, sample_length=4000, part="all", aug_shift=True)
    alone = measure_bandwidth(data, SoloComm(), cache=tmp_path / "cache")
    shares = [None, None]
    with pytest.raises(KeyError):
        measure_bandwidth(data, _OneOf(0, shares))  # fills its share; the other is not there yet
    assert measure_bandwidth(data, _OneOf(1, shares)) == alone
    monkeypatch.setattr(AudioDataset, "item", None)
    assert measure_bandwidth(data, SoloComm(), cache=tmp_path / "cache") == alone
    (saved,) = (tmp_path / "cache").iterdir()
    saved.write_text("{")
    with pytest.raises(TypeError):
        measure_bandwidth(data, SoloComm(), cache=tmp_path / "cache")
