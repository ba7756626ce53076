"""What the demo is measured by: reconstruction, priors, samples, each against a bound and beside controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jukebox import files
from jukebox.audio import io
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.store import CodeStore
from jukebox.corpus import listen, score
from jukebox.hparams.resolve import Resolved
from jukebox.labels.song import SongMeta
from jukebox.models import build, model_set
from jukebox.models.codec import VQVAECodec
from jukebox.vqvae.model import VQVAE
from jukebox.walkthrough import singing

Audio = NDArray[np.float32]
RHYTHM = 0.60
MISHEARD = 0.5  # of the characters that the singer of data/singer is asked for: 0.35; lyrics of other songs: 0.86
RUNS = ("scratch", "continued", "upsampled", "primed")


@dataclass(frozen=True)
class Figure:
    """A measured number and the bound it must keep; `most`: must be at most the bound, else at least."""

    name: str
    value: float
    bound: float
    unit: str = ""
    most: bool = True

    @property
    def good(self) -> bool:
        """Whether the bound is kept."""
        return self.value <= self.bound if self.most else self.value >= self.bound


def measure(root: Path, held_out: int, song_sec: float) -> list[Figure]:
    """All figures of a finished demo of songs of `song_sec` s; also written to `figures.json`."""
    codec, hps = model_set.load_vqvae(model_set.Part(str(root / "logs/vqvae")))
    found = [
        *_reconstruction(root, codec, hps, held_out), *_priors(root), *_samples(root, codec.geometry, song_sec),
        *_rhythm(root), *_labels(root), *_singing(root),
    ]  # fmt: skip
    files.publish_json(root / "figures.json", [asdict(figure) | {"good": figure.good} for figure in found], indent=1)
    return found


def table(found: Sequence[Figure]) -> str:
    """One line per figure."""
    lines = [""]
    for figure in found:
        sign = "<=" if figure.most else ">="
        mark = "ok " if figure.good else "BAD"
        lines.append(f"{mark} {figure.name:62s} {figure.value:8.2f} {figure.unit:4s} ({sign} {figure.bound:g})")
    return "\n".join(lines)


def _reconstruction(root: Path, codec: VQVAECodec, hps: Resolved, count: int) -> list[Figure]:
    """Spectral convergence of songs never heard, decoded from each level, beside the same net untrained."""
    rate = codec.geometry.sr_hz
    songs = [io.read(path, sr_hz=rate, channels=1)[:, 0] for path in io.find_audio(root / "held_out")[:count]]
    torch.manual_seed(0)
    untrained = VQVAECodec(_started(build.build_vqvae(hps), songs[0]), rate)
    found = []
    for level in reversed(range(codec.vqvae.levels)):
        trained = [_through(codec, song, level) for song in songs]
        before = [_through(untrained, song, level) for song in songs]
        folder = root / "reconstructions" / f"level_{level}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, (_, audio) in enumerate(trained):
            io.write(folder / f"song_{i}.wav", audio, rate)
        value = float(np.mean([decibels for decibels, _ in trained]))
        control = float(np.mean([decibels for decibels, _ in before]))
        name = f"level {level}: spectral convergence of held-out songs"
        found.append(Figure(f"{name}, less the untrained net's", value - control, -6.0, "dB"))
        if level == 0:
            found.append(Figure(name, value, -8.0, "dB"))
    originals = root / "reconstructions" / "originals"
    originals.mkdir(exist_ok=True)
    for i, song in enumerate(songs):
        io.write(originals / f"song_{i}.wav", song, rate)
    return found


def _started(net: VQVAE, song: Audio) -> VQVAE:
    """Codebooks as training starts them: rows of a song."""
    with torch.no_grad():
        x = torch.from_numpy(song[: len(song) // net.hops[-1] * net.hops[-1]])[None, :, None]
        for level in range(net.levels):
            rows = net.embed(x, level)[0].t()
            net.codebook(level).start(rows[torch.arange(net.bins) % len(rows)])
    return net


def _through(codec: VQVAECodec, song: Audio, level: int) -> tuple[float, Audio]:
    made = codec.decode(codec.encode(song, [level])[level], level)[: len(song)]
    return score.spectral_convergence_db(song, made), made


def _priors(root: Path) -> list[Figure]:
    """Bits per held-out code against the entropy of the codes' own histogram."""
    found = []
    for name, level in (("top", 2), ("up1", 1), ("up0", 0)):
        lines = [json.loads(line) for line in (root / "logs" / name / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if "test_bpd" in line][-1]
        share = 100 * (1 - last["test_bpd"] / last["test_unigram"])
        what = f"level {level}: prior below the unigram entropy ({last['test_unigram']:.2f} bits)"
        found.append(Figure(what, share, 15.0, "%", most=False))
    return found


def _samples(root: Path, geometry: Geometry, song_sec: float) -> list[Figure]:
    """Length to the sample, neither silent nor clipped, in every mode and at every level."""
    asked = int(song_sec * geometry.sr_hz) // geometry.top_hop * geometry.top_hop
    wrong = silent = clipped = count = 0
    for name in RUNS:
        for path in sorted((root / name).glob("level_*/item_*.wav")):
            audio = io.read(path)
            levels = score.levels(audio)
            count += 1
            wrong += len(audio) != asked
            silent += levels.silent
            clipped += levels.clipped_share > 0.001
    return [
        Figure(f"samples of wrong length, of {count}", wrong, 0),
        Figure("samples that are silent", silent, 0),
        Figure("samples that are clipped", clipped, 0),
    ]


def _rhythm(root: Path) -> list[Figure]:
    """Share of note onsets within 50 ms of the rhythm grid, corrected for the search; controls must fail."""

    def pooled(name: str, level: int) -> float:
        sounds = [io.read(path)[:, 0] for path in sorted((root / name / f"level_{level}").glob("item_*.wav"))]
        rate = io.probe(next((root / name / f"level_{level}").glob("item_*.wav"))).sr_hz
        return _share(sounds, rate)

    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(48000).astype(np.float32) * 0.1 for _ in range(4)]
    found = [
        Figure(f"{name}: onsets on the rhythm grid", 100 * pooled(name, 0), 100 * RHYTHM, "%", most=False)
        for name in RUNS
    ]
    just_below = 100 * RHYTHM - 0.01
    found.append(
        Figure(
            "untrained prior: onsets on the rhythm grid (must miss it)", 100 * pooled("untrained", 2), just_below, "%"
        )
    )
    found.append(
        Figure("white noise: onsets on the rhythm grid (must miss it)", 100 * _share(noise, 8000), just_below, "%")
    )
    return found


def _share(sounds: Sequence[Audio], rate: int) -> float:
    scores: list[score.GridScore] = [score.onsets_on_grid(audio, rate) for audio in sounds]
    measure_all: Callable[[Sequence[score.GridScore]], score.GridScore] = score.pool
    return measure_all(scores).share


def _labels(root: Path) -> list[Figure]:
    """Whether songs from nothing are sung by the artist and in the genre asked for; shuffled requests beside it."""
    store = CodeStore.open(root / "scratch" / "codes")
    asked = [SongMeta.from_json(store.item(i).meta["song"]) for i in range(len(store))]
    heard = []
    for i in range(len(store)):
        path = root / "scratch" / "level_0" / f"item_{i}.wav"
        heard.append(listen.listen(io.read(path)[:, 0], io.probe(path).sr_hz))
    found = []
    for what, bound in (("artist", 60.0), ("genre", 50.0)):
        wanted = [str(getattr(song, what)).lower() for song in asked]
        got = [str(getattr(song, what) or "").lower() for song in heard]
        right = 100 * float(np.mean([a == b for a, b in zip(wanted, got, strict=True)]))
        turns = [wanted[k:] + wanted[:k] for k in range(1, len(wanted))]
        shuffled = 100 * float(np.mean([[a == b for a, b in zip(turn, got, strict=True)] for turn in turns]))
        name = f"songs from nothing sung in the {what} asked for (shuffled: {shuffled:.0f} %)"
        found.append(Figure(name, right, bound, "%", most=False))
    return found


def _singing(root: Path) -> list[Figure]:
    """Whether the singer that comes along sings the characters asked for, and no others."""
    run = root / "singing"
    found = singing.compare(singing.asked_of(run), singing.heard(run, 0))
    return [
        Figure("the singer: characters of its lyrics misheard", 100 * found.error_rate, 100 * MISHEARD, "%"),
        Figure("the singer: against lyrics of other songs (must miss)", 100 * found.control, 75, "%", most=False),
    ]
