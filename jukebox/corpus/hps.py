"""Keys of the synthetic corpus."""

from jukebox.hparams.resolve import key, section


@section("corpus", "Corpus of songs with known truth")
class CorpusHps:
    out: str = key("", "folder for the songs and their metadata.jsonl", example="corpus")
    songs: int = key(32, "songs to make", unit="songs", gt=0)
    seed: int = key(0, "the same seed makes the same songs", ge=0)
    min_sec: float = key(6.0, "length of the shortest song", unit="seconds", ge=2)
    max_sec: float = key(30.0, "length of the longest song", unit="seconds", ge=2, le=600)
    unlike: str = key(
        "", "songs (.jsonl) whose words and runs of four characters no song has, to be asked for later",
        example="asked.jsonl",
    )  # fmt: skip
