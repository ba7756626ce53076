"""Encoders: 16 bit PCM and Vorbis by libsndfile, mp3, AAC and Opus by FFmpeg, with tags."""

import io
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile

from jukebox.audio import xiph
from jukebox.audio.convert import resample
from jukebox.audio.id3 import id3_tag
from jukebox.audio.kinds import BLOCK, Audio

# suffix: FFmpeg encoder, muxer, bits per second and channel, rates the encoder takes (empty: any)
_ENCODERS = {
    ".mp3": ("libmp3lame", "mp3", 112_000, (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
    ".m4a": (
        "aac",
        "ipod",
        96_000,
        (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
    ),
    ".opus": ("libopus", "opus", 80_000, (48000,)),
}
_PCM = {".wav": "WAV", ".flac": "FLAC", ".aiff": "AIFF"}

SUFFIXES = frozenset([*_PCM, *_ENCODERS, ".ogg"])


def encoded(samples: Audio, sr_hz: int, suffix: str, tags: Mapping[str, str]) -> bytes:
    """The bytes of a file: samples [T, 1 or 2] within [-1, 1], a suffix of `SUFFIXES`, tags with keys in lower case."""
    if suffix in _PCM:
        data = _pcm_file(samples, sr_hz, _PCM[suffix], tags)
        return xiph.tagged_flac(data, tags) if suffix == ".flac" else data
    if suffix == ".ogg":
        return xiph.tagged_vorbis(_vorbis_file(samples, sr_hz), tags)
    return _by_ffmpeg(samples, sr_hz, suffix, tags)


def to_pcm16(audio: Audio) -> npt.NDArray[np.int16]:
    """Full scale 1 to 16 bits: round(x * 32768), halves to even, limited to what fits."""
    pcm: npt.NDArray[np.int16] = np.clip(np.rint(audio * np.float32(32768)), -32768, 32767).astype(np.int16)
    return pcm


def _pcm_file(samples: Audio, sr_hz: int, container: str, tags: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sr_hz, samples.shape[1], "PCM_16", format=container) as sound:
        for name in ("artist", "title", "genre") if container != "FLAC" else ():
            if name in tags:
                setattr(sound, name, tags[name])
        sound.write(to_pcm16(samples))
    return buffer.getvalue()


def _vorbis_file(samples: Audio, sr_hz: int) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sr_hz, samples.shape[1], "VORBIS", format="OGG") as sound:
        for begin in range(0, len(samples), BLOCK):  # libsndfile 1.2 overflows its stack on long single writes
            sound.write(samples[begin : begin + BLOCK])
    return buffer.getvalue()


def _by_ffmpeg(samples: Audio, sr_hz: int, suffix: str, tags: Mapping[str, str]) -> bytes:
    codec, muxer, bit_rate, rates = _ENCODERS[suffix]
    rate = next((known for known in rates if known >= sr_hz), rates[-1])
    samples, channels = resample(samples, sr_hz, rate), samples.shape[1]
    layout = "mono" if channels == 1 else "stereo"
    options = {"fflags": "+bitexact"} | ({"id3v2_version": "0"} if suffix == ".mp3" else {})
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=muxer, options=options) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = bit_rate * channels if rate > 16000 else bit_rate * channels // 2
        if suffix != ".mp3":
            (stream if suffix == ".opus" else container).metadata.update(tags)
        for begin in range(0, len(samples), BLOCK):
            planes = np.ascontiguousarray(samples[begin : begin + BLOCK].T)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return (id3_tag(tags) if suffix == ".mp3" else b"") + buffer.getvalue()
