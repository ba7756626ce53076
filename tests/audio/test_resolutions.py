"""Filter banks, windows and options of the spectral losses over several resolutions."""

import librosa
import numpy as np
import pytest
import torch

from jukebox.audio.spectral import (
    STFT,
    MultiSTFTLoss,
    SpectralTerms,
    STFTLoss,
    chroma_bank,
    make_window,
    mel_bank,
    sum_and_difference_loss,
)


@pytest.mark.parametrize(("rate", "n_fft", "bins"), [(44100, 2048, 80), (16000, 512, 40), (1500, 256, 10)])
def test_banks_are_librosas(rate, n_fft, bins):
    mel = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bins)
    np.testing.assert_allclose(mel_bank(rate, n_fft, bins), mel, atol=1e-7)
    for chroma in (12, 24):
        expected = librosa.filters.chroma(sr=rate, n_fft=n_fft, n_chroma=chroma)
        np.testing.assert_allclose(chroma_bank(rate, n_fft, chroma), expected, atol=1e-6)


def test_windows():
    torch.testing.assert_close(make_window("hann", 64), make_window("hann_window", 64))
    assert make_window("blackmanharris", 64).dtype == torch.float32
    with pytest.raises(ValueError, match="nosuch"):
        make_window("nosuch", 64)


def loss(**terms) -> STFTLoss:
    return STFTLoss(STFT(64, 16, 64), SpectralTerms(**terms), 8000)


def test_terms_add_up():
    x, y = torch.randn(2, 1, 500), torch.randn(2, 1, 500)
    none = {"w_sc": 0.0, "w_log_mag": 0.0}
    parts = [loss(**{**none, name: 2.0})(x, y) for name in ("w_sc", "w_log_mag", "w_lin_mag", "w_phs")]
    torch.testing.assert_close(sum(parts), loss(w_sc=2.0, w_log_mag=2.0, w_lin_mag=2.0, w_phs=2.0)(x, y))
    assert loss(**none, w_lin_mag=1.0, mag_distance="L2")(x, y) != loss(**none, w_lin_mag=1.0)(x, y)


@pytest.mark.parametrize("scale", ["mel", "chroma"])
def test_reduced_frequency_axes(scale):
    x, y = torch.randn(1, 1, 500), torch.randn(1, 1, 500)
    assert loss(scale=scale, n_bins=12)(x, x) == 0 < loss(scale=scale, n_bins=12)(x, y)


def test_level_can_be_left_out():
    x = torch.randn(1, 1, 500)
    assert loss(scale_invariance=True)(x, 3 * x) < 1e-3 < loss()(x, 3 * x)


def test_sum_and_difference():
    several = MultiSTFTLoss([STFT(64, 16, 64), STFT(32, 8, 32)], SpectralTerms(), 8000)
    x, y = torch.randn(1, 2, 500), torch.randn(1, 2, 500)
    left_right = torch.stack([x.sum(1), x[:, 0] - x[:, 1]], 1), torch.stack([y.sum(1), y[:, 0] - y[:, 1]], 1)
    expected = sum(several(a[:, None], b[:, None]) for a, b in zip(*(z.unbind(1) for z in left_right), strict=True)) / 2
    torch.testing.assert_close(sum_and_difference_loss(several, x, y), expected)
