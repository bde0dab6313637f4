"""Distributed differential privacy: each client adds its share of integer noise, and the server sees only the sum modulo 2^32.

The distributed discrete Gaussian mechanism (arXiv 2102.06387) and the Skellam mechanism (arXiv 2110.04995). A client's update of
norm at most c, best rotated before (``rotate``), becomes integers in units of the resolution r: each coordinate is rounded up or
down at random, without bias, and all anew until the norm of the integers is at most

    D = sqrt((c / r)^2 + d / 4 + c / r + sqrt(d) / 2),        d the number of coordinates

(the papers' bound for beta = exp(-1/2): at least a third of attempts pass). It adds integer noise of variance (z D)^2 / m to
each coordinate, m the number of clients, so that the sum has z D; and all is added modulo 2^32, where masks can hide it. Nobody
is trusted with an update nor with the noise of the sum, so long as the clients that are counted on all send their share. Where D
is much above c / r, rounding costs accuracy: choose r well below 2 c / sqrt(d).

``ftx.privacy.epsilon_of_discrete_gaussian`` and ``epsilon_of_skellam`` account for it. What leaves has no trace of an update in
its low bits, as sums of floats have (see ``noise.py``); the generator is still that of JAX, and chances are in single precision.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from fedjax_tx import check, prng
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.types import Aggregator, Linear, PyTree

_TRIES = 64  # of rounding: at 4 in 10 each, all fail once in 1e14
_MOST_POISSON = 4096  # above, JAX's sampler, in single precision, begins to differ from the distribution by what a test can see

Draw = Callable[[Key[Array, ""], Array, tuple[int, ...]], Int[Array, "..."]]


def discrete_gaussian_mean(noise_multiplier: float | Array, num_clients: int, resolution: float) -> Aggregator:
    """The mean of integer messages with discrete Gaussian noise of each client, behind a stage that bounds their norm.

    Args:
      noise_multiplier: z >= 0, standard deviation of the sum's noise over D, the bound on the norm of one client's integers.
      num_clients: m, how many clients a round has: each adds its share for so many, and the sum is divided by it. Of fewer, the
        noise is less than planned, as the info ``noise_share`` (clients that came over m) says.
      resolution: r > 0, the unit of the integers.

    Errors: ``ValueError``, when a chain is built, if nothing before it bounds the norm; when it is first used, or an experiment
    made ready, if sums could wrap around. Where that is first seen in a round (a norm that is learned), the mean is NaN.

    Example:
      >>> import fedjax_tx as ftx
      >>> private = ftx.aggregation.chain(
      ...     ftx.aggregation.clip_norm(1.0), ftx.aggregation.rotate(), discrete_gaussian_mean(0.0, 2, resolution=1e-4))
      >>> update, _, _ = ftx.aggregation.aggregate(private, {"w": jnp.array([[0.5, 0.0], [0.1, 0.2]])}, jnp.ones(2))
      >>> bool(jnp.allclose(update["w"], jnp.array([0.3, 0.1]), atol=2e-4))
      True
    """
    return _noisy_mean("discrete_gaussian_mean", draw_discrete_gaussian, math.inf, noise_multiplier, num_clients, resolution)


def skellam_mean(noise_multiplier: float | Array, num_clients: int, resolution: float) -> Aggregator:
    """The mean of integer messages with Skellam noise of each client (the difference of two Poisson numbers), as above.

    Sums of Skellam noise are Skellam noise, so the number of clients costs nothing in the accounting. A client's share has a
    variance of at most 8192 here, to which the sampler is exact enough; ``discrete_gaussian_mean`` has no such limit.

    Args:
      noise_multiplier, num_clients, resolution: as of ``discrete_gaussian_mean``.

    Errors: as of ``discrete_gaussian_mean``; where it is used, if a client's share of the noise is too large.

    Example:
      >>> import fedjax_tx as ftx
      >>> private = ftx.aggregation.chain(ftx.aggregation.clip_norm(1.0), skellam_mean(0.0, 2, resolution=1e-4))
      >>> update, _, _ = ftx.aggregation.aggregate(private, {"w": jnp.array([[0.5, 0.0], [0.1, 0.2]])}, jnp.ones(2))
      >>> bool(jnp.allclose(update["w"], jnp.array([0.3, 0.1]), atol=2e-4))
      True
    """
    return _noisy_mean("skellam_mean", draw_skellam, 2.0 * _MOST_POISSON, noise_multiplier, num_clients, resolution)


def rounded_norm(norm: float | Array, size: int) -> float | Array:
    """Returns D: the bound on the norm of ``size`` integers that numbers of norm at most ``norm`` are rounded to.

    Example:
      >>> rounded_norm(3.0, size=4)
      3.741...
    """
    check.number("norm", norm, low=0)
    check.integer("size", size, low=1)
    return (norm**2 + size / 4 + norm + size**0.5 / 2) ** 0.5


def draw_discrete_gaussian(key: Key[Array, ""], stddev: Float[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Draws integers k with chances in proportion to exp(-k^2 / (2 stddev^2)), by rejection (arXiv 2004.00010, Algorithm 3).

    Proposals are discrete Laplace of scale t = floor(stddev) + 1, where low + t high has the size, and both signs of 0 are one.
    """
    scale = jnp.floor(stddev).astype(jnp.int32) + 1
    deviation = jnp.maximum(stddev, 1e-6)  # without noise only 0 passes

    def propose(carry):
        number, drawn, done = carry
        keys = [prng.fold(key, number, name) for name in ("low", "high", "sign", "accept")]
        low = jax.random.randint(keys[0], shape, 0, scale)
        high = jnp.floor(jax.random.exponential(keys[1], shape)).astype(jnp.int32)
        length, negative = low + scale * high, jax.random.bernoulli(keys[2], 0.5, shape)
        surplus = low / scale + jnp.square((length - deviation**2 / scale) / deviation) / 2
        accepted = (jax.random.exponential(keys[3], shape) > surplus) & ~(negative & (length == 0))
        return number + 1, jnp.where(done, drawn, jnp.where(negative, -length, length)), done | accepted

    start = jnp.int32(0), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    return jax.lax.while_loop(lambda carry: ~carry[2].all(), propose, start)[1]


def draw_skellam(key: Key[Array, ""], stddev: Float[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Draws integers of a symmetric Skellam distribution: the difference of two Poisson numbers of mean stddev^2 / 2."""
    mean = jnp.square(stddev) / 2
    gains, losses = (jax.random.poisson(prng.fold(key, name), mean, shape, jnp.int32) for name in ("gain", "loss"))
    return gains - losses


def _noisy_mean(
    kind: str, draw: Draw, most_variance: float, noise_multiplier: float | Array, num_clients: int, resolution: float
) -> Aggregator:
    check.number("noise_multiplier", noise_multiplier, low=0)
    num_clients = check.integer("num_clients", num_clients, low=1)
    resolution = float(check.number("resolution", resolution, above=0))
    name = f"{kind}({noise_multiplier}, {num_clients}, {resolution})"
    given = {"reduce": Linear(), "sums_only": True, "max_clients": num_clients}

    def calibrate(bound: float | Array) -> Aggregator:
        def deviation(update: PyTree) -> tuple[float | Array, float | Array, bool | Array]:
            """D, the standard deviation of the sum's noise, in units of the resolution, and whether there is room for both."""
            norm = rounded_norm(bound / resolution, sum(leaf.size for leaf in jax.tree.leaves(update)))
            stddev = noise_multiplier * norm
            return norm, stddev, _check_room(name, norm, stddev, num_clients, most_variance)

        def encode(update, weight, shared, client_state, client_key, round_key):
            leaves, structure = jax.tree.flatten(update)
            norm, stddev, fits = deviation(update)
            # Without room zeros are sent, since no sampler draws such noise; the server then makes no numbers of the sum.
            own = jnp.where(fits, jnp.asarray(stddev / num_clients**0.5, jnp.float32), 0)
            units = [jnp.where(fits, leaf.astype(jnp.float32) / resolution, 0) for leaf in leaves]
            rounded = _round_within(prng.fold(client_key, "round"), units, norm)
            message = [
                (leaf.astype(jnp.int32) + draw(prng.fold(client_key, "noise", number), own, leaf.shape)).astype(jnp.uint32)
                for number, leaf in enumerate(rounded)
            ]
            return jax.tree.unflatten(structure, message), (weight > 0).astype(jnp.float32), client_state

        def decode(reduced, totals, state, key):
            share = jnp.asarray(totals.clients, jnp.float32) / num_clients
            _, stddev, fits = deviation(reduced)
            unit = jnp.where(fits, resolution / num_clients, jnp.nan)
            mean = jax.tree.map(lambda leaf: leaf.astype(jnp.int32).astype(jnp.float32) * unit, reduced)
            return mean, state, {"noise_stddev": stddev * jnp.sqrt(share) * unit, "noise_share": share}

        return stage(name, encode=encode, decode=decode, **given)

    return stage(name, calibrate=calibrate, **given)


def _round_within(key: Key[Array, ""], numbers: list[Array], bound: float | Array) -> list[Array]:
    """Numbers rounded up or down at random without bias, and anew until their norm is at most ``bound``."""
    numbers = [jnp.nan_to_num(leaf, nan=0.0, posinf=0.0, neginf=0.0) for leaf in numbers]
    floors = [jnp.floor(leaf) for leaf in numbers]

    def attempt(carry):
        tries, _ = carry
        keys = [prng.fold(key, tries, place) for place in range(len(numbers))]
        up = [jax.random.uniform(own, leaf.shape) < leaf - low for own, leaf, low in zip(keys, numbers, floors, strict=True)]
        return tries + 1, [low + one for low, one in zip(floors, up, strict=True)]

    def too_long(leaves):
        return sum(jnp.square(leaf).sum() for leaf in leaves) > jnp.square(bound)

    tried = jax.lax.while_loop(lambda carry: too_long(carry[1]) & (carry[0] < _TRIES), attempt, attempt((jnp.int32(0), floors)))[
        1
    ]
    # Towards 0 no number grows: the bound holds whatever comes.
    return [jnp.where(too_long(tried), jnp.trunc(leaf), one) for leaf, one in zip(numbers, tried, strict=True)]


def _check_room(name: str, norm, stddev, num_clients: int, most_variance: float) -> bool | Array:
    """Whether an int32 and a float32 hold it all: sums may reach 20 standard deviations. Refused where the numbers are known."""
    fits = (norm <= 2.0**22) & (num_clients * norm + 20 * stddev < 2.0**31)
    quiet = stddev**2 / num_clients <= most_variance
    if isinstance(fits & quiet, jax.core.Tracer):
        return fits & quiet
    if not fits:
        check.fail_value(f"the resolution of {name}", "to be coarser, lest a sum reach 2^31 or a coordinate 2^22", float(norm))
    if not quiet:
        expected = f"to be coarser, for a client's noise of variance <= {most_variance:g}; discrete_gaussian_mean has no limit"
        check.fail_value(f"the resolution of {name}", expected, float(stddev**2 / num_clients))
    return True
