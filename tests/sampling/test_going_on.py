"""A run that was stopped inside a level goes on to the same songs; another run in the same folder sets it aside."""

import pytest
import torch

from jukebox.models import restricted
from jukebox.parallel import launch


def test_stopped_and_taken_up(tiny, tmp_path, monkeypatch):
    flags = tiny.flags(tmp_path / "out", requests=tiny.requests(tmp_path / "songs.jsonl"), sample_length=960)
    for windows in (2, 7, None):
        seen = 0

        def asked_to_stop(windows=windows):
            nonlocal seen
            seen += 1
            return windows is not None and seen > windows

        monkeypatch.setattr(launch, "stop_requested", asked_to_stop)
        if windows is None:
            assert tiny.sing(flags) == 0
        else:
            with pytest.raises(SystemExit):
                tiny.sing(flags)
    zs = restricted.load(tmp_path / "out/level_0/data.pth.tar")["zs"]
    assert all(torch.equal(zs[level], tiny.arrays[f"ancestral.z_{level}"]) for level in range(3))
    assert not (tmp_path / "out/earlier").exists()

    short = tiny.flags(tmp_path / "out", model=tiny.model.split(",")[0], sample_length=160)
    assert tiny.sing(short) == 0
    assert (tmp_path / "out/earlier/1/level_0/data.pth.tar").exists()
