"""The scan: what it refuses and says, that it is done once, goes on where it stopped, and touches nothing."""

import json
import os
import shutil

import failing_reads
import numpy as np
import pytest
import soundfile

from jukebox.audio import io
from jukebox.data import admission
from jukebox.data.admission import admit, scan
from jukebox.errors import DataError
from jukebox.parallel.comm import SoloComm

SR = 8000


class _Rank(SoloComm):
    """One of several ranks run one after the other; meetings hand over what the others left."""

    def __init__(self, rank, size, left):
        super().__init__()
        self.rank, self.size, self._left = rank, size, left

    def gather_objects(self, value):
        self._left.append(value)
        return [(entries, 0) for entries, _ in self._left]


def mixed_folder(folder, make_songs):
    make_songs(folder, (1, 2, 1.5, 1))
    (folder / "sub").mkdir()
    (folder / "zero.flac").write_bytes(b"")
    (folder / "page.mp3").write_bytes(b"<!doctype html>" * 99)
    cut = (folder / "b.wav").read_bytes()
    (folder / "sub" / "half.wav").write_bytes(cut[: len(cut) // 2])
    soundfile.write(folder / "nan.wav", np.full(SR, np.nan), SR, subtype="FLOAT")
    soundfile.write(folder / "huge.wav", np.full(SR, 1e30), SR, subtype="FLOAT")
    soundfile.write(folder / "quiet.wav", np.zeros(SR), SR)
    soundfile.write(folder / "none.wav", np.zeros(0), SR)
    return folder


def test_each_bad_file_is_named_with_its_reason(make_songs, tmp_path):
    folder = mixed_folder(tmp_path / "songs", make_songs)
    before = sorted(os.walk(folder))
    index = admit(
        folder, tmp_path / "index.json", SoloComm(), max_bad=0.9, report=tmp_path / "bad_files.tsv", workers=0
    )
    assert [entry.file for entry in index.usable] == ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert [entry.length_samples for entry in index.usable] == [SR, 2 * SR, 12000, SR]
    assert index.usable[0].sr_hz == SR and index.usable[0].channels == 2 and 0.2 < index.usable[0].peak < 0.4
    reasons = {entry.file: entry.reason for entry in index.refused}
    assert reasons == {
        "zero.flac": "empty file",
        "page.mp3": "not a sound file but a web page",
        "sub/half.wav": reasons["sub/half.wav"],
        "nan.wav": f"{SR} samples are not finite numbers",
        "huge.wav": "peak 1e+30 (full scale is 1)",
        "quiet.wav": "silent (peak 0)",
        "none.wav": "no audio frames",
    }
    assert "cut short" in reasons["sub/half.wav"]
    lines = (tmp_path / "bad_files.tsv").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == sorted(reasons)
    assert sorted(os.walk(folder)) == before, "nothing is written beside the music"


def test_policies(make_songs, tmp_path, caplog):
    folder = mixed_folder(tmp_path / "songs", make_songs)
    run = lambda **options: admit(folder, tmp_path / "index.json", SoloComm(), workers=0, **options)  # noqa: E731
    with pytest.raises(
        DataError, match=r"6 of 11 files cannot be used, more than --max_bad=0.01(.|\n)*page.mp3: not a sound"
    ):
        run()
    with pytest.raises(DataError, match=r"6 of 11 files cannot be used \(--on_bad_file=error\)"):
        run(on_bad_file="error", max_bad=1.0)
    run(max_bad=0.6)
    assert "7 of 11 files are left out" in caplog.text and "quiet.wav: silent" in caplog.text
    with pytest.raises(DataError, match="none of 11 sound files can be used"):
        run(max_audio_sec=0.5)


def test_no_sound_at_all(tmp_path):
    (tmp_path / "songs").mkdir()
    for name in ("a.txt", "b.txt", "c.PDF", "readme"):
        (tmp_path / "songs" / name).write_text("x")
    with pytest.raises(DataError, match=r"songs holds no sound file \(2 .txt, 1 .pdf, 1 no extension\).*flac.*wav"):
        admit(tmp_path / "songs", tmp_path / "index.json", SoloComm(), workers=0)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        admit(tmp_path / "nowhere", tmp_path / "index.json", SoloComm(), workers=0)


def test_only_what_changed_is_decoded_again(make_songs, tmp_path, monkeypatch):
    folder, cache = make_songs(tmp_path / "songs", (1, 1, 1)), tmp_path / "deep" / "index.json"
    decoded = []
    survey = io.survey
    monkeypatch.setattr(
        io, "survey", lambda path, **options: decoded.append(os.path.basename(path)) or survey(path, **options)
    )
    run = lambda: (decoded.clear(), scan(folder, cache, SoloComm(), workers=0), sorted(decoded))[1:]  # noqa: E731
    first, names = run()
    assert names == ["a.wav", "b.wav", "c.wav"]
    assert run() == (first, [])
    os.utime(folder / "a.wav", ns=(5, 5))
    again, names = run()
    assert names == [] and again.entries[0].mtime_ns == 5 and again.fingerprint() == first.fingerprint(), "same content"
    io.write(folder / "b.wav", io.read(folder / "b.wav") * 0.5, SR)
    (folder / "c.wav").unlink()
    shutil.copy(folder / "a.wav", folder / "e.wav")
    again, names = run()
    assert names == ["b.wav", "e.wav"] and [entry.file for entry in again.entries] == ["a.wav", "b.wav", "e.wav"]
    assert again.fingerprint() != first.fingerprint()
    cache.write_text("{ damaged")
    assert run() == (again, ["a.wav", "b.wav", "e.wav"])


def test_a_stopped_scan_goes_on(make_songs, tmp_path, monkeypatch):
    folder, cache = make_songs(tmp_path / "songs", (1,) * 6), tmp_path / "index.json"
    monkeypatch.setattr(admission, "_ROUND_SEC", 0.0)
    save, saves = admission.save_index, []

    def interrupted(*arguments):
        save(*arguments)
        saves.append(len(json.loads(cache.read_text())["entries"]))
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(admission, "save_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan(folder, cache, SoloComm(), workers=0)
    assert saves == [1, 2, 3]
    index = scan(folder, cache, SoloComm(), workers=0)
    assert saves == [1, 2, 3, 4, 5, 6] and len(index.usable) == 6


def test_ranks_share_the_work_and_agree(make_songs, tmp_path):
    folder = make_songs(tmp_path / "songs", (1, 1, 1, 1, 1))
    left = []
    scan(folder, tmp_path / "first.json", _Rank(1, 2, left), workers=0)
    index = scan(folder, tmp_path / "second.json", _Rank(0, 2, left), workers=0)
    assert [len(entries) for entries, _ in left] == [2, 3]
    assert index == scan(folder, tmp_path / "alone.json", SoloComm(), workers=0)


def test_a_decoder_that_crashes_refuses_one_file(make_songs, tmp_path):
    folder = make_songs(tmp_path / "songs", (1, 1, 1, 1))
    index = scan(folder, tmp_path / "index.json", SoloComm(), workers=2, examine=failing_reads.examine_but_c_kills)
    assert [entry.file for entry in index.usable] == ["a.wav", "b.wav", "d.wav"]
    assert index.refused[0].reason == "the process that read it died (SIGSEGV)"
    assert len(scan(folder, tmp_path / "index.json", SoloComm(), workers=0).usable) == 4, "it is tried again"


def test_a_decoder_that_hangs_is_named(make_songs, tmp_path):
    folder = make_songs(tmp_path / "songs", (1, 1, 1))
    with pytest.raises(DataError, match="c.wav: not read within 0.5 s"):
        scan(
            folder,
            tmp_path / "i.json",
            SoloComm(),
            workers=1,
            timeout_sec=0.5,
            examine=failing_reads.examine_but_c_hangs,
        )


def test_a_length_limit_holds_before_everything_is_decoded(tmp_path):
    (tmp_path / "songs").mkdir()
    io.write(tmp_path / "songs" / "long.opus", np.zeros(60 * SR, np.float32), SR)
    index = scan(tmp_path / "songs", tmp_path / "i.json", SoloComm(), workers=0, max_audio_sec=20)
    assert index.refused[0].reason == "longer than 20 s (--max_audio_sec)"
    index = scan(tmp_path / "songs", tmp_path / "i.json", SoloComm(), workers=0, max_audio_sec=0)
    assert index.refused[0].reason.startswith("silent"), "another limit is another look"


def test_odd_names_and_tags_survive_the_index(tmp_path):
    folder = tmp_path / "songs"
    folder.mkdir()
    names = [os.fsdecode(b"caf\xe9.wav"), "line\nfeed.wav", "🎵.wav"]
    for name in names:
        io.write(folder / name, np.full(SR, 0.1, np.float32), SR, tags={"artist": "Ä", "title": "T"})
    scan(folder, tmp_path / "index.json", SoloComm(), workers=0)
    index = scan(folder, tmp_path / "index.json", SoloComm(), workers=0)
    assert sorted(entry.file for entry in index.usable) == sorted(names)
    assert index.usable[0].tags == {"artist": "Ä", "title": "T"}
    (folder / names[0]).write_bytes(b"junk")
    admission.write_report(scan(folder, tmp_path / "index.json", SoloComm(), workers=0), tmp_path / "bad.tsv")
    assert len((tmp_path / "bad.tsv").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.slow
def test_a_hundred_thousand_known_files_start_quickly(tmp_path):
    """The budget of row A11 for a second start: below 5 s."""
    import time

    folder = tmp_path / "songs"
    (folder / "sub").mkdir(parents=True)
    io.write(folder / "a.wav", np.full(80, 0.1, np.float32), SR)
    entry = scan(folder, tmp_path / "i.json", SoloComm(), workers=0).entries[0]
    data = (folder / "a.wav").read_bytes()
    entries = {}
    for number in range(100_000):
        name = f"sub/{number:06}.wav"
        (folder / name).write_bytes(data)
        os.utime(folder / name, ns=(entry.mtime_ns, entry.mtime_ns))
        entries[name] = admission.replace(entry, file=name)
    admission.save_index(tmp_path / "i.json", folder, entries)
    started = time.process_time()
    assert len(scan(folder, tmp_path / "i.json", SoloComm(), workers=0).usable) == 100_001
    assert time.process_time() - started < 5
