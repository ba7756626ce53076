"""Keys of configurable autoencoders: which JSON files describe model and data. What they say is in those files."""

from typing import Literal

from jukebox.hparams.resolve import key, section


@section("autoencoder", "Autoencoder from a model config, data sets from theirs")
class AutoencoderHps:
    model_config: str = key(
        "", "JSON file that describes an autoencoder and its training; it is trained in place of a VQ-VAE",
        example="stable_audio_2_0_vae.json",
    )  # fmt: skip
    dataset_config: str = key(
        "",
        "JSON file that names the data, in place of --audio_files_dir: dataset_type audio_dir, wds or s3 (audio), or, for"
        " a prior, pre_encoded",
        example="audio.json",
    )
    val_dataset_config: str = key(
        "", "the same for the audio that is measured on; empty = a share of the files is held out"
    )
    pretrained_ckpt_path: str = key("", "weights that an autoencoder begins from, as far as names and shapes agree")
    pretransform_ckpt_path: str = key("", "weights of the autoencoder that stands in front of this one")
    precision: Literal["32", "bf16-mixed", "16-mixed"] = key(
        "32", "arithmetic of an autoencoder's nets; weights and losses stay float32"
    )


@section("unwrap", "Unwrapping")
class UnwrapHps:
    model_config: str = key("", "JSON file of the model; a run of ours carries its own", example="model.json")
    ckpt_path: str = key("", "run of ours, or training checkpoint of stable-audio-tools", example="logs/model")
    name: str = key("exported_model", "name of the file that is written, without its ending")
    use_safetensors: bool = key(False, "write NAME.safetensors instead of NAME.ckpt")
