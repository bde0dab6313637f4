"""Speech as a series that models read: the logarithm of the energy in bands of the mel scale, frame by frame.

For frame t of the samples x, with a Hann window w and a power of two of at least its length for the transform::

    P[t, k] = |sum_n w[n] x[t hop + n] exp(-2 pi i k n / size)|^2
    logmel[t, m] = log(floor + sum_k H[m, k] P[t, k])

H are triangles of peak 1 whose corners lie evenly on the mel scale, mel(f) = 2595 log10(1 + f / 700), as in the HTK book. Frames
lie within the samples; what doesn't fill a frame at the end is left out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from fedjax_tx import check

FLOOR = 1e-6


def log_mel(
    samples: Float[Array, "batch samples"] | Float[np.ndarray, "batch samples"],
    sampling_rate: int,
    *,
    num_bands: int = 40,
    frame_length: int | None = None,
    hop: int | None = None,
    low: float = 20.0,
    high: float | None = None,
) -> Float32[Array, "batch frames bands"]:
    """Returns the log-mel features of recordings, float32[batch, frames, bands].

    There are ``1 + (samples - frame_length) // hop`` frames.

    Args:
      samples: recordings of one length, amplitudes about -1 to 1. sampling_rate: samples a second.
      num_bands: how many bands from ``low`` to ``high`` Hz, by default half the sampling rate.
      frame_length, hop: samples of a frame, and from one to the next; by default 25 and 10 ms.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if one is out of range, samples are fewer than a frame, or bands are so narrow that one has no frequency.

    Example:
      >>> tone = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(8000) / 8000)[None]
      >>> features = log_mel(tone, 8000, num_bands=20)
      >>> features.shape, int(features[0, 50].argmax())
      ((1, 98, 20), 9)
    """
    sampling_rate = check.integer("sampling_rate", sampling_rate, low=1)
    num_bands = check.integer("num_bands", num_bands, low=1)
    frame_length = sampling_rate // 40 if frame_length is None else frame_length
    frame_length = check.integer("frame_length", frame_length, low=2)
    hop = check.integer("hop", max(1, sampling_rate // 100) if hop is None else hop, low=1)
    high = sampling_rate / 2 if high is None else high
    check.number("low", low, low=0)
    check.number("high", high, above=low, high=sampling_rate / 2)
    check.instance("samples", samples, (jax.Array, np.ndarray), "an array of floating-point numbers")
    if not jnp.issubdtype(samples.dtype, jnp.floating):
        check.fail_type("samples", "an array of floating-point numbers", samples.dtype)
    if samples.ndim != 2 or samples.shape[1] < frame_length:
        check.fail_value("samples", f"of shape [batch, samples] with at least {frame_length} samples", samples.shape)
    bands = mel_bands(num_bands, 1 << (frame_length - 1).bit_length(), sampling_rate, float(low), float(high))
    return _log_mel(jnp.asarray(samples, jnp.float32), jnp.asarray(bands, jnp.float32), frame_length, hop)


def mel_bands(num_bands: int, size: int, sampling_rate: int, low: float, high: float) -> np.ndarray:
    """Returns the triangles, float64[bands, size / 2 + 1]: the weight of each frequency of a transform of ``size`` in each band.

    Raises:
      ValueError: if a band has no frequency.

    Example:
      >>> mel_bands(2, 8, 8000, 0.0, 4000.0).round(2).tolist()
      [[0.0, 0.68, 0.0, 0.0, 0.0], [0.0, 0.32, 0.91, 0.45, 0.0]]
    """
    bottom, top = (2595 * np.log10(1 + hertz / 700) for hertz in (low, high))
    corners = 700 * (10 ** (np.linspace(bottom, top, num_bands + 2) / 2595) - 1)
    frequencies = np.arange(size // 2 + 1) * sampling_rate / size
    left, middle, right = (corners[start : start + num_bands, None] for start in range(3))
    rising, falling = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
    bands = np.clip(np.minimum(rising, falling), 0, None)
    for band in np.flatnonzero(bands.sum(axis=1) == 0)[:1].tolist():
        check.fail_value("num_bands", f"to leave each band a frequency, which band {band} has not", num_bands)
    return bands


@functools.partial(jax.jit, static_argnums=(2, 3))
def _log_mel(samples, bands, frame_length, hop):
    starts = np.arange(0, samples.shape[1] - frame_length + 1, hop)
    frames = samples[:, starts[:, None] + np.arange(frame_length)]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame_length) / frame_length)
    spectrum = jnp.fft.rfft(frames * window.astype(np.float32), n=2 * (bands.shape[1] - 1))
    return jnp.log(FLOOR + jnp.square(jnp.abs(spectrum)) @ bands.T)
