"""Noise on the aggregate, calibrated to what one client can change.

**What it promises.** JAX draws it by a counter-based generator, Threefry-2x32: each number is a function of a key and of its own
place, and the key one of the seed, the round, the stage and the leaf. So it is the same on every device and in any order of
work, and a round that is played again after a kill releases what it released, not a second draw of which one could take the mean.
It is new in every round, leaf and coordinate. Tests hold its scale (two thirds and three halves of it are rejected), its shape,
and that it is uncorrelated between rounds, coordinates and the parts of a split.

**What it does not promise.** An epsilon is that of noise in real numbers from a source that nobody can guess. This one

- is known to whoever knows the seed, who can then take it off; and a seed has 32 bits, few enough to try them all. The seed of an
  experiment is there to repeat it, not to hide anything;
- is the same in all that shares a seed: between two runs that differ in one client, between the settings of a sweep that ran side
  by side, it cancels. Of those release one, and draw another seed for each data set that is to be protected;
- is of single precision: one of 2^23 numbers, none beyond 5.42 standard deviations, where one draw in 17 million should be; and
  rounding leaves traces of what it was added to in the low bits of a sum (arXiv 2107.10138). No float is free of the latter, of
  whatever precision;
- is by a generator that is well tested in its statistics and was not made for cryptography.

That is fit for research: to learn what privacy costs, and whether an attack or an audit succeeds. To release a model trained on
people's data to those who would attack it, noise must be drawn as integers from a source that is cryptographically secure
(arXiv 2004.00010), by whoever is trusted with the sum.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fedjax_tx import check, prng
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.types import Aggregator, PyTree


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
            noisy = jax.tree.map(lambda leaf, drawn: leaf + stddev * drawn, reduced, standard_normal(reduced, key))
            return noisy, state, {"noise_stddev": jnp.float32(stddev)}

        released = {"releases_empty": True, "noise_multiplier": noise_multiplier}
        return stage(name, decode=decode, sensitivity=lambda entering: entering, **released)

    return stage(name, calibrate=calibrate)


def standard_normal(like: PyTree, key: Key[Array, ""]) -> PyTree:
    """Returns independent standard normal numbers in the shapes of ``like`` and its dtypes, but in float32 at least.

    In fewer bits they would be one of a few hundred numbers and not Gaussian any more.
    """
    leaves, structure = jax.tree.flatten(like)

    def drawn(number, leaf):
        return jax.random.normal(prng.fold(key, "noise", number), leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.unflatten(structure, [drawn(number, leaf) for number, leaf in enumerate(leaves)])
