"""Keys of exporting weights."""

from typing import Literal

from jukebox.hparams.resolve import key, section


@section("export", "Export of weights")
class ExportHps:
    source: str = key(
        "",
        "what is exported: a run folder, a checkpoint, a model set, or a folder of the Hugging Face port",
        example="logs/small_prior",
    )
    to: Literal["published", "safetensors", "huggingface", "run"] = key(
        "safetensors",
        "published = a torch file as of 2020, safetensors = the same names, huggingface = a folder of the"
        " port with all nets of a model set, run = a run folder of ours",
    )
    out: str = key("", "file, or folder where there are several nets, to write", example="small_prior.safetensors")
    presets: str = key(
        "", "presets that shape the net, by comma, where its file does not say", example="vqvae,prior_5b"
    )
    module: bool = key(False, "published names with `module.` in front, as a run on several GPUs wrote them")
    half: bool = key(False, "matrices in half precision, as the published 5b models have them")
    float8: bool = key(
        False,
        "numbers of 8 bits, 16 in small tensors: for small nets that are to be handed on; they are read as float32",
    )
