"""Readers that misbehave on the song c.wav, in a module that worker processes import quickly."""

import os
import signal
import time

from jukebox.audio import io
from jukebox.data.admission import examine
from jukebox.data.audio_dataset import read_chunk


def read_but_c(request):
    """As if one song were damaged."""
    if request.path.endswith("c.wav"):
        raise io.AudioError(request.path, "damaged")
    return read_chunk(request)


def read_but_c_kills(request):
    """As if a decoder crashed on one song."""
    if request.path.endswith("c.wav"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return read_chunk(request)


def read_but_c_hangs(request):
    if request.path.endswith("c.wav"):
        time.sleep(60)
    return read_chunk(request)


def read_with_a_mistake(request):
    return request.no_such_field


def read_nothing(request):
    raise io.AudioError(request.path, "damaged")


def examine_but_c_kills(candidate):
    if candidate.file == "c.wav":
        os.kill(os.getpid(), signal.SIGSEGV)
    return examine(candidate)


def examine_but_c_hangs(candidate):
    if candidate.file == "c.wav":
        time.sleep(60)
    return examine(candidate)
