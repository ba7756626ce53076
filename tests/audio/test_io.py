"""Every format, at any offset and rate, sample by sample; writing and what is written."""

import os

import av
import numpy as np
import pytest
import soundfile

from jukebox.audio import decoders, io, tags
from jukebox.errors import DataError

SR = 22050
LOSSLESS = ("wav", "flac", "aiff")
FORMATS = (*LOSSLESS, "mp3", "ogg", "opus", "m4a")
TAGS = {"artist": "Zoë & <Co>", "title": "A title", "genre": "Folk", "lyrics": "one line\nanother line"}


def chirp(seconds=1.5, sr_hz=SR):
    """Two channels, different at every moment, so that any shift shows."""
    t = np.arange(int(seconds * sr_hz)) / sr_hz
    noise = np.random.default_rng(0).normal(size=(len(t), 2)) * 0.005
    sound = np.stack([0.4 * np.sin(2 * np.pi * (200 + 400 * t) * t), 0.3 * np.sin(2 * np.pi * (500 - 90 * t) * t)], 1)
    return (sound + noise).astype(np.float32)


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    for suffix in FORMATS:
        io.write(folder / f"a.{suffix}", chirp(), SR, tags=TAGS)
    return folder


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_comes_back_in_place(songs, suffix):
    found, wanted = io.read(songs / f"a.{suffix}", sr_hz=SR), chirp()
    assert found.dtype == np.float32 and found.shape[1] == 2
    assert 0 <= len(found) - len(wanted) < 2048, "encoders may pad the end, no more"
    if suffix in LOSSLESS:
        assert np.array_equal(found, io.to_pcm16(wanted) / np.float32(32768))
    else:
        assert _lag(found[:, 0], wanted[:, 0]) == 0, "not a sample early or late"
        assert np.abs(found[: len(wanted)] - wanted).mean() < 0.02


def _lag(found, wanted):
    n = 1 << 16
    correlation = np.fft.irfft(np.fft.rfft(found, n) * np.conj(np.fft.rfft(wanted, n)), n)
    return (int(correlation.argmax()) + n // 2) % n - n // 2


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sr_hz", [SR, 16000, 44100])
@pytest.mark.parametrize("suffix", FORMATS)
def test_any_offset_is_the_same_piece_of_the_whole(songs, suffix, sr_hz, channels):
    path = songs / f"a.{suffix}"
    whole = io.read(path, sr_hz=sr_hz, channels=channels)
    assert whole.shape[1] == channels
    streamed = list(io.stream(path, sr_hz, channels, 5000))
    assert all(len(block) == 5000 for block in streamed[:-1])
    assert np.array_equal(np.concatenate(streamed), whole)
    tolerance = 0.1 if suffix == "m4a" else 2e-6  # AAC's noise depends on what was decoded before
    for start in (0, 1, 777, sr_hz // 2, sr_hz, len(whole) - 2000):
        piece = io.read(path, sr_hz=sr_hz, channels=channels, start_samples=start, length_samples=2000)
        assert np.abs(piece - whole[start : start + 2000]).max() < tolerance, start
        assert suffix != "m4a" or _lag(piece[:, 0], whole[start : start + 2000, 0]) == 0


@pytest.mark.parametrize("seconds, level", [(0.1, 0.3), (1.0, 0.0), (1.0, 0.3), (7.0, 0.0), (7.0, 0.01)])
@pytest.mark.parametrize("writer", ["libsndfile", "ffmpeg"])
def test_ogg_pages_of_any_kind(seconds, level, writer, tmp_path):
    """Both common layouts of pages, also all sound in a single page: exact length, exact seeks up to the last sample."""
    length = int(seconds * SR) + 77
    sound = np.random.default_rng(0).normal(size=length) * level
    path = tmp_path / "a.ogg"
    io.write(path, sound, SR)
    if writer == "ffmpeg" and seconds > 2:
        with av.open(str(path)) as source, av.open(str(tmp_path / "b.ogg"), "w") as target:
            stream = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path = tmp_path / "b.ogg"
    whole = io.read(path)
    assert len(whole) == length == io.survey(path).length_samples
    for start in range(0, length - 100, max(1, length // 23)):
        piece = io.read(path, start_samples=start, length_samples=100)
        assert np.array_equal(piece, whole[start : start + 100]), start
    assert np.array_equal(io.read(path, start_samples=length - 3), whole[-3:])


def test_seconds_as_offset(songs):
    whole = io.read(songs / "a.wav")
    assert np.array_equal(io.read(songs / "a.wav", start_sec=0.5, length_samples=10), whole[SR // 2 : SR // 2 + 10])


def test_the_end_is_not_padded(songs):
    with pytest.raises(io.AudioError, match="decoded 75 of the 100 samples asked for"):
        io.read(songs / "a.wav", start_samples=len(chirp()) - 75, length_samples=100)


@pytest.mark.parametrize("from_hz", [1000, 7999, 11025, 37800, 44100, 48000, 96000, 384000])
def test_resampled_length_is_exact_and_the_sound_stays_in_place(from_hz, tmp_path):
    count = int(0.7 * from_hz) + 13
    sine = np.sin(2 * np.pi * 200 * np.arange(count) / from_hz).astype(np.float32)
    found = io.resample(sine, from_hz, SR)
    assert len(found) == -(-count * SR // from_hz) == io.resampled_length(count, from_hz, SR)
    wanted = np.sin(2 * np.pi * 200 * np.arange(len(found)) / SR)
    middle = slice(len(found) // 4, -len(found) // 4)
    assert np.abs(found[middle] - wanted[middle]).max() < 1e-3
    soundfile.write(tmp_path / "a.wav", sine, from_hz, subtype="FLOAT")
    assert np.abs(io.read(tmp_path / "a.wav", sr_hz=SR)[:, 0] - found).max() < 1e-6
    piece = io.read(tmp_path / "a.wav", sr_hz=SR, start_samples=5000, length_samples=3000)
    assert np.abs(piece[:, 0] - found[5000:8000]).max() < 2e-6


@pytest.mark.parametrize("rate", [1, 999, 800_000])
def test_rates_out_of_this_world_are_refused(rate, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), rate)
    with pytest.raises(io.AudioError, match=f"sample rate {rate} Hz"):
        io.read(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("count", [3, 4, 5, 6, 8])
def test_many_channels_are_mixed_down_without_clipping(count, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.full((4000, count), 0.999), SR)
    for channels in (1, 2, None):
        found = io.read(path, channels=channels)
        assert found.shape == (4000, channels or 2)
        assert 0.5 < np.abs(found).max() <= 1.0
    left_only = np.zeros((4000, count))
    left_only[:, 0] = 0.5
    soundfile.write(path, left_only, SR)
    found = io.read(path, channels=2)
    assert np.abs(found[:, 0]).min() > 0.1 and not found[:, 1].any()
    assert np.array_equal(io.read(path, channels=2, start_samples=1500, length_samples=100), found[1500:1600])


def test_too_many_channels_are_refused_by_number(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 23)), SR)
    with pytest.raises(io.AudioError, match="23 channels"):
        io.read(tmp_path / "a.wav")


def test_one_channel_is_doubled_and_two_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([[0.5, 0.25]] * 8), SR, subtype="FLOAT")
    assert np.array_equal(io.read(tmp_path / "a.wav", channels=1), np.full((8, 1), 0.375, np.float32))
    soundfile.write(tmp_path / "b.wav", np.full(8, 0.5), SR, subtype="FLOAT")
    assert np.array_equal(io.read(tmp_path / "b.wav", channels=2), np.full((8, 2), 0.5, np.float32))


@pytest.mark.parametrize("suffix", FORMATS)
def test_tags_come_back(songs, suffix):
    kept = {"artist", "title"} if suffix == "aiff" else {"artist", "title", "genre"} if suffix == "wav" else TAGS.keys()
    assert tags.read(songs / f"a.{suffix}") == {name: TAGS[name] for name in TAGS if name in kept}


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_sound_is_equal_bytes(songs, suffix, tmp_path):
    io.write(tmp_path / f"a.{suffix}", chirp(), SR, tags=TAGS)
    assert (tmp_path / f"a.{suffix}").read_bytes() == (songs / f"a.{suffix}").read_bytes()


def test_sixteen_bits_survive_reading_and_writing_and_clip_at_full_scale(tmp_path):
    grid = (np.arange(-32768, 32768, dtype=np.int32) / 32768).astype(np.float32)
    io.write(tmp_path / "a.wav", grid, SR)
    assert np.array_equal(io.read(tmp_path / "a.wav")[:, 0], grid)
    io.write(tmp_path / "a.wav", np.array([-7, -1, 1, 7], np.float32), SR)
    assert np.array_equal(soundfile.read(tmp_path / "a.wav", dtype="int16")[0], [-32768, -32768, 32767, 32767])


def test_odd_rates_reach_encoders_that_know_only_some(tmp_path):
    for suffix in ("mp3", "opus", "m4a", "ogg"):
        io.write(tmp_path / f"a.{suffix}", np.zeros(9000, np.float32), 9000)
        assert abs(io.probe(tmp_path / f"a.{suffix}").length_sec - 1) < 0.3


def test_nothing_is_written_for_what_cannot_be(tmp_path):
    for audio, suffix in ((np.full(9, np.nan), "wav"), (np.zeros((9, 3)), "wav"), (np.zeros(9), "xyz")):
        with pytest.raises(DataError, match=f"a.{suffix}: cannot be written"):
            io.write(tmp_path / f"a.{suffix}", audio, SR)
    assert not list(tmp_path.iterdir())


def test_the_header_tells(songs):
    info = io.probe(songs / "a.flac")
    assert (info.sr_hz, info.channels, info.length_samples, info.format) == (SR, 2, len(chirp()), "flac")
    survey = io.survey(songs / "a.flac")
    assert survey.length_samples == len(chirp()) and 0.4 < survey.peak < 0.5
    with pytest.raises(io.AudioError, match="longer than 1 s"):
        io.survey(songs / "a.flac", max_sec=1.0)


def test_decoders_keep_their_remarks_to_themselves(tmp_path, capfd):
    """libmpg123 complains on stderr of the frames it decodes to settle after a seek; others are still heard."""
    rng = np.random.default_rng(0)
    sound = (
        rng.standard_normal(16000 * 6) * np.repeat(rng.random(60), 1600) * 0.3
    )  # loud and soft: a busy bit reservoir
    io.write(tmp_path / "a.mp3", sound, 16000)
    with soundfile.SoundFile(tmp_path / "a.mp3") as plain:
        for start in range(5000, 80000, 1111):
            plain.seek(start)
            plain.read(3000)
    assert "libmpg123" in capfd.readouterr().err, "it would complain"
    for start in range(5000, 80000, 1111):
        io.read(tmp_path / "a.mp3", start_samples=start, length_samples=3000)
    with decoders.mpg123_unheard():
        os.write(2, b"someone else\n")
    assert capfd.readouterr().err == "someone else\n"
