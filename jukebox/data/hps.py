"""Keys that say which audio is read, and how."""

from typing import Literal

from jukebox.hparams.resolve import key, section


@section("audio", "Audio")
class AudioHps:
    sr: int = key(44100, "sample rate of everything that is read, modelled and written", unit="Hz", gt=0)
    channels: int = key(2, "channels of the loaded audio; the VQ-VAE mixes them to mono", ge=1, le=2)
    sample_length: int = key(
        0,
        "length of one training chunk; 0 = for a prior one window (n_ctx codes), for a VQ-VAE sample_length_in_seconds"
        " rounded down to whole codes of the top level",
        unit="samples",
        example="262144",
        ge=0,
    )
    sample_length_in_seconds: float = key(24.0, "length of one training chunk where sample_length is 0", unit="s", gt=0)


@section("data", "Data")
class DataHps:
    audio_files_dir: str = key(
        "", "folder scanned, with all below it, for wav, flac, mp3, ogg, opus, m4a, aac and aiff", example="~/music"
    )
    codes: str = key(
        "",
        "store of codes made by pre_encode.py, or a data-set file (.json) of type pre_encoded that names one; a prior then"
        " needs neither audio nor the VQ-VAE",
    )
    metadata: str = key(
        "", "artist, genre and lyrics per song: a .jsonl or .csv file; empty = metadata.jsonl beside the audio, or none"
    )
    ids_dir: str = key("", "folder with the artist and genre id tables; empty = the shipped data/ids")
    strict_labels: bool = key(False, "an artist or genre outside the id tables is an error, not class 0")
    text_compat: Literal["anyascii", "unidecode"] = key(
        "anyascii",
        "how lyrics become ASCII; unidecode, as the first implementation had it, if you installed that package",
    )
    lyric_times: bool = key(
        True,
        "where lyrics come with the times they are sung at, a window sees what is sung in it; False = lyrics are spread"
        " evenly over the song, as without times",
    )
    bs: int = key(1, "items per process and step", unit="items", gt=0)
    nworkers: int | None = key(None, "processes that load audio, per process that trains; None = as many as bs", ge=0)
    aug_shift: bool = key(False, "shift the start of every chunk at random, by up to half a chunk")
    aug_blend: bool = key(False, "mix left and right at random proportions instead of equal ones")
    split: Literal["file", "chunk"] = key(
        "file", "what is dealt to training and test: whole files, or chunks as in the first implementation"
    )
    train_test_split: float = key(0.9, "share of the data used for training, the rest for test", gt=0, le=1)
    on_bad_file: Literal["error", "skip"] = key(
        "skip", "what an unreadable, short or silent file does: stop the run, or be left out, listed and counted"
    )
    max_bad: float = key(0.01, "share of bad files above which --on_bad_file=skip stops all the same", ge=0, le=1)
    max_audio_sec: float = key(
        21600.0, "longer files are refused before they are decoded, against archive bombs; 0 = no limit", unit="s", ge=0
    )


@section("make_ids", "Making of id tables")
class MakeIdsHps:
    audio_files_dir: str = key("", "folder scanned for songs, with all below it", example="~/music")
    metadata: str = key("", "artist, genre and lyrics per song, as for train.py; empty = what lies beside the audio")
    out: str = key("ids", "folder for the tables, to be given as --ids_dir")
    min_songs: int = key(1, "an artist or genre with fewer songs stays unknown", unit="songs", ge=1)
    max_audio_sec: float = key(
        21600.0, "longer files are refused before they are decoded; 0 = no limit", unit="s", ge=0
    )
