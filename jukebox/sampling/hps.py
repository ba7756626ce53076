"""Keys of sampling."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jukebox.hparams.resolve import key, section

_Share = Annotated[float, Field(ge=0, le=1)]
_PER_LEVEL = "one value, or one per level, level 0 first; () = as the model set says"


MOST_SONGS = 100_000  # of one run: many times what a card sings in a year, and little memory


@section("sample", "What to sample")
class SampleHps:
    model: str = key(
        "",
        "what sings: a model set (5b, 5b_lyrics, 1b_lyrics, a file in hparams/models or elsewhere), or runs by comma",
        example="logs/top,logs/up1,logs/up0",
    )
    name: str = key(
        "", "folder of the result; a run in it goes on, and without --model as it was begun", example="sample_5b"
    )
    mode: Literal["ancestral", "continue", "upsample", "primed"] = key(
        "ancestral",
        "ancestral = from nothing, continue = go on from --codes_file, upsample = only the levels below --codes_file,"
        " primed = go on from --audio_file",
    )
    levels: tuple[Annotated[int, Field(ge=0)], ...] = key(
        (),
        "sample these levels now, as far as the run has codes of the level above; () = all, and so does the number of"
        " levels that the model has",
        example="1,0",
    )
    items: str = key("", "sample these songs of the run now, by number; empty = all", example="0,3-5")
    from_: float = key(
        0.0,
        "sample and render only the stretch from this second to --to, as a preview in NAME/excerpts: levels below the top"
        " begin there, the run itself stays as it is; 0 = the run",
        unit="s",
        ge=0,
    )
    to: float | None = key(
        None, "sample now only the windows that are needed to reach this second; None = to the end", unit="s", gt=0
    )
    sr: int | None = key(None, "sample rate of the model; None = as its checkpoint says", unit="Hz", gt=0)
    sample_length_in_seconds: float | None = key(
        None,
        "length of the result, rounded down to whole top codes; None = as the model set says, else 20",
        unit="s",
        gt=0,
    )
    sample_length: int = key(0, "the same in samples; 0 = take sample_length_in_seconds", unit="samples", ge=0)
    total_sample_length_in_seconds: float | None = key(
        None,
        "length of the imagined whole song, for timing and lyrics; None = sample_length_in_seconds",
        unit="s",
        gt=0,
    )
    n_samples: int | None = key(
        None, "songs; None = as many as requests or saved codes, else 1; more than those: by turns", unit="songs", gt=0,
        le=MOST_SONGS,
    )  # fmt: skip
    hop_fraction: tuple[_Share, ...] = key(
        (0.5, 0.5, 0.125), "step from window to window as a share of the window, per level, level 0 first"
    )
    codes_file: str = key(
        "",
        "codes to go on from: a data.pth.tar, a run or a store of codes, or chosen items of these two, STORE:0,3; where no"
        " song is described by other flags, artist, genre and lyrics stay what they are",
        example="sample_5b:3",
    )
    audio_file: tuple[str, ...] = key((), "prompts of --mode=primed, by comma, used by turns", example="a.wav,b.mp3")
    prompt_length_in_seconds: float | None = key(
        None, "how much of each prompt is kept, rounded down to whole top codes", unit="s", gt=0
    )
    restore_vqvae: str = key("", "VQ-VAE in place of the one the model names")
    embed: bool = key(False, "write the page also as one file that holds all sounds, NAME/NAME.html, to send by mail")
    plan: bool = key(
        False, "say what the run will do and what it will take of memory, disk and time, against what there is, and end"
    )

    @model_validator(mode="after")
    def _mode_has_its_input(self) -> "SampleHps":
        if self.mode in ("continue", "upsample") and not self.codes_file:
            raise ValueError(f"--mode={self.mode} needs --codes_file, a data.pth.tar or a store of codes.")
        if self.mode == "primed" and not self.audio_file:
            raise ValueError("--mode=primed needs --audio_file=a.wav,b.mp3.")
        if self.mode == "primed" and self.prompt_length_in_seconds is None:
            raise ValueError("--mode=primed needs --prompt_length_in_seconds, for example 12.")
        if self.codes_file and self.mode not in ("continue", "upsample"):
            raise ValueError(
                f"--codes_file is read with --mode=continue or --mode=upsample, not with {self.mode}; say one."
            )
        if self.audio_file and self.mode != "primed":
            raise ValueError(f"--audio_file is read with --mode=primed, not with {self.mode}; say so.")
        if self.prompt_length_in_seconds is not None and self.mode == "ancestral":
            raise ValueError(
                "--prompt_length_in_seconds is of what a song begins with: say --mode=primed with --audio_file, or "
                "--mode=continue with --codes_file."
            )
        if 0 in self.hop_fraction:
            raise ValueError("--hop_fraction: a step of 0 never ends.")
        return self


@section("song", "What to sing")
class SongHps:
    requests: str = key(
        "", "songs to sing, one table each: a .toml or .jsonl file; what a song does not say is as the flags say"
    )
    artist: str = key("", "artist of every song; empty = unknown", example="Ella Fitzgerald")
    genre: str = key("", "genre of every song; empty = unknown", example="Jazz")
    lyrics: str = key("", "lyrics of every song: a text, or a file named .txt; .lrc, .vtt and .json bring their times")
    lyric_times: str = key(
        "",
        "lyrics with the times they are sung at, in place of --lyrics: a .lrc, .vtt or .json file; without times the"
        " lyrics are spread evenly over the song",
        example="song.lrc",
    )
    ids_dir: str = key(
        "",
        "folder with the artist and genre id tables; empty = those the model was trained or fetched with, else data/ids",
    )
    text_compat: Literal["anyascii", "unidecode"] = key(
        "anyascii",
        "how lyrics become ASCII; unidecode, as the first implementation had it, if you installed that package",
    )
    strict_labels: bool = key(False, "an artist or genre outside the id tables is an error, not class 0")


@section("drawing", "How codes are drawn")
class DrawHps:
    seed: int = key(0, "seed of the noise; an item sounds the same in any batch and on any number of processes", ge=0)
    temp: tuple[PositiveFloat, ...] = key(
        (), f"divide the scores of codes by this before drawing; below 1 is tamer. {_PER_LEVEL}", example="0.98"
    )
    top_k: tuple[Annotated[int, Field(ge=0)], ...] = key(
        (), f"draw among so many of the likeliest codes only; 0 = all. {_PER_LEVEL}", example="0"
    )
    top_p: tuple[_Share, ...] = key(
        (), f"draw among the likeliest codes that together reach this probability; 0 = all. {_PER_LEVEL}", example="0.9"
    )
    min_p: tuple[_Share, ...] = key(
        (),
        f"draw among codes at least this many times as likely as the likeliest; 0 = all. {_PER_LEVEL}",
        example="0.05",
    )
    chunk_size: tuple[PositiveInt, ...] = key((), f"given codes read in one pass. {_PER_LEVEL}", unit="codes")
    max_batch_size: tuple[PositiveInt, ...] = key((), f"songs sampled together. {_PER_LEVEL}", unit="songs")
    mask_lyric_codes: bool = key(
        False,
        "where lyrics and codes share one sequence, never draw a lyric character in place of a code (it becomes code 0)",
    )
    dtype: Literal["auto", "fp32", "fp16", "bf16", "int8"] = key(
        "fp32",
        "numbers that the weights of the priors are kept in; bf16 and int8 are faster on a CPU, fp16 and bf16 on a GPU;"
        " auto = the fastest that stays within 0.005 (int8: 0.01) bits per code of fp32, measured when a prior is loaded",
    )


@section("flow", "Priors over latents")
class FlowHps:
    flow_steps: int = key(50, "steps from noise to latents", unit="steps", ge=1)
    flow_solver: Literal["euler", "heun"] = key("heun", "heun costs two evaluations a step and needs fewer steps")
    flow_guidance: float = key(
        2.0, "how far labels lead away from what would be sung without them; 1 = as they say", ge=0
    )


@section("align", "Alignment of a finished run")
class AlignHps:
    logdir: str = key("", "folder of the run, of ours or of the first implementation", example="sample_1b")
    model: str = key("", "what sang, as for sample.py; empty = as the run says", example="1b_lyrics")
    alignment_layer: int | None = key(None, "layer whose attention is taken; None = as the model says", ge=0)
    alignment_head: int | None = key(None, "head of that layer; None = as the model says", ge=0)
    hop_fraction: tuple[_Share, ...] = key((), "as for sample.py; () = as the run says")
    ids_dir: str = key("", "folder with the artist and genre id tables; empty = as the run says")


@section("find", "Finding the head that aligns")
class FindHps:
    find: bool = key(
        False,
        "find the layer and head of --model whose attention follows the lyrics, and write them into the model set (or"
        " beside the run's checkpoint), for all sampling to come",
    )
    songs: int = key(32, "songs with lyrics that are run through the prior; chosen by seed", unit="songs", gt=0)
    seed: int = key(0, "seed of the choice of songs and of their windows", ge=0)
    codes: str = key(
        "", "store of codes to take the songs from; empty = what the prior was trained on", example="codes"
    )
    audio_files_dir: str = key("", "folder of audio to take them from instead, with its metadata", example="~/music")
    metadata: str = key("", "table of lyrics for that folder, as for train.py")


@section("features", "Features of recordings")
class FeaturesHps:
    model: str = key("", "what hears: a model set, or a run with the VQ-VAE it stands on", example="logs/small_prior")
    audio_files_dir: str = key("", "folder scanned, with all below it, for audio", example="~/music")
    output_path: str = key("", "folder of the features; an unfinished one is completed", example="features")
    level: int | None = key(None, "level of the prior that hears; None = the highest", ge=0)
    layers: tuple[Annotated[int, Field(ge=0)], ...] = key(
        (), "states are taken behind so many layers; what lies behind the last is not computed; () = the middle one",
        example="24,36,48",
    )  # fmt: skip
    pool: str = key(
        "mean", "mean = one vector per song; a number = so many vectors per second; all = one per code", example="10"
    )
    labelled: bool = key(
        False, "tell the prior artist, genre and lyrics of each song; beware: features then know what they may be meant"
        " to find",
    )  # fmt: skip
    metadata: str = key("", "for --labelled: a .jsonl or .csv file; empty = metadata.jsonl beside the audio, or tags")
    hop_fraction: float = key(
        1.0, "step from window to window as a share of the window; smaller gives every code more past", gt=0, le=1
    )
    batch_size: int = key(4, "windows computed together, also those of several songs", unit="windows", ge=1)
    dtype: Literal["fp32", "fp16", "bf16", "int8"] = key("fp32", "numbers that the weights of the prior are kept in")
    ids_dir: str = key("", "folder with the artist and genre id tables; empty = those the model was trained with")
    restore_vqvae: str = key("", "VQ-VAE in place of the one the model names")
    on_bad_file: Literal["error", "skip"] = key(
        "skip", "what an unreadable or silent file does: stop the program, or be left out and listed"
    )
    max_bad: float = key(0.01, "share of bad files above which --on_bad_file=skip stops all the same", ge=0, le=1)
    max_audio_sec: float = key(3600.0, "longer files are refused, against archive bombs; 0 = no limit", unit="s", ge=0)
    force_unlock: bool = key(False, "take over a folder that a process on another, dead machine left locked")

    @model_validator(mode="after")
    def _metadata_is_read(self) -> "FeaturesHps":
        if self.metadata and not self.labelled:
            raise ValueError("--metadata is read with --labelled only; without it the prior is told nothing.")
        return self
