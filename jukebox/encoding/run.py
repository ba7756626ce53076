"""From a folder of audio to a store of codes: one writer per shard, whole songs, resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jukebox import runlog
from jukebox.audio import io
from jukebox.codestore.layout import ItemFacts, Source
from jukebox.codestore.store import CodeStore
from jukebox.codestore.writer import StoreWriter
from jukebox.data import admission
from jukebox.data.metadata import songs_of
from jukebox.encoding.hps import EncodeHps
from jukebox.errors import DataError, UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.models import model_set
from jukebox.models.codec import Codec
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.vqvae.hps import VQVAEHps

log = logging.getLogger(__name__)


def main(hps: Resolved) -> int:
    """Encode what the settings of `pre_encode` ask for; the exit code."""
    encode, restore = hps.section(EncodeHps), hps.section(VQVAEHps).restore_vqvae
    missing = {
        "--audio_files_dir": encode.audio_files_dir, "--output-path": encode.output_path, "--restore_vqvae": restore,
    }  # fmt: skip
    if not all(missing.values()):
        raise UsageError(
            f"{' and '.join(k for k, v in missing.items() if not v)} missing. The smallest full command is\n"
            "  python jukebox/pre_encode.py --restore_vqvae=RUN --audio_files_dir=DIR --output-path=STORE"
        )
    start = hps.section(LaunchHps)
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm)
    codec, model_hps = model_set.load_vqvae(model_set.Part(restore), comm.device)
    _check_asked(hps, model_hps, restore)
    details = {"model": {"checkpoint": str(Path(restore).resolve()), "hps": dict(model_hps.values)}}
    encode_folder(encode, codec, details, comm)
    return 0


def _check_asked(hps: Resolved, model: Resolved, restore: str) -> None:
    theirs = model_set.vqvae_values(model)
    asked = {name: hps.values[name] for name in theirs if name in hps.values and hps.given(name)}
    differing = model_set.differing({n: theirs[n] for n in asked}, asked)
    if differing:
        raise UsageError(f"--hps describes another VQ-VAE than {restore}:\n{differing}")


def encode_folder(encode: EncodeHps, codec: Codec, details: Mapping[str, Any], comm: Comm) -> CodeStore:
    """Encode every second of every file of a folder once, on all levels; the finished store.

    Every rank calls it. Raises DataError, StoreError, OutOfSpace as the parts do.
    """
    root = Path(encode.output_path)
    index = admission.admit(
        encode.audio_files_dir, root.parent / f".{root.name}.audio_index.json", comm, on_bad_file=encode.on_bad_file,
        max_bad=encode.max_bad, max_audio_sec=encode.max_audio_sec,
    )  # fmt: skip
    songs = songs_of(index, encode.metadata)
    sources = [
        Source(entry.file, str(index.root / entry.file), entry.size_bytes, entry.digest) for entry in index.usable
    ]  # fmt: skip

    def begin() -> StoreWriter:
        return StoreWriter.create_or_resume(
            root, codec.geometry, codec.fingerprint, sources, shards=encode.shards or None, default_shards=comm.size
        )

    writer = begin() if comm.is_first else None
    comm.barrier()
    with writer or StoreWriter.attach(root) as writer:
        mine = writer.pending(comm.rank, comm.size)
        with runlog.Progress(len(mine), "song", "encode") as bar:
            for item in mine:
                launch.set_phase(f"encoding {sources[item].relpath}")
                _encode_one(writer, item, codec, songs[item].to_json())
                bar.update()
        comm.barrier()
        if comm.is_first:
            writer.finish(details)
        comm.barrier()
    store = CodeStore.open(root)
    seconds = int(store.lengths.sum()) / codec.geometry.sr_hz
    log.info("%d songs, %.1f s of audio, %d levels in %s", len(store), seconds, len(store.levels), root)
    return store


def _encode_one(writer: StoreWriter, item: int, codec: Codec, song: Mapping[str, Any]) -> None:
    begun = time.perf_counter()
    source = writer.sources[item]
    audio = io.read(source.path, sr_hz=codec.geometry.sr_hz, channels=2)
    loaded = time.perf_counter() - begun
    if not len(audio):
        raise DataError(f"{source.path}: nothing left at {codec.geometry.sr_hz} Hz")
    codes = codec.encode(audio.mean(axis=1))
    facts = ItemFacts(len(audio), len(audio), audio_channels=2, load_time_sec=loaded, extra={"song": song})
    writer.add(item, codes, facts)
