"""The commands that a page offers: to sing on from a moment of a take, and to keep some takes."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from jukebox.hparams.flags import spell
from jukebox.hparams.resolve import Resolved
from jukebox.sampling.hps import DrawHps, SampleHps

_OF_THIS_RUN = (  # a branch takes these from the codes it goes on from, or says them itself
    "mode", "codes_file", "audio_file", "prompt_length_in_seconds", "name", "n_samples", "seed",
    "requests", "artist", "genre", "lyrics", "lyric_times", "levels", "items", "from", "to", "plan", "embed",
)  # fmt: skip


def sing_on(hps: Resolved) -> str:
    """Sings on from the first {seconds} of {codes} as this run was sung, with another seed, into a folder beside it."""
    wanted = hps.section(SampleHps)
    kept = {name: value for name, value in hps.values.items() if hps.given(name) and name not in _OF_THIS_RUN}
    folder = PurePath(wanted.name)
    said = {"name": str(folder.with_name(f"{folder.name}-on")), **kept, "mode": "continue"}
    flags = [shlex.quote(f"--{name}={spell(value)}") for name, value in said.items()]
    flags += ["--codes_file={codes}", "--prompt_length_in_seconds={seconds}", f"--seed={hps.section(DrawHps).seed + 1}"]
    return " ".join(["python jukebox/sample.py", *flags])


def keep(hps: Resolved) -> str:
    """Puts {codes}, one or several, into a store of their own, beside the folder of this run."""
    folder = PurePath(hps.section(SampleHps).name)
    return f"python jukebox/codes.py keep {{codes}} --out={shlex.quote(str(folder.with_name(f'{folder.name}-best')))}"
