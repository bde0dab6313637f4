"""Sending less: the largest coordinates with error feedback, and one bit a coordinate."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from fedjax_tx import check
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.aggregation.rotation import power_of_two, turn, turn_back
from fedjax_tx.tree import Structure
from fedjax_tx.types import Aggregator


def top_k(fraction: float, *, error_feedback: bool = True) -> Aggregator:
    """Sends the coordinates of largest magnitude, and remembers the rest for the next time (arXiv 1809.07599).

    u = update + e;  message = the k largest |u_i| with their places;  e <- u - what was sent.

    Args:
      fraction: 0 < fraction <= 1, the share of all coordinates that is sent, rounded up.
      error_feedback: whether a client remembers what it did not send (the e above, as large as the model, for each client).

    Example:
      >>> import fedjax_tx as ftx
      >>> sparse = ftx.aggregation.chain(top_k(0.25), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(sparse, {"w": jnp.array([[3.0, -4.0, 1.0, 2.0]])}, [1.0])
      >>> update["w"].tolist()
      [0.0, -4.0, 0.0, 0.0]
    """
    check.number("fraction", fraction, above=0, high=1)
    check.boolean("error_feedback", error_feedback)

    def encode(update, weight, shared, client_state, client_key, round_key):
        wanted = shared.ravel(update) + (client_state if error_feedback else 0)
        _, places = jax.lax.top_k(jnp.abs(wanted), count_of(fraction, shared.size))
        message = {"values": wanted[places], "places": places.astype(jnp.int32)}
        if not error_feedback:
            return message, weight, client_state
        # A client that takes no part sends nothing, so it forgets nothing.
        kept = jnp.where(weight > 0, wanted.at[places].set(0), client_state)
        return message, weight, kept

    def receive(message, shared):
        return shared.unravel(jnp.zeros(shared.size).at[message["places"]].set(message["values"]))

    return stage(
        f"top_k({fraction})",
        init=Structure.of,
        init_client=lambda update: jnp.zeros(Structure.of(update).size) if error_feedback else (),
        encode=encode,
        receive=receive,
    )


def drive() -> Aggregator:
    """One bit a coordinate: DRIVE (arXiv 2105.08339), with the scale that makes it unbiased.

    The client rotates its update by a random signed Hadamard transform R and sends sign(R x) and S = ||R x||^2 / ||R x||_1; the
    server takes R^-1 (S sign(R x)) from each message before it sums. R comes from a key in the message. The unbiasedness of the
    paper's theorem is that of a uniformly random rotation; the Hadamard transform stands in for it, as in the paper.

    Example:
      >>> import fedjax_tx as ftx
      >>> one_bit = ftx.aggregation.chain(drive(), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(one_bit, {"w": jnp.array([[2.0, 0.0]])}, [1.0])
      >>> bool(jnp.allclose(update["w"], jnp.array([2.0, 0.0]), atol=1e-5))
      True
    """

    def encode(update, weight, shared, client_state, client_key, round_key):
        vector = shared.ravel(update)
        rotated = turn(jnp.pad(vector, (0, power_of_two(shared.size) - shared.size)), client_key)
        total = jnp.abs(rotated).sum()
        scale = jnp.square(rotated).sum() / jnp.where(total > 0, total, 1)
        message = {"signs": jnp.packbits(rotated >= 0), "scale": scale, "key": jax.random.key_data(client_key)}
        return message, weight, client_state

    def receive(message, shared):
        signs = jnp.unpackbits(message["signs"], count=power_of_two(shared.size)).astype(jnp.float32) * 2 - 1
        vector = turn_back(message["scale"] * signs, jax.random.wrap_key_data(message["key"]))
        return shared.unravel(vector[: shared.size])

    return stage("drive()", init=Structure.of, encode=encode, receive=receive)


def count_of(fraction: float, size: int) -> int:
    """Returns how many coordinates of ``size`` a share is, rounded up: the share as it is written, not as it is in binary."""
    return math.ceil(Fraction(str(fraction)) * size)
