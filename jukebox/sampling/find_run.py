"""Finds the attention head of a prior that follows the lyrics: `python jukebox/align.py --find --model=...`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jukebox import runlog
from jukebox.audio import tags
from jukebox.audio.io import AudioError
from jukebox.codestore.store import CodeStore
from jukebox.data import admission
from jukebox.data.admission import Candidate, Entry
from jukebox.data.code_dataset import CodeDataset, open_codes
from jukebox.data.metadata import songs_of
from jukebox.errors import DataError, UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Labeller
from jukebox.models import found_head, model_set
from jukebox.models.autoencoder_codec import load_codec
from jukebox.models.codec import Codec
from jukebox.models.model_set import ModelSet
from jukebox.nn.patterns import NAMES, layer_kind
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.prior.model import Prior
from jukebox.sampling import features, prepare
from jukebox.sampling.head_score import AS_GOOD, LEAST, Score, score
from jukebox.sampling.hps import AlignHps, FindHps, SampleHps, SongHps
from jukebox.sampling.prepare import Level

log = logging.getLogger(__name__)

Figures = dict[tuple[int, int], Score]
"""By layer and head."""

SHOWN = 5  # heads in the table


@dataclass(frozen=True)
class Heard:
    """A window of a song: its codes `[N]`, at most n_ctx, and where it lies in the song, in samples."""

    codes: NDArray[np.int64]
    song: SongMeta
    offset_samples: int
    total_samples: int


def main(hps: Resolved) -> int:
    """Find the head, write it down, and say so; the exit code. Raises UserError where that cannot be done."""
    start, asked = hps.section(LaunchHps), hps.section(AlignHps)
    models = model_set.find(asked.model)
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    find(models, hps.section(FindHps), asked.ids_dir, comm)
    return 0


def find(models: ModelSet, asked: FindHps, ids_dir: str, comm: Comm) -> tuple[int, int] | None:
    """The layer and head that follow the lyrics best, written into the model set; None where no head does."""
    codec, vqvae_hps = load_codec(models.vqvae, comm.device)
    known = _reader(models, ids_dir, codec, vqvae_hps)
    level, labeller = known.plan.level, known.labeller
    assert labeller is not None, "lyrics need labels"
    heard = _windows(asked, known, labeller, codec, comm)
    part = models.parts[level]
    prior, _ = model_set.load_prior(part, vqvae_hps, level, comm.device)
    figures = scores(prior, labeller, heard, asked.seed, comm)
    best = chosen(figures)
    log.info("%s", _table(prior, figures, len(heard)))
    if figures[best].score < LEAST:
        log.info("none: no head of %s follows the lyrics (%g is needed); nothing was written.", part.checkpoint, LEAST)
        return None
    values = dict(zip(found_head.KEYS, best, strict=True)) | {found_head.SCORE: round(figures[best].score, 3)}
    place = comm.run_first(lambda: str(model_set.remember_head(models, level, values)))
    log.info("layer %d, head %d: written to %s", *best, place)
    return best


def scores(prior: Prior, labeller: Labeller, heard: Sequence[Heard], seed: int, comm: Comm) -> Figures:
    """The figures of every head that can see lyrics, means over the windows; every rank hears its share.

    Raises DataError when no window has enough lyrics.
    """
    layers = [layer for layer in range(prior.shape.transformer.depth) if prior.shape.reads_lyrics(layer)]
    heads = prior.shape.transformer.heads
    found = []
    with runlog.Progress(len(heard), "song", "listening") as bar:
        for number in range(comm.rank, len(heard), comm.size):
            rows = _score(prior, labeller, heard[number], set(layers), np.random.default_rng([seed, number]))
            found += [rows] if rows is not None else []
            bar.update()
    all_rows = [rows for part in comm.gather_objects(found) for rows in part]
    if not all_rows:
        raise DataError(
            "None of the songs has enough lyrics in a window to align; choose others with --codes or --seed."
        )
    mean = np.mean(all_rows, axis=0).reshape(len(layers), heads, -1)
    return {(layer, head): Score(*map(float, mean[i, head])) for i, layer in enumerate(layers) for head in range(heads)}


def chosen(figures: Figures) -> tuple[int, int]:
    """The first of the heads that are about as good as the best: which of them is that, chance decides with the songs."""
    best = max(score.score for score in figures.values())
    return min(place for place, score in figures.items() if score.score >= AS_GOOD * best)


def _score(
    prior: Prior, labeller: Labeller, heard: Heard, layers: set[int], rng: np.random.Generator
) -> NDArray[np.float32] | None:
    codes = torch.zeros(1, prior.n_ctx, dtype=torch.int64)
    codes[0, : len(heard.codes)] = torch.from_numpy(heard.codes)
    label = labeller.full(heard.song, heard.total_samples, 0)
    y, characters = labeller.at(label, heard.offset_samples, prior.sample_length)
    device = prior.net.pos.device
    found = prior.lyric_attention(layers, codes.to(device), torch.from_numpy(y)[None].to(device))
    first = 1 + characters.count(-1)  # column c carries character c - 1; padding lies in front
    seen = [found[layer][0, :, : len(heard.codes), first:].float().cpu().numpy() for layer in sorted(layers)]
    sung = len(label.tokens) * len(heard.codes) * prior.hop / heard.total_samples
    return score(np.concatenate(seen), sung, rng)


def _table(prior: Prior, figures: Figures, songs: int) -> str:
    rows = [f"{len(figures)} heads that see lyrics, {songs} songs; the best of them:",
            "layer  head  kind              score  on path  linear  reach  lyrics"]  # fmt: skip
    order = prior.shape.transformer.attn_order
    for (layer, head), f in sorted(figures.items(), key=lambda item: -item[1].score)[:SHOWN]:
        rows.append(
            f"{layer:5d} {head:5d}  {NAMES[layer_kind(order, layer)]:16s} {f.score:6.3f} {f.on_path:8.3f} {f.linear:7.3f}"
            f" {f.reach:6.3f} {f.lyrics:7.3f}"
        )
    return "\n".join(rows)


# ------------------------------------------------------------------------------------------------------------- the songs


def _reader(models: ModelSet, ids_dir: str, codec: Codec, vqvae_hps: Resolved) -> Level:
    """The highest level whose prior reads lyrics. Raises UsageError when there is none."""
    sample = SampleHps(hop_fraction=(1.0,) * codec.geometry.levels)
    known = prepare.levels_of(sample, SongHps(ids_dir=ids_dir), models, vqvae_hps, codec.geometry)
    reads = [level for level in known.values() if level.shape.n_tokens and level.shape.conditioner is None]
    if not reads:
        raise UsageError(f"--model={models.name}: its top prior does not read lyrics; there is nothing to align.")
    shape = reads[-1].shape
    if not any(shape.reads_lyrics(layer) for layer in range(shape.transformer.depth)):
        raise UsageError(
            f"--model={models.name}: no layer of attn_order {shape.transformer.attn_order} lets every code see all lyrics."
        )
    return reads[-1]


def _windows(asked: FindHps, known: Level, labeller: Labeller, codec: Codec, comm: Comm) -> list[Heard]:
    """Windows of different songs with lyrics, the same on every rank. Raises UsageError, DataError."""
    trained = known.hps.values
    if asked.audio_files_dir and asked.codes:
        raise UsageError("--codes and --audio_files_dir both name songs; give one of them.")
    store = asked.codes or ("" if asked.audio_files_dir else str(trained["codes"]))
    folder = asked.audio_files_dir or ("" if store else str(trained["audio_files_dir"]))
    rng = np.random.default_rng(asked.seed)
    if store:
        found = _of_store(store, known, labeller, codec, rng)
    elif folder:
        found = _of_folder(folder, asked.metadata or str(trained["metadata"]), known, labeller, codec, comm, rng)
    else:
        raise UsageError(
            "--codes or --audio_files_dir is missing: songs with lyrics to run through the prior, which does not say what "
            "it was trained on."
        )
    heard = [window for window, _ in zip(found, range(asked.songs), strict=False)]
    if not heard:
        raise DataError(f"{store or folder}: none of its songs has lyrics.")
    if len(heard) < asked.songs:
        log.info("%s: %d songs have lyrics", store or folder, len(heard))
    return heard


def _sings(song: SongMeta, labeller: Labeller) -> bool:
    return bool(labeller.alphabet.clean(song.lyrics)[0].strip())


def _of_store(store: str, known: Level, labeller: Labeller, codec: Codec, rng: np.random.Generator) -> Iterator[Heard]:
    opened = CodeStore.open(open_codes(store).root, expect_fingerprint=codec.fingerprint)
    label = known.shape.labels
    assert label is not None
    dataset = CodeDataset(
        opened, known.plan.level, known.shape.n_ctx, part="all", train_test_split=1.0, aug_shift=False,
        min_duration=label.min_duration, max_duration=label.max_duration, seed=0,
    )  # fmt: skip
    seen: set[str] = set()
    for index in rng.permutation(len(dataset)).tolist():
        item = dataset.item(index)
        if item.file not in seen and _sings(item.song, labeller):
            seen.add(item.file)
            yield Heard(item.codes, item.song, item.offset_samples, item.total_samples)


def _of_folder(
    folder: str, metadata: str, known: Level, labeller: Labeller, codec: Codec, comm: Comm, rng: np.random.Generator
) -> Iterator[Heard]:
    """Only files that are chosen are decoded; every rank encodes them all, for they are few."""
    sr_hz, hop, n_ctx = codec.geometry.sr_hz, known.plan.samples_per_code, known.shape.n_ctx
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(comm.run_first(lambda: scratch)) / "index.json"
        index = admission.admit(folder, cache, comm, max_bad=1.0, workers=0, examine=_glance)
        comm.barrier()
    songs = songs_of(index, metadata)
    for number in rng.permutation(len(index.usable)).tolist():
        if not _sings(songs[number], labeller):
            continue
        try:
            audio = features.mono(Path(folder) / index.usable[number].file, sr_hz)
            song = features.encoded(audio, codec, known.shape, songs[number])
        except DataError as error:
            log.warning("%s: left out", error)
            continue
        codes = song.codes[known.plan.level]
        start = int(rng.integers(max(1, len(codes) - n_ctx + 1)))
        yield Heard(codes[start : start + n_ctx], songs[number], start * hop, song.total_samples)


def _glance(candidate: Candidate) -> Entry:
    """A file's tags, without decoding its sound."""
    found = Entry(candidate.file, candidate.size_bytes, candidate.mtime_ns)
    try:
        return replace(found, tags=tags.read(candidate.path))
    except AudioError as error:
        return replace(found, reason=error.reason)
