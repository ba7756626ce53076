"""Where batches come from: a folder of audio, or a store of codes; behind one face."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jukebox.autoencoder.hps import AutoencoderHps
from jukebox.codestore.store import CodeStore
from jukebox.data import admission
from jukebox.data.admission import Index
from jukebox.data.audio_dataset import AudioDataset
from jukebox.data.bandwidth import measure_bandwidth
from jukebox.data.code_dataset import CodeDataset
from jukebox.data.code_loader import code_batches, code_evaluation_batches
from jukebox.data.dataset_config import AudioDir, read_config
from jukebox.data.hps import AudioHps, DataHps
from jukebox.data.joined_dataset import JoinedDataset
from jukebox.data.loaders import batches, evaluation_batches
from jukebox.data.metadata import songs_of
from jukebox.errors import UsageError
from jukebox.files import safe_component
from jukebox.hparams.resolve import Resolved
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
    the data. `bandwidth`: normalisers of a VQ-VAE's losses.
    """

    train: Callable[[int], Iterator[Batch]]
    held_out: Callable[[], Iterator[Batch]] | None
    global_batch: int
    per_epoch: int
    fingerprint: str
    bandwidth: Bandwidth


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
        train.fingerprint(), Bandwidth(),
    )  # fmt: skip


def _audio(hps: Resolved, comm: Comm, folder: Path) -> Source:
    data, audio, label, run = hps.section(DataHps), hps.section(AudioHps), hps.section(LabelHps), hps.section(RunHps)
    if audio.channels == 1 and data.aug_blend:
        raise UsageError("--aug_blend mixes left and right, but --channels=1 loads mono; leave one of them out.")
    is_vqvae = not (run.prior or hps.section(AutoencoderHps).model_config)
    workers = data.bs if data.nworkers is None else data.nworkers
    shared = Path(run.local_logdir) / ".audio"  # what is known of the music, for all runs
    folders, val_folders, aug_shift = _folders(hps)

    def admitted(path: str) -> Index:
        return admission.admit(
            path, shared / f"{_place(path)}.json", comm, on_bad_file=data.on_bad_file, max_bad=data.max_bad,
            max_audio_sec=data.max_audio_sec, workers=min(workers, max(1, cores() // comm.local_size)),
            report=folder / "bad_files.tsv",
        )  # fmt: skip

    indices = {path: admitted(path) for path in (*folders, *val_folders)}

    def dataset(part: Literal["train", "test", "all"], paths: Sequence[str] = folders) -> AudioDataset:
        parts = [
            AudioDataset(
                indices[path], songs_of(indices[path], data.metadata), sr_hz=audio.sr, sample_length=audio.sample_length,
                part=part, split=data.split, train_test_split=data.train_test_split,
                aug_shift=aug_shift and paths is folders, aug_blend=data.aug_blend and paths is folders,
                min_duration=label.min_duration, max_duration=label.max_duration, seed=run.seed,
            )
            for path in paths
        ]  # fmt: skip
        return parts[0] if len(parts) == 1 else JoinedDataset(parts)

    train = dataset("all" if val_folders else "train")
    held_out: AudioDataset | None = None
    if val_folders:
        held_out = dataset("all", val_folders)
    elif data.train_test_split < 1:
        held_out = dataset("test")

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
    )  # fmt: skip


def _folders(hps: Resolved) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """The folders of audio to train on, those to measure on (none: a share of the first is), and whether chunks begin
    anywhere. Raises DataError, UsageError."""
    data, named = hps.section(DataHps), hps.section(AutoencoderHps)
    if not named.dataset_config:
        return (data.audio_files_dir,), (), data.aug_shift
    train, drawn = _configured(named.dataset_config)
    if hps.origins["aug_shift"] == COMMAND_LINE:
        drawn = data.aug_shift
    return train, _configured(named.val_dataset_config)[0] if named.val_dataset_config else (), drawn


def _configured(path: str) -> tuple[tuple[str, ...], bool]:
    """The folders of a data set's config, and its random_crop."""
    config = read_config(path)
    if not isinstance(config, AudioDir):
        raise UsageError(f"--dataset-config={path}: audio to train on is of dataset_type audio_dir")
    if any(entry.custom_metadata_module for entry in config.datasets):
        log.warning("%s: custom_metadata_module has no part in training; labels come from --metadata", path)
    return tuple(entry.path for entry in config.datasets), config.random_crop


def _place(folder: str) -> str:
    """A file name for what is known of a folder of music."""
    path = os.path.abspath(folder)
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{safe_component(os.path.basename(path))}-{digest}"
