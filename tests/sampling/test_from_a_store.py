"""Songs encoded by pre_encode.py, continued and upsampled by sample.py; labels come from the store."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jukebox import settings
from jukebox.codestore.store import CodeStore
from jukebox.errors import StoreError
from jukebox.parallel.world import job
from jukebox.sampling.run import main

LYRICS = "la la"


@pytest.fixture(scope="module")
def store(tiny, run_mpi, jukebox_root, tmp_path_factory) -> Path:
    """Two songs of 0.2 s with their labels, the codes of all levels."""
    folder = tmp_path_factory.mktemp("music")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(2):
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.2, 1600).astype(np.float32), 8000)
        lines.append({"file": f"{i}.wav", "artist": "Alan Jackson", "genre": "country", "lyrics": LYRICS})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    vqvae = Path(tiny.model.split(",")[0]).parent / "vqvae"
    out = folder.with_name("codes_of_music")
    command = [jukebox_root / "jukebox" / "pre_encode.py", f"--restore_vqvae={vqvae}", f"--audio_files_dir={folder}"]
    done = run_mpi(0, [*command, f"--output-path={out}"], timeout=120, env={"OMP_NUM_THREADS": "1"})
    assert done.code == 0, done.err
    return out


def sample(tiny, name: Path, **more) -> Path:
    """sample.py as a person runs it: with nothing said of the songs."""
    job.comm = None  # each run is a program of its own
    given = {"total_sample_length_in_seconds": None} | more
    assert main(settings.parse("sample", tiny.flags(name, **given))) == 0
    return name


def test_a_song_of_a_store_is_upsampled(tiny, store, tmp_path):
    """Only its top codes are kept; the lower levels are sung anew, by the labels it was encoded with."""
    sample(tiny, tmp_path / "up", mode="upsample", codes_file=f"{store}:1", sample_length=960)
    given, made = CodeStore.open(store), CodeStore.open(tmp_path / "up" / "codes")
    length = 960 // given.geometry.top_hop
    np.testing.assert_array_equal(made.codes(2, 0), given.codes(2, 1, 0, length))
    below = given.codes(1, 1, 0, 2 * length)
    assert len(made.codes(1, 0)) == len(below) and not np.array_equal(made.codes(1, 0), below)
    song = made.item(0).meta["song"]
    assert (song["artist"], song["genre"], song["lyrics"]) == ("Alan Jackson", "country", LYRICS)
    assert soundfile.info(tmp_path / "up" / "level_0" / "item_0.wav").frames == 960


def test_a_song_of_a_store_is_continued(tiny, store, tmp_path):
    sample(
        tiny, tmp_path / "on", mode="continue", codes_file=f"{store}:0", prompt_length_in_seconds=0.1, sample_length=960
    )
    given, made = CodeStore.open(store), CodeStore.open(tmp_path / "on" / "codes")
    for level, ratio in ((2, 1), (1, 2), (0, 4)):
        end = 800 // given.geometry.top_hop * ratio
        np.testing.assert_array_equal(made.codes(level, 0, 0, end), given.codes(level, 0, 0, end))
        assert len(made.codes(level, 0)) > end


def test_a_song_that_is_not_in_the_store(tiny, store, tmp_path):
    with pytest.raises(StoreError, match="has no item .7.; give a position from 0 to 1"):
        sample(tiny, tmp_path / "no", mode="upsample", codes_file=f"{store}:7", sample_length=960)
