"""Sending a few bits for each coordinate: QSGD, Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization".

arXiv 1610.02132, section 3. Coordinates are sent as one of 2 s + 1 evenly spaced levels, rounded up or down at random, so that
each is right in the mean:

    Q(v_i) = C / s * (l + [U < |v_i| s / C - l]) sgn(v_i),        l = floor(|v_i| s / C),    U uniform on [0, 1).

Where this deviates: C is the largest |v_i| of a bucket of coordinates, as in the paper's experiments (in its theorem it is their
norm), and a level takes a fixed number of bits, with s = 2^(bits - 1) - 1; the paper's Elias code saves bits where most levels
are 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from fedjax_tx import check
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.tree import Structure
from fedjax_tx.types import Aggregator


def quantize(bits: int, *, bucket_size: int = 512) -> Aggregator:
    """Sends each coordinate of an update in so many bits, rounded at random: right in the mean (QSGD, arXiv 1610.02132).

    A coordinate is off by less than 1 / (2^(bits - 1) - 1) of the largest of its bucket; what is sent are the levels, and that
    largest magnitude of each bucket in float32.

    Args:
      bits: 2, 4 or 8. bucket_size: >= 1, how many coordinates share a scale; the smaller, the closer, for 32 bits each.

    Example:
      >>> import fedjax_tx as ftx
      >>> coarse = ftx.aggregation.chain(quantize(2), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(coarse, {"w": jnp.array([[2.0, 0.0, -2.0]])}, [1.0])
      >>> update["w"].tolist()
      [2.0, 0.0, -2.0]
    """
    check.integer("bits", bits)
    check.one_of("bits", bits, (2, 4, 8))
    check.integer("bucket_size", bucket_size, low=1)
    levels = 2 ** (bits - 1) - 1

    def in_buckets(vector):
        return jnp.pad(vector, (0, -vector.size % bucket_size)).reshape(-1, bucket_size)

    def encode(update, weight, shared, client_state, client_key, round_key):
        buckets = in_buckets(shared.ravel(update))
        scales = jnp.abs(buckets).max(1)
        units = buckets / jnp.where(scales > 0, scales, 1)[:, None] * levels
        below = jnp.floor(units)
        rounded = below + (jax.random.uniform(client_key, units.shape) < units - below)
        codes = (rounded + levels).astype(jnp.uint8).reshape(-1)[: shared.size]
        return {"codes": pack(codes, bits), "scales": scales}, weight, client_state

    def receive(message, shared):
        rounded = unpack(message["codes"], bits, shared.size).astype(jnp.float32) - levels
        vector = in_buckets(rounded) * (message["scales"] / levels)[:, None]
        return shared.unravel(vector.reshape(-1)[: shared.size])

    return stage(f"quantize({bits}, bucket_size={bucket_size})", init=Structure.of, encode=encode, receive=receive)


def pack(codes: UInt8[Array, " size"], bits: int) -> UInt8[Array, " bytes"]:
    """Returns numbers of ``bits`` bits (2, 4 or 8), several in a byte, the first in its lowest bits.

    Example:
      >>> pack(jnp.array([1, 2, 3], jnp.uint8), 4).tolist()
      [33, 3]
    """
    each = 8 // bits
    rows = jnp.pad(codes, (0, -codes.size % each)).reshape(-1, each)
    return (rows << _shifts(bits)).sum(1, dtype=jnp.uint8)


def unpack(packed: UInt8[Array, " bytes"], bits: int, size: int) -> UInt8[Array, " size"]:
    """Returns the first ``size`` numbers that ``pack`` packed."""
    return ((packed[:, None] >> _shifts(bits)) & jnp.uint8(2**bits - 1)).reshape(-1)[:size]


def _shifts(bits: int) -> UInt8[Array, " each"]:
    return jnp.arange(0, 8, bits, dtype=jnp.uint8)
