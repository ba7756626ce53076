"""The main job, end to end, as anyone would type it: corpus, VQ-VAE, codes, priors, songs, figures, one page."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jukebox.errors import UserError
from jukebox.hparams.presets import share_folder
from jukebox.hparams.resolve import Resolved
from jukebox.walkthrough import figures, gallery
from jukebox.walkthrough.hps import WalkthroughHps

ENTRIES = Path(__file__).resolve().parent.parent
SONG_SEC = 6.0
SINGER_SEC = 5.76  # what the singer of data/singer was trained to sing
SONGS = 400
HELD_OUT = 6


@dataclass(frozen=True)
class Step:
    """One command, and what it is for."""

    why: str
    entry: str
    flags: tuple[str, ...]
    parallel: bool = False


def main(settings: Resolved) -> int:
    """Run every step, measure, write the page; raises UserError when a figure is worse than its bound."""
    hps = settings.section(WalkthroughHps)
    root = Path(hps.out)
    root.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for number, step in enumerate(steps(root, hps), 1):
        _run(step, hps.ranks, f"[{number}]", time.monotonic() - begun)
    found = figures.measure(root, HELD_OUT, SONG_SEC)
    page = gallery.write(root, found)
    print(figures.table(found), flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s in all. Open this page in a browser:\n  {page.resolve()}", flush=True)
    if missed := [figure.name for figure in found if not figure.good]:
        raise UserError(f"{len(missed)} figures are worse than their bounds: {'; '.join(missed)}")
    return 0


def steps(root: Path, hps: WalkthroughHps) -> list[Step]:
    """The commands, in order; every one of them stands in the README."""
    logs, corpus, store = root / "logs", root / "corpus", root / "codes"
    vqvae = f"--restore_vqvae={logs}/vqvae"
    models = f"--model={logs}/top,{logs}/up1,{logs}/up0"

    def training(name: str, preset: str, steps: int, *flags: str) -> tuple[str, ...]:
        count = max(2, round(steps * hps.effort))
        return (
            f"--hps={preset}", f"--name={name}", f"--local_logdir={logs}", f"--steps={count}", f"--seed={hps.seed}",
            f"--save_iters={count}", f"--eval_iters={count}", f"--lr_start_linear_decay={count // 2}",
            f"--lr_decay={count - count // 2 + 1}", *flags,
        )  # fmt: skip

    def prior(name: str, preset: str, level: int, steps: int) -> tuple[str, ...]:
        return training(name, preset, steps, "--prior", f"--level={level}", f"--codes={store}")

    def sing(name: str, *flags: str) -> tuple[str, ...]:
        return (models, f"--name={root / name}", f"--sample_length_in_seconds={SONG_SEC:g}", "--temp=0.6,0.9,1", *flags)

    asked = f"--requests={_shown(share_folder() / 'hparams/requests/corpus.toml')}"
    untrained = ("--hps=tiny_top", "--name=untrained", f"--local_logdir={logs}", "--steps=1", "--save_iters=1",
                 "--prior", "--level=2", f"--codes={store}")  # fmt: skip
    lengths = ("--min_sec=6.3", "--max_sec=7.5")
    return [
        Step("A small singer that was trained before sings words it never read.", "sample",
             ("--model=singer", f"--name={root / 'singing'}", f"--sample_length_in_seconds={SINGER_SEC:g}",
              f"--requests={_shown(share_folder() / 'hparams/requests/singing.toml')}"), parallel=True),
        Step("Songs of known truth to learn from, and others to measure with.", "make_corpus",
             (f"--out={corpus}", f"--songs={SONGS}", f"--seed={hps.seed}", *lengths)),
        Step("", "make_corpus",
             (f"--out={root / 'held_out'}", f"--songs={HELD_OUT}", f"--seed={hps.seed + 1000}", *lengths)),
        Step("A VQ-VAE learns to write them as codes of three levels.", "train",
             training("vqvae", "tiny_vqvae", 1250, f"--audio_files_dir={corpus}"), parallel=True),
        Step("All songs become codes on disk.", "pre_encode",
             (vqvae, f"--audio_files_dir={corpus}", f"--output-path={store}"), parallel=True),
        Step("A prior learns the codes of the top level, by artist and genre.", "train",
             prior("top", "tiny_top", 2, 600), parallel=True),
        Step("Two upsamplers learn the finer levels under it.", "train",
             prior("up1", "tiny_upsampler", 1, 250), parallel=True),
        Step("", "train", prior("up0", "tiny_upsampler", 0, 650), parallel=True),
        Step("A prior that learnt nothing, to compare with.", "train", untrained),
        Step("Sixteen songs from nothing, every artist in every genre.", "sample",
             sing("scratch", asked), parallel=True),
        Step("Their first 3 s, continued another way.", "sample",
             sing("continued", "--mode=continue", f"--codes_file={root / 'scratch/level_0/data.pth.tar'}",
                  "--prompt_length_in_seconds=3", "--seed=1", asked), parallel=True),
        Step("Their top codes, upsampled another way.", "sample",
             sing("upsampled", "--mode=upsample", f"--codes_file={root / 'scratch/level_2/data.pth.tar'}",
                  "--seed=2", asked), parallel=True),
        Step("Recordings never heard before, continued.", "sample",
             sing("primed", "--mode=primed", f"--audio_file={_prompts(root)}", "--prompt_length_in_seconds=3",
                  "--n_samples=4"), parallel=True),
        Step("What the untrained prior sings.", "sample",
             (f"--model={logs}/untrained", f"--name={root / 'untrained'}",
              f"--sample_length_in_seconds={SONG_SEC:g}", "--n_samples=8"), parallel=True),
    ]  # fmt: skip


def _prompts(root: Path) -> str:
    names = ("song_0.wav", "song_1.flac", "song_3.ogg", "song_4.m4a")
    return ",".join(str(root / "held_out" / name) for name in names)


def _shown(path: Path) -> Path:
    """Relative where that is shorter to read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _run(step: Step, ranks: int, number: str, elapsed_sec: float) -> None:
    command = ["python", f"jukebox/{step.entry}.py", *step.flags]
    launcher = ["mpiexec", "-n", str(ranks)] if step.parallel and ranks > 1 else []
    if step.why:
        print(f"\n{step.why}", flush=True)
    print(f"{number} ({elapsed_sec:.0f} s) $ {shlex.join(launcher + command)}", flush=True)
    beside = Path(sys.executable).parent / "mpiexec"
    if launcher and beside.exists():
        launcher[0] = str(beside)
    real = [*launcher, sys.executable, str(ENTRIES / f"{step.entry}.py"), *step.flags]
    ended = subprocess.run(real, env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False)
    if ended.returncode:
        raise UserError(f"This step failed with exit code {ended.returncode}; its own message stands above.")
