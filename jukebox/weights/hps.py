"""Keys of fetching published weights."""

from typing import Literal

from jukebox.hparams.resolve import key, section


@section("fetch", "Fetching of published weights")
class FetchHps:
    model: str = key("", "model set to fetch: 1b_lyrics, 5b_lyrics, 5b, or a model-set file", example="1b_lyrics")
    source: Literal["published", "huggingface"] = key(
        "published", "the files of 2020, or the Hugging Face port of the same weights"
    )
    only: Literal["all", "vqvae", "priors", "ids"] = key(
        "all", "part of the set: a prior of one's own on the published VQ-VAE needs no more than vqvae"
    )
    mirror: str = key(
        "",
        "address or folder (file://...) that holds the same files under the same paths",
        example="file:///mnt/weights",
    )
    cache: str = key("", "folder to keep them in; empty = the variable JUKEBOX_CACHE, else ~/.cache")
    show: bool = key(False, "only show what would be fetched, from where, how large and to where")
