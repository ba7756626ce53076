"""Where batches come from: a folder of audio, or a store of codes; behind one face."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jukebox.autoencoder.hps import AutoencoderHps
from jukebox.codestore.store import CodeStore
from jukebox.data import admission, wds
from jukebox.data.audio_dataset import AudioDataset
from jukebox.data.bandwidth import measure_bandwidth
from jukebox.data.code_dataset import CodeDataset
from jukebox.data.code_loader import code_batches, code_evaluation_batches
from jukebox.data.dataset_config import PreEncodedDirs, WebDataset, read_config
from jukebox.data.hps import AudioHps, DataHps
from jukebox.data.joined_dataset import joined
from jukebox.data.loaders import batches, evaluation_batches
from jukebox.data.metadata import songs_of
from jukebox.data.tar_dataset import TarDataset
from jukebox.errors import UsageError
from jukebox.files import safe_component
from jukebox.hparams.resolve import Resolved
from jukebox.labels.song import SongMeta
from jukebox.parallel.comm import Comm
from jukebox.prior.hps import LabelHps, PriorHps
from jukebox.resources import cores
from jukebox.settings import COMMAND_LINE
from jukebox.training.hps import RunHps
from jukebox.training.tasks import Batch
from jukebox.vqvae.losses import Bandwidth

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Batches: without end from a position on, and the held-out part once, None where nothing is held out.

    A global batch is `global_batch` items over all ranks; an epoch has `per_epoch` of them. `fingerprint` changes with
    the data. `bandwidth`: normalisers of a VQ-VAE's losses. `songs`: all of them, where that is known before training.
    """

    train: Callable[[int], Iterator[Batch]]
    held_out: Callable[[], Iterator[Batch]] | None
    global_batch: int
    per_epoch: int
    fingerprint: str
    bandwidth: Bandwidth
    songs: Callable[[], Iterable[SongMeta]] = tuple


def open_source(hps: Resolved, comm: Comm, folder: Path) -> Source:
    """What the hyperparameters name; every rank calls it. `folder`: of the run, for reports.

    Raises DataError, StoreError, UsageError.
    """
    stored = hps.section(RunHps).prior and hps.section(DataHps).codes
    return _codes(hps, comm) if stored else _audio(hps, comm, folder)


def _codes(hps: Resolved, comm: Comm) -> Source:
    data, label, run, p = hps.section(DataHps), hps.section(LabelHps), hps.section(RunHps), hps.section(PriorHps)
    if data.aug_blend:
        raise UsageError("--aug_blend changes the sound, which stored codes cannot follow; leave it out with --codes.")
    store = CodeStore.open(Path(data.codes))

    def dataset(part: Literal["train", "test"]) -> CodeDataset:
        return CodeDataset(
            store, p.level, p.n_ctx, part=part, train_test_split=data.train_test_split, aug_shift=data.aug_shift,
            min_duration=label.min_duration if label.labelled else None,
            max_duration=label.max_duration if label.labelled else None, seed=run.seed,
        )  # fmt: skip

    train = dataset("train")
    held_out = None if data.train_test_split >= 1 else dataset("test")

    def batches_from(start: int) -> Iterator[Batch]:
        return code_batches(
            train, bs=data.bs, comm_rank=comm.rank, comm_size=comm.size, seed=run.seed, start_step=start
        )

    def held_out_batches() -> Iterator[Batch]:
        assert held_out is not None
        return code_evaluation_batches(held_out, bs=data.bs, comm_rank=comm.rank, comm_size=comm.size)

    global_batch = data.bs * comm.size
    return Source(
        batches_from, held_out_batches if held_out else None, global_batch, max(1, len(train) // global_batch),
        train.fingerprint(), Bandwidth(), lambda: (song for part in (train, held_out) if part for song in part.described()),
    )  # fmt: skip


def _audio(hps: Resolved, comm: Comm, folder: Path) -> Source:
    data, run = hps.section(DataHps), hps.section(RunHps)
    is_vqvae = not (run.prior or hps.section(AutoencoderHps).model_config)
    workers = data.bs if data.nworkers is None else data.nworkers
    shared = Path(run.local_logdir) / ".audio"  # what is known of the music, for all runs
    train, held_out = _songs(hps, comm, shared, folder / "bad_files.tsv", workers)

    def batches_from(start: int) -> Iterator[Batch]:
        return batches(
            train, bs=data.bs, comm_rank=comm.rank, comm_size=comm.size, seed=run.seed, start_step=start,
            workers=workers, on_bad_file=data.on_bad_file, max_bad=data.max_bad,
        )  # fmt: skip

    def held_out_batches() -> Iterator[Batch]:
        assert held_out is not None
        return evaluation_batches(
            held_out, bs=data.bs, comm_rank=comm.rank, comm_size=comm.size, workers=workers,
            on_bad_file=data.on_bad_file, max_bad=data.max_bad,
        )  # fmt: skip

    global_batch = data.bs * comm.size
    return Source(
        batches_from, held_out_batches if held_out else None, global_batch, max(1, len(train) // global_batch),
        train.fingerprint(), measure_bandwidth(train, comm, cache=shared) if is_vqvae else Bandwidth(),
        lambda: (file.song for part in (train, held_out) if part for file in part.files),
    )  # fmt: skip


def _songs(
    hps: Resolved, comm: Comm, known: Path, report: Path, workers: int
) -> tuple[AudioDataset, AudioDataset | None]:
    """The chunks to train on and those held out; what the scan finds is kept in the folder `known`."""
    data, audio, label, run = hps.section(DataHps), hps.section(AudioHps), hps.section(LabelHps), hps.section(RunHps)
    if audio.channels == 1 and data.aug_blend:
        raise UsageError("--aug_blend mixes left and right, but --channels=1 loads mono; leave one of them out.")
    named, val_named, aug_shift = _named(hps)
    scan: dict[str, Any] = {
        "on_bad_file": data.on_bad_file, "max_bad": data.max_bad, "max_audio_sec": data.max_audio_sec,
        "workers": min(workers, max(1, cores() // comm.local_size)), "report": report,
    }  # fmt: skip

    def opened(named: _Named) -> Callable[[dict[str, Any]], AudioDataset]:
        """What makes a data set of it by rules."""
        if isinstance(named, WebDataset):
            place = " ".join(entry.s3_path or entry.path for entry in named.datasets)
            admitted = wds.admit(named, comm, cache=known / f"{_place(place)}.json", **scan)
            return lambda rules: TarDataset(named, admitted, channels=audio.channels, **rules)
        indices = [admission.admit(path, known / f"{_place(path)}.json", comm, **scan) for path in named]
        songs = [songs_of(index, data.metadata) for index in indices]
        return lambda rules: joined([AudioDataset(*of, **rules) for of in zip(indices, songs, strict=True)])

    rules: dict[str, Any] = {
        "sr_hz": audio.sr, "sample_length": audio.sample_length, "split": data.split,
        "train_test_split": data.train_test_split, "min_duration": label.min_duration,
        "max_duration": label.max_duration, "seed": run.seed,
    }  # fmt: skip
    moving = {"aug_shift": aug_shift, "aug_blend": data.aug_blend}  # those held out are left as they are
    make = opened(named)
    if val_named:
        return make({**rules, **moving, "part": "all"}), opened(val_named)({**rules, "part": "all"})
    held_out = make({**rules, "part": "test"}) if data.train_test_split < 1 else None
    return make({**rules, **moving, "part": "train"}), held_out


_Named = tuple[str, ...] | WebDataset
"""Folders of songs, or tars of samples."""


def _named(hps: Resolved) -> tuple[_Named, _Named, bool]:
    """The audio to train on, that to measure on (nothing: a share of the first is), and whether chunks begin anywhere.

    Raises DataError, UsageError.
    """
    data, named = hps.section(DataHps), hps.section(AutoencoderHps)
    if not named.dataset_config:
        return (data.audio_files_dir,), (), data.aug_shift
    train, drawn = _configured(named.dataset_config)
    if hps.origins["aug_shift"] == COMMAND_LINE:
        drawn = data.aug_shift
    return train, _configured(named.val_dataset_config)[0] if named.val_dataset_config else (), drawn


def _configured(path: str) -> tuple[_Named, bool]:
    """What a data set's config names, and its random_crop."""
    config = read_config(path)
    if isinstance(config, PreEncodedDirs) or (isinstance(config, WebDataset) and config.pre_encoded):
        raise UsageError(f"--dataset-config={path}: audio to train on is of dataset_type audio_dir, wds or s3")
    if any(entry.custom_metadata_module for entry in config.datasets):
        log.warning("%s: custom_metadata_module has no part in training; labels come from --metadata", path)
    if isinstance(config, WebDataset):
        log.info("%s: every sample comes once in an epoch; resampled_shards and epoch_steps have no part", path)
        return config, config.random_crop
    return tuple(entry.path for entry in config.datasets), config.random_crop


def _place(folder: str) -> str:
    """A file name for what is known of a folder of music."""
    path = os.path.abspath(folder)
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{safe_component(os.path.basename(path))}-{digest}"
