"""Noise that is correlated over rounds: much of what one round adds, later rounds take back.

DP-FTRL (arXiv 2103.00039) in the form of matrix factorisation (arXiv 2202.08312, 2408.08868). What counts for training is the sum
of all updates so far, A x with A the matrix of running sums, x the rounds' aggregates. For a factorisation A = B C the server
releases B (C x + Z) = A (x + C^-1 Z): in each round the aggregate and the round's row of C^-1 Z, Z independent Gaussian noise. A
good C makes the noise of the running sums, B Z, small, while one client changes C x by little. Nothing depends on how clients are
drawn: privacy rests on how often each takes part at most (``ftx.data.separated_cohorts``). The server's optimiser is plain SGD or
SGD with momentum, which is linear: what Adam makes of correlated noise is private too, but its noise no longer cancels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.aggregation.noise import standard_normal
from fedjax_tx.types import Aggregator, Factorization


def correlated_noise(noise_multiplier: float | Array, factorization: Factorization) -> Aggregator:
    """Adds to the aggregate of round t the row t of C^-1 Z, where Z has the standard deviation noise_multiplier * S * s.

    s is the chain's bound on one client's influence in a round, S the factorisation's sensitivity: C x as a whole, over all
    rounds, changes by at most S * s. So a run is one Gaussian mechanism of the given noise multiplier. (Papers that quote the
    standard deviation over the clipping norm quote noise_multiplier * S.) It stands where ``gaussian_noise`` does, alone.

    Its state is the noise that is still to be taken back: a run that is resumed goes on with it.

    Args:
      noise_multiplier: >= 0. factorization: such as ``ftx.privacy.blt_factorization(rounds)``.

    Example:
      >>> import fedjax_tx as ftx
      >>> tree = ftx.privacy.tree_factorization(rounds=3, max_participations=1)
      >>> private = ftx.aggregation.chain(
      ...     ftx.aggregation.clip_norm(1.0), ftx.aggregation.fixed_mean(10), correlated_noise(0.5, tree))
      >>> update, state, info = ftx.aggregation.aggregate(private, {"w": jnp.zeros((10, 3))}, jnp.ones(10))
      >>> round(float(info["noise_stddev"]), 4)  # a client is in two nodes of the tree: 0.5 * 2 ** 0.5 * 1.0 / 10
      0.0707
    """
    check.number("noise_multiplier", noise_multiplier, low=0)
    check.instance("factorization", factorization, Factorization, "a Factorization, such as blt_factorization(rounds=100)")
    name = f"correlated_noise({noise_multiplier}, {factorization.name})"
    all_rounds = factorization.sensitivity(factorization.rounds, factorization.participation)

    def calibrate(bound: float | Array) -> Aggregator:
        stddev = noise_multiplier * all_rounds * bound

        def decode(reduced, totals, state, key):
            # Coefficients close to 1 decide what is taken back: no device may round them to fewer bits.
            with jax.default_matmul_precision("float32"):
                rows, state = factorization.correlate(standard_normal(reduced, key), state)
            noisy = jax.tree.map(lambda leaf, row: leaf + stddev * row, reduced, rows)
            return noisy, state, {"noise_stddev": jnp.float32(stddev)}

        return stage(
            name,
            init=factorization.init,
            decode=decode,
            sensitivity=lambda entering: entering,
            releases_empty=True,
            noise_multiplier=noise_multiplier,
            factorization=factorization,
        )

    return stage(name, calibrate=calibrate)
