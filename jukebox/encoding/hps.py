"""Keys of pre-encoding: audio becomes a store of codes."""

from typing import Literal

from jukebox.hparams.resolve import key, section


@section("encode", "Pre-encoding")
class EncodeHps:
    audio_files_dir: str = key("", "folder scanned, with all below it, for audio", example="~/music")
    dataset_config: str = key(
        "", "JSON file that names the audio instead: dataset_type audio_dir, wds or s3", example="dataset.json"
    )
    output_path: str = key("", "folder of the store; an unfinished one is completed", example="codes")
    model_config: str = key("", "JSON file that describes the model (model_type ...); comes with --ckpt-path")
    ckpt_path: str = key("", "weights for --model-config: .ckpt, .pth.tar or .safetensors")
    pretrained_name: str = key(
        "",
        "a folder with model_config.json and weights, a run of ours, or owner/name of such a folder on a hub, in place of both",
    )
    metadata: str = key(
        "", "artist, genre and lyrics per song: a .jsonl or .csv file; empty = metadata.jsonl beside the audio, or none"
    )
    batch_size: int = key(
        1, "pieces in memory and computed together; the store is the same for any number", unit="pieces", ge=1
    )
    sample_size: int = key(
        1320960, "length of one window, for models of fixed size and for --crop", unit="samples", ge=1000, le=13230000
    )
    num_workers: int = key(4, "songs decoded ahead, per process that encodes; 0 = only while they are encoded", ge=0)
    num_nodes: int = key(1, "machines; must be what the launcher started", ge=1)
    strategy: str = key("auto", "accepted for old commands; has no effect")
    limit_batches: int | None = key(None, "encode only so many times --batch_size items; None = all", ge=1)
    shuffle: bool = key(False, "number the items in an order drawn from --encode_seed, not by name")
    model_half: bool = key(False, "weights, audio and stored latents in half precision")
    is_discrete: bool = key(False, "store codes, for models that have both; a VQ-VAE always stores codes")
    stream: bool = key(
        False,
        "with --is-discrete, the codes of a frame one after the other, as one stream that priors train on; a model named by"
        " --restore_vqvae is stored so unless --compat is given, others as published: [codebooks, frames] or the reverse",
    )
    shards: int = key(0, "folders a level is dealt over, fixed at the first start; 0 = one per process", ge=0, le=1000)
    keep_levels: tuple[int, ...] = key((), "levels that are encoded and stored; empty = all", example="0,2")
    crop: Literal["all", "first", "random"] = key(
        "all", "every second of every file, or one window of --sample_size from the beginning or from anywhere"
    )
    encode_seed: int = key(0, "seed of --shuffle and --crop=random", ge=0)
    shifts: int = key(
        1, "encode each song so often, begun a part of a top code later each time: variants to train on", ge=1, le=64
    )
    compat: bool = key(False, "int64 codes and a padding mask per item, for other readers of this layout")
    on_bad_file: Literal["error", "skip"] = key(
        "skip", "what an unreadable or short file does: stop the program, or be left out, listed and counted"
    )
    max_bad: float = key(0.01, "share of bad files above which --on_bad_file=skip stops all the same", ge=0, le=1)
    max_audio_sec: float = key(
        21600.0, "longer files are refused before they are decoded, against archive bombs; 0 = no limit", unit="s", ge=0
    )
    force_unlock: bool = key(False, "take over a store that a process on another, dead machine left locked")
