"""Local differential privacy: each client adds noise to its own message before it leaves."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.aggregation.noise import standard_normal
from fedjax_tx.types import Aggregator


def local_noise(noise_multiplier: float | Array) -> Aggregator:
    """Each client adds N(0, (noise_multiplier * s)^2) to each coordinate of its message; s is the bound on its norm so far.

    The Gaussian mechanism at the client (arXiv 1805.06530), so that nobody need be trusted: the promise is for the client's
    whole update, towards who sees every message, whatever the server does with them (any rule may follow, weights too). What it
    costs over rounds says ``ftx.privacy.epsilon_of_messages``. It is dear: the sum of n messages has n times the variance that
    noise behind the sum would need for the same promise to the world, sqrt(n) * noise_multiplier * s in standard deviation.

    Noise is drawn, and the message sent, in float32 at least, whatever the update's dtype.

    What leaves this stage has no bounded norm, so noise behind the reduction has nothing to be calibrated from: a chain
    refuses it. The info ``summed_noise_stddev`` is the noise of the plain sum of the messages that came.

    Args:
      noise_multiplier: >= 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> local = ftx.aggregation.chain(ftx.aggregation.clip_norm(2.0), local_noise(3.0), ftx.aggregation.mean())
      >>> update, _, info = ftx.aggregation.aggregate(local, {"w": jnp.zeros((25, 3))}, jnp.ones(25))
      >>> float(info["summed_noise_stddev"])
      30.0
    """
    check.number("noise_multiplier", noise_multiplier, low=0)
    name = f"local_noise({noise_multiplier})"

    def calibrate(bound: float | Array) -> Aggregator:
        stddev = noise_multiplier * bound

        def encode(update, weight, shared, client_state, client_key, round_key):
            noisy = jax.tree.map(lambda leaf, drawn: leaf + stddev * drawn, update, standard_normal(update, client_key))
            return noisy, weight, client_state

        def decode(reduced, totals, state, key):
            return reduced, state, {"summed_noise_stddev": stddev * jnp.sqrt(jnp.asarray(totals.clients, jnp.float32))}

        return stage(name, encode=encode, decode=decode)

    return stage(name, calibrate=calibrate)
