"""What follows from other keys, and from the VQ-VAE or store that they name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from jukebox import settings
from jukebox.autoencoder.hps import AutoencoderHps
from jukebox.codestore.store import CodeStore
from jukebox.data.code_dataset import open_codes
from jukebox.data.hps import AudioHps, DataHps
from jukebox.errors import CheckpointError, UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.labels.ids import Alphabet
from jukebox.models import checkpoint, model_set
from jukebox.models.latent_model import is_flow
from jukebox.prior.hps import LabelHps, PriorHps
from jukebox.training import autoencoder_build, latent_build
from jukebox.training.asked import presets_of
from jukebox.training.hps import RunHps
from jukebox.vqvae.hps import SpectralHps, VQVAEHps

log = logging.getLogger(__name__)


def complete(hps: Resolved) -> Resolved:
    """The hyperparameters of a training run with nothing left open.

    Raises UsageError for lengths and levels that do not fit, CheckpointError when the command line describes another
    VQ-VAE than the one named.
    """
    run, data = hps.section(RunHps), hps.section(DataHps)
    if config := hps.section(AutoencoderHps).model_config:
        if is_flow(config):
            return latent_build.complete(hps)
        return autoencoder_build.complete(hps)
    if run.prior and data.codes:
        store = open_codes(data.codes)
        hps = _with_store_keys(hps.with_values(hps.origins["codes"], codes=str(store.root)), store)
    elif run.prior:
        found = checkpoint.read(model_set.locate(model_set.Part(hps.section(VQVAEHps).restore_vqvae)))
        if found.hps is not None:
            theirs = settings.from_values(found.hps, f"checkpoint {found.path}")
            if theirs.section(RunHps).prior:
                raise CheckpointError(f"{found.path} is a prior. --restore_vqvae names the VQ-VAE it stands on.")
            hps = _with_vqvae_keys(hps, model_set.vqvae_values(theirs), str(found.path))
    if run.prior:
        hps = _with_alphabet(hps)
    if not run.name:
        hps = hps.with_values("the presets' names", name="_".join(presets_of(hps)) or "vqvae")
    return _with_sample_length(hps)


def _with_store_keys(hps: Resolved, store: CodeStore) -> Resolved:
    theirs = store.details[store.levels[0]].get("model")
    if not isinstance(theirs, dict):
        raise CheckpointError(f"--codes={store.root}: this store does not say which model made it; encode again.")
    where = f"store {store.root}"
    if "hps" not in theirs:
        raise CheckpointError(
            f"{where} holds no codes for a prior, but {theirs.get('kind', 'arrays')}: encode with --is-discrete --stream."
        )
    frame, n_ctx = store.geometry.frame, hps.section(PriorHps).n_ctx
    if n_ctx % frame:
        raise UsageError(f"--n_ctx={n_ctx} is no multiple of the {frame} codes of a frame in {where}.")
    hps = _with_vqvae_keys(hps, settings.from_values(theirs["hps"], where).values, where)
    if not hps.section(VQVAEHps).restore_vqvae:
        hps = hps.with_values(where, restore_vqvae=str(theirs.get("checkpoint", "")))
    return hps


def _with_vqvae_keys(hps: Resolved, theirs: Mapping[str, Any], where: str) -> Resolved:
    """Take the VQ-VAE's keys from where they are known; what the user set otherwise is an error, not overruled."""
    names = [name for name in model_set.vqvae_values(hps) if name in theirs]
    asked = {name: hps.values[name] for name in names if hps.given(name)}
    other = model_set.differing({n: theirs[n] for n in asked}, asked)
    if other:
        raise CheckpointError(f"{where} is another VQ-VAE than the command line says:\n{other}")
    return hps.with_values(where, **{name: theirs[name] for name in names})


def _with_alphabet(hps: Resolved) -> Resolved:
    """The size of the lyric alphabet from its file, where nothing else says it."""
    label = hps.section(LabelHps)
    if not label.lyrics or label.n_vocab:
        return hps
    ids_dir, version = hps.section(DataHps).ids_dir, 3 if label.labels_v3 else 2
    return hps.with_values(f"alphabet_v{version}.txt", n_vocab=Alphabet.open(ids_dir, version).n_vocab)


PUBLISHED_N_FFT = 2048  # of the spectral loss at a single resolution (vqvae/losses.py)


def _with_sample_length(hps: Resolved) -> Resolved:
    """Samples of one chunk: for a prior exactly a window, for a VQ-VAE whole codes of the top level."""
    audio, vqvae = hps.section(AudioHps), hps.section(VQVAEHps)
    if hps.section(RunHps).prior:
        p = hps.section(PriorHps)
        if not p.level < vqvae.levels:
            raise UsageError(f"--level={p.level}: the levels of this VQ-VAE are 0 to {vqvae.levels - 1}.")
        length = p.n_ctx * vqvae.hops[p.level]
        if audio.sample_length not in (0, length):
            log.info("--sample_length=%d: a window of this prior is %d x %d = %d samples; that is taken",
                     audio.sample_length, p.n_ctx, vqvae.hops[p.level], length)  # fmt: skip
    else:
        asked = audio.sample_length or int(audio.sample_length_in_seconds * audio.sr)
        length = asked // vqvae.top_hop * vqvae.top_hop
        if audio.sample_length not in (0, length):
            log.info("--sample_length=%d is rounded down to %d, whole codes of the top level", asked, length)
        if not length:
            raise UsageError(
                f"--sample_length={asked} is less than one code of the top level ({vqvae.top_hop} samples)."
            )
        longest = max(PUBLISHED_N_FFT, *hps.section(SpectralHps).multispec_loss_n_fft)
        if length <= longest // 2:  # the spectra are reflected at their ends by half a window
            raise UsageError(
                f"--sample_length={length} is too short for the spectral losses, whose longest FFT takes {longest} samples:"
                f" give more than {longest // 2}."
            )
    return hps.with_values("computed", sample_length=length)
