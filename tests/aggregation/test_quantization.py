"""QSGD: levels by hand, right in the mean, and as far off as rounding at random is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx import aggregation as agg
from fedjax_tx.aggregation.quantization import pack, unpack

MANY = 4000
ROW = np.float32([0.9, -0.31, 0.02, 0.0, -1.5, 0.4, 0.07])


def sent(bits, bucket_size, rows):
    """What the server makes of each row's message."""
    stage = agg.quantize(bits, bucket_size=bucket_size)
    state = stage.init({"w": rows[0]})

    def one(row, key):
        message, _, _ = stage.encode({"w": row}, jnp.float32(1), state, (), key, None)
        return stage.receive(message, state)["w"]

    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(rows), jax.random.split(jax.random.key(0), len(rows))), np.float64)


@pytest.mark.parametrize(("bits", "bucket_size"), [(2, 512), (4, 512), (8, 3)])
def test_each_coordinate_is_one_of_two_levels_and_right_in_the_mean(bits, bucket_size):
    received = sent(bits, bucket_size, np.tile(ROW, (MANY, 1)))
    starts = np.arange(ROW.size) // bucket_size * bucket_size
    scales = np.array([np.abs(ROW[start : start + bucket_size]).max() for start in starts], np.float64)
    unit = scales / (2 ** (bits - 1) - 1)
    low = np.floor(ROW / unit + 1e-6)
    levels = np.round(received / unit)
    np.testing.assert_allclose(received, levels * unit, atol=1e-6)
    assert ((levels == low) | (levels == low + 1)).all()
    # Up with the chance by which it is above the level below: its variance is that of a coin.
    chance = np.clip(ROW / unit - low, 0, 1)
    deviation = unit * np.sqrt(chance * (1 - chance) / MANY)
    assert (np.abs(received.mean(0) - ROW) <= 5 * deviation + 1e-6).all()
    np.testing.assert_allclose(received.std(0), unit * np.sqrt(chance * (1 - chance)), atol=0.1 * unit.max())
    # Rounding to the nearest level would show.
    assert (np.abs(np.round(ROW / unit) * unit - ROW) > 5 * deviation + 1e-6).any()


def test_what_is_all_zero_or_lies_on_levels_is_sent_as_it_is():
    rows = np.float32([[0, 0, 0, 0], [7, -7, 3, 0], [-0.7, 0.1, 0.2, 0.7], [1e-30, 0, 0, -1e-30]])
    np.testing.assert_allclose(sent(4, 4, rows), rows, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_come_out_as_they_went_in(bits):
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 2**bits, 13), jnp.uint8)
    packed = pack(codes, bits)
    assert packed.size == -(-13 * bits // 8) and packed.dtype == jnp.uint8
    np.testing.assert_array_equal(unpack(packed, bits, 13), codes)
