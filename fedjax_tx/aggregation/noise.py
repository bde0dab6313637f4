"""Noise on the aggregate, calibrated to what one client can change."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check, prng
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.types import Aggregator


def gaussian_noise(noise_multiplier: float | Array) -> Aggregator:
    """Adds N(0, (noise_multiplier * s)^2) to each coordinate of the aggregate; s is the chain's bound on one client's influence.

    The Gaussian mechanism of DP-FedAvg (arXiv 1710.06963). It stands behind the reduction, and only where the stages before it
    bound one client's influence in the L2 norm: ``chain(clip_norm(c), fixed_mean(m), gaussian_noise(z))`` has s = c / m. Behind
    ``mean()``, whose denominator depends on who came, a chain refuses it.

    Args:
      noise_multiplier: >= 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> private = ftx.aggregation.chain(
      ...     ftx.aggregation.clip_norm(1.0), ftx.aggregation.fixed_mean(10), gaussian_noise(0.5))
      >>> update, _, info = ftx.aggregation.aggregate(private, {"w": jnp.zeros((10, 3))}, jnp.ones(10))
      >>> float(info["noise_stddev"])
      0.05...
    """
    check.number("noise_multiplier", noise_multiplier, low=0)
    name = f"gaussian_noise({noise_multiplier})"

    def calibrate(bound: float | Array) -> Aggregator:
        stddev = noise_multiplier * bound

        def decode(reduced, totals, state, key):
            leaves, structure = jax.tree.flatten(reduced)
            noisy = [
                leaf + stddev * jax.random.normal(prng.fold(key, "noise", number), leaf.shape, leaf.dtype)
                for number, leaf in enumerate(leaves)
            ]
            return jax.tree.unflatten(structure, noisy), state, {"noise_stddev": jnp.float32(stddev)}

        released = {"releases_empty": True, "noise_multiplier": noise_multiplier}
        return stage(name, decode=decode, sensitivity=lambda entering: entering, **released)

    return stage(name, calibrate=calibrate)
