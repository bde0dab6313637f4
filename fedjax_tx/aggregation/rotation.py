"""Random rotations: the signed Walsh-Hadamard transform spreads an update evenly over all of its coordinates."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fedjax_tx import prng
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.tree import Structure
from fedjax_tx.types import Aggregator


def rotate() -> Aggregator:
    """Rotates each update by one random signed Hadamard transform, and what becomes of them all back (arXiv 1611.00429).

    No coordinate of a rotated update is much larger than another, which is what rounding and clipping by coordinates want. The
    norm stays. The update becomes one vector, filled up to a power of two. The signs are public, the same for all clients and new
    in every round.

    Example:
      >>> import fedjax_tx as ftx
      >>> turned = ftx.aggregation.chain(rotate(), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(turned, {"w": jnp.array([[3.0, 1.0, 2.0]])}, [1.0])
      >>> bool(jnp.allclose(update["w"], jnp.array([3.0, 1.0, 2.0]), atol=1e-5))
      True
    """

    def encode(update, weight, shared, client_state, client_key, round_key):
        structure, number = shared
        vector = structure.ravel(update)
        filled = jnp.pad(vector, (0, power_of_two(structure.size) - structure.size))
        return turn(filled, _signs_key(number)), weight, client_state

    def decode(reduced, totals, state, key):
        structure, number = state
        vector = turn_back(reduced.astype(jnp.float32), _signs_key(number))
        return structure.unravel(vector[: structure.size]), (structure, number + 1), {}

    def init(update):
        return Structure.of(update), jnp.int32(0)

    return stage("rotate()", init=init, encode=encode, decode=decode, sensitivity=lambda bound: bound)


def power_of_two(size: int) -> int:
    """Returns the least power of two that is not below ``size``, at least 1."""
    return 1 << max(0, size - 1).bit_length()


def turn(vector: Float[Array, " size"], key: Key[Array, ""]) -> Float[Array, " size"]:
    """Returns a vector of a power-of-two size with random signs, transformed."""
    return _hadamard(vector * _signs(key, vector.size))


def turn_back(vector: Float[Array, " size"], key: Key[Array, ""]) -> Float[Array, " size"]:
    """Returns what ``turn`` with the same key made ``vector`` of."""
    return _hadamard(vector) * _signs(key, vector.size)


def _signs_key(number: Array) -> Key[Array, ""]:
    return prng.fold(jax.random.key(0), "rotate", number)


def _signs(key: Key[Array, ""], size: int) -> Float[Array, " size"]:
    return jax.random.rademacher(key, (size,), jnp.float32)


def _hadamard(vector: Float[Array, " size"]) -> Float[Array, " size"]:
    """The orthonormal Walsh-Hadamard transform of a power-of-two size, its own inverse."""
    size = half = vector.size
    while half > 1:
        half //= 2
        pairs = vector.reshape(-1, 2, half)
        vector = jnp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
    return vector / jnp.sqrt(jnp.float32(size))
