"""Log-mel features: against SciPy's spectrum and a sum over triangles by hand, and by their laws."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

import fedjax_tx as ftx
from fedjax_tx.data import audio

RATE = 8_000
NOISE = np.random.default_rng(0).normal(0, 0.1, (2, 1_000)).astype(np.float32)


@pytest.fixture(scope="module")
def features():
    return np.asarray(ftx.data.log_mel(NOISE, RATE, num_bands=20))


def test_features_are_bands_of_scipys_spectrum(features):
    # 25 and 10 ms at 8 kHz: frames of 200 samples, one every 80, transforms of 256.
    window = scipy.signal.get_window("hann", 200)
    options = {"window": window, "noverlap": 120, "nfft": 256, "detrend": False, "scaling": "spectrum", "mode": "psd"}
    frequencies, _, power = scipy.signal.spectrogram(NOISE.astype(float), RATE, **options)
    power = power * window.sum() ** 2
    power[:, 1:-1] /= 2  # SciPy adds the negative frequencies to the positive ones
    top = 2595 * np.log10(1 + 4000 / 700)
    bottom = 2595 * np.log10(1 + 20 / 700)
    mels = 2595 * np.log10(1 + frequencies / 700)
    want = np.zeros(features.shape)
    for band in range(20):
        left, middle, right = (bottom + (top - bottom) * (band + corner) / 21 for corner in range(3))
        hertz = [700 * (10 ** (mel / 2595) - 1) for mel in (left, middle, right)]
        for number, (frequency, mel) in enumerate(zip(frequencies, mels, strict=True)):
            if left < mel < right:
                rises = mel < middle
                span = hertz[1] - hertz[0] if rises else hertz[2] - hertz[1]
                weight = (frequency - hertz[0]) / span if rises else (hertz[2] - frequency) / span
                want[:, :, band] += weight * power[:, number]
    assert features.shape == (2, 1 + (1_000 - 200) // 80, 20)
    np.testing.assert_allclose(features, np.log(want + audio.FLOOR), rtol=1e-4, atol=1e-4)


def test_a_tone_is_loudest_in_its_band_and_silence_is_the_floor():
    time = np.arange(1_000, dtype=np.float32) / RATE
    tones = [440.0, 1_000.0, 3_000.0]
    found = np.asarray(
        ftx.data.log_mel(np.stack([np.sin(2 * np.pi * tone * time) for tone in tones] + [0 * time]), RATE, num_bands=20)
    )
    top, bottom = (2595 * np.log10(1 + hertz / 700) for hertz in (4_000, 20))
    for row, tone in enumerate(tones):
        place = (2595 * np.log10(1 + tone / 700) - bottom) / (top - bottom) * 21 - 1  # a band's middle is a whole number
        assert abs(found[row, 3].argmax() - place) <= 0.5 + 1e-6
    np.testing.assert_allclose(found[3], np.log(audio.FLOOR), rtol=1e-6)


def test_twice_as_loud_is_the_log_of_four_more_and_a_hop_later_is_a_frame_later(features):
    louder = np.asarray(ftx.data.log_mel(2 * NOISE, RATE, num_bands=20))
    np.testing.assert_allclose(louder - features, np.log(4), atol=1e-3)
    later = np.asarray(ftx.data.log_mel(NOISE[:, 80:], RATE, num_bands=20))
    np.testing.assert_allclose(later, features[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"samples": NOISE[0]}, ValueError, "samples of shape"),
        ({"samples": NOISE[:, :100]}, ValueError, "with at least 200 samples, got"),
        ({"samples": NOISE.astype(np.int32)}, TypeError, "samples to be an array of floating-point numbers, got"),
        ({"high": 5_000.0}, ValueError, "expected high <= 4000, got 5000.0"),
        ({"low": 500.0, "high": 400.0}, ValueError, "expected high > 500, got 400.0"),
        ({"num_bands": 200}, ValueError, "num_bands to leave each band a frequency, which band 2 has not, got 200"),
    ],
)
def test_what_is_refused_of_recordings(changes, error, message, unchecked):
    with pytest.raises(error, match=message):
        ftx.data.log_mel(**{"samples": jnp.asarray(NOISE), "sampling_rate": RATE, **changes})
