"""Small folders of songs, admitted."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jukebox.audio import io
from jukebox.data.admission import scan
from jukebox.parallel.comm import SoloComm

SR = 8000
sys.path.append(str(Path(__file__).parent))  # worker processes import failing_reads by name


def tone(seconds, hz=220.0, sr_hz=SR):
    t = np.arange(round(seconds * sr_hz)) / sr_hz
    left = 0.3 * np.sin(2 * np.pi * hz * t) * (0.5 + 0.5 * t / max(seconds, 1e-9))
    return np.stack([left, -0.5 * left], 1).astype(np.float32)


@pytest.fixture(scope="session")
def make_songs():
    """Writes one wav per length in seconds, a.wav, b.wav ..., each with a pitch of its own."""

    def make(folder, seconds):
        folder.mkdir(parents=True, exist_ok=True)
        for number, length in enumerate(seconds):
            io.write(folder / f"{chr(97 + number)}.wav", tone(length, 200 + 30 * number), SR)
        return folder

    return make


@pytest.fixture(scope="session")
def admitted(make_songs, tmp_path_factory):
    """Six songs of 0.5 to 3 s, and what the scan says of them."""
    folder = make_songs(tmp_path_factory.mktemp("admitted") / "songs", (0.5, 3.0, 1.0, 2.05, 1.5, 2.0))
    return scan(folder, folder.parent / "index.json", SoloComm(), workers=0)


@pytest.fixture(scope="session")
def golden(pytestconfig):
    def load(name):
        for folder in (
            pytestconfig.rootpath / "tests/fixtures/golden/jukebox",
            pytestconfig.rootpath / "tests/fixtures/golden",
        ):
            if (folder / name).exists():
                return json.loads((folder / name).read_text())
        pytest.skip(f"{name} is not there")

    return load
