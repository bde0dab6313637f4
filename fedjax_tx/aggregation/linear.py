"""Reductions by addition: the weighted mean, a mean over a fixed denominator, and nothing at all."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation.chain import passed_on, stage
from fedjax_tx.types import Aggregator, Linear


def mean() -> Aggregator:
    """The weighted mean of FedAvg (arXiv 1602.05629): sum_k n_k update_k / sum_k n_k, summed in float32.

    Over a total weight of 0 the aggregate is 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> update, _, _ = ftx.aggregation.aggregate(mean(), {"w": jnp.array([1.0, 4.0])}, jnp.array([2.0, 1.0]))
      >>> float(update["w"])
      2.0
    """

    def decode(reduced, totals, state, key):
        scale = 1 / jnp.where(totals.weight > 0, totals.weight, 1)
        return jax.tree.map(lambda leaf: leaf * scale, reduced), state, {}

    return stage("mean()", reduce=Linear(weighted=True), decode=decode, reads_update=False)


def fixed_mean(denominator: float | Array) -> Aggregator:
    """The sum of the updates over a number that does not depend on who came: the mean of differential privacy.

    Each client counts once, whatever its weight (a weight of 0 still takes no part). One client changes the result by at most
    its own norm over the denominator, so noise can be calibrated behind it. A round to which nobody came gives 0, and counts.

    Args:
      denominator: > 0, as a rule the expected number of clients.

    Example:
      >>> import fedjax_tx as ftx
      >>> update, _, _ = ftx.aggregation.aggregate(fixed_mean(4), {"w": jnp.array([1.0, 4.0])}, jnp.array([2.0, 1.0]))
      >>> float(update["w"])
      1.25
    """
    check.number("denominator", denominator, above=0)

    def encode(update, weight, shared, client_state, client_key, round_key):
        return update, (weight > 0).astype(jnp.float32), client_state

    def decode(reduced, totals, state, key):
        return jax.tree.map(lambda leaf: leaf / denominator, reduced), state, {}

    return stage(
        f"fixed_mean({denominator})",
        encode=encode,
        reduce=Linear(),
        decode=decode,
        releases_empty=True,
        reads_update=False,
        sensitivity=lambda bound: None if bound is None else bound / denominator,
    )


def nothing() -> Aggregator:
    """Sums what it is given: for passes of which only metrics and client states matter, with the update ``{}``.

    Example:
      >>> nothing().decode({}, None, (), None)
      ({}, (), {})
    """
    return stage("nothing()", reduce=Linear(), decode=passed_on, reads_update=False)
