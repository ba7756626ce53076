"""Keys of pre-encoding: an audio folder becomes a store of codes."""

from typing import Literal

from jukebox.hparams.resolve import key, section


@section("encode", "Pre-encoding")
class EncodeHps:
    audio_files_dir: str = key("", "folder scanned, with all below it, for audio", example="~/music")
    output_path: str = key("", "folder of the store; an unfinished one is completed", example="codes")
    metadata: str = key(
        "", "artist, genre and lyrics per song: a .jsonl or .csv file; empty = metadata.jsonl beside the audio, or none"
    )
    batch_size: int = key(1, "chunks encoded together; the store is the same for any number", unit="chunks", gt=0)
    num_workers: int = key(0, "processes that decode audio, per process that encodes; 0 = none of their own", ge=0)
    shards: int = key(0, "folders a level is dealt over, fixed at the first start; 0 = one per process", ge=0, le=1000)
    limit_batches: int = key(0, "stop after so many batches, leaving the store unfinished; 0 = no limit", ge=0)
    on_bad_file: Literal["error", "skip"] = key(
        "skip", "what an unreadable, short or silent file does: stop the program, or be left out, listed and counted"
    )
    max_bad: float = key(0.01, "share of bad files above which --on_bad_file=skip stops all the same", ge=0, le=1)
    max_audio_sec: float = key(
        21600.0, "longer files are refused before they are decoded, against archive bombs; 0 = no limit", unit="s", ge=0
    )
