"""What a command line must name before training can begin; without torch, so that it is answered at once."""

from __future__ import annotations

from jukebox.autoencoder.hps import AutoencoderHps
from jukebox.data.dataset_config import PreEncodedDirs, read_config
from jukebox.data.hps import DataHps
from jukebox.errors import UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.parallel.world import world
from jukebox.training.hps import RunHps
from jukebox.vqvae.hps import VQVAEHps


def check(hps: Resolved) -> Resolved:
    """The hyperparameters, with a data set of stored codes named as `codes`.

    Raises UsageError when data are not named, or in two ways, or a prior does not know its VQ-VAE.
    """
    if hps.section(AutoencoderHps).model_config:
        return _with_model_config(hps)
    hps = _with_dataset_config(hps)
    run, data, named = hps.section(RunHps), hps.section(DataHps), hps.section(AutoencoderHps)
    if not (data.audio_files_dir or named.dataset_config) and not (run.prior and data.codes):
        raise UsageError(_no_data(hps))
    if data.codes and not run.prior:
        raise UsageError("--codes is for priors: add --prior --level=L, or give --audio_files_dir for the VQ-VAE.")
    if run.prior and not data.codes and not hps.section(VQVAEHps).restore_vqvae:
        raise UsageError(
            "A prior stands on a VQ-VAE: give --restore_vqvae=RUN, or --codes=STORE made by pre_encode.py."
        )
    return hps


def _with_dataset_config(hps: Resolved) -> Resolved:
    """The same where a data set's config names the data: what is pre-encoded is a store of codes."""
    named, data = hps.section(AutoencoderHps), hps.section(DataHps)
    if named.val_dataset_config and not named.dataset_config:
        raise UsageError("--val-dataset-config needs --dataset-config, which names the audio to train on.")
    if not named.dataset_config:
        return hps
    if other := next((name for name in ("audio_files_dir", "codes") if getattr(data, name)), ""):
        raise UsageError(f"--dataset-config and --{other} are both given: the data are named in exactly one way.")
    config = read_config(named.dataset_config)
    if isinstance(config, PreEncodedDirs):
        where = f"--dataset-config={named.dataset_config}: dataset_type pre_encoded"
        if not hps.section(RunHps).prior:
            raise UsageError(f"{where}: stored codes are for priors: add --prior --level=L and a preset of a prior.")
        if named.val_dataset_config:
            raise UsageError(f"{where}: --val-dataset-config is for audio; of a store --train_test_split is held out.")
        return hps.with_values(hps.origins["dataset_config"], codes=named.dataset_config, dataset_config="")
    return hps


def _with_model_config(hps: Resolved) -> Resolved:
    asked, data = hps.section(AutoencoderHps), hps.section(DataHps)
    if bool(asked.dataset_config) == bool(data.audio_files_dir):
        what = "are both given" if data.audio_files_dir else "are both missing"
        raise UsageError(
            f"--dataset-config and --audio_files_dir {what}: the audio is named in exactly one way. The smallest full command "
            f"is\n  python jukebox/train.py --model-config={asked.model_config} --dataset-config=AUDIO.json"
        )
    return hps


def presets_of(hps: Resolved) -> list[str]:
    """The presets that set anything, in order."""
    origins = (origin for origin in hps.origins.values() if origin.startswith("preset "))
    return list(dict.fromkeys(origin.removeprefix("preset ") for origin in origins))


def _no_data(hps: Resolved) -> str:
    prior = hps.section(RunHps).prior
    presets = ",".join(presets_of(hps)) or ("small_vqvae,small_prior" if prior else "small_vqvae")
    here = world()
    launcher = f"mpiexec -n {here.size} " if here.launcher == "mpi" else ""
    smallest = f"{launcher}python jukebox/train.py --hps={presets} --audio_files_dir=DIR"
    if prior:
        smallest += " --prior --restore_vqvae=RUN"
    text = (
        f"--audio_files_dir is missing: the folder of songs to train the {'prior' if prior else 'VQ-VAE'} on. "
        f"The smallest full command is\n  {smallest}"
    )
    return text + ("\nor, with codes made by pre_encode.py, --codes=STORE in place of both." if prior else "")
