"""Reductions by addition: the weighted mean, means over a denominator that is known beforehand, and the plain sum.

Means weigh each update, if only by 1: so integers, too, are summed as numbers, which only ``total`` adds in their own type.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation.chain import passed_on, stage, unchanged
from fedjax_tx.types import Aggregator, Linear


def mean(*, weighted: bool = True) -> Aggregator:
    """The mean of the updates: sum_k n_k update_k / sum_k n_k (FedAvg, arXiv 1602.05629), summed in float32.

    Over a total weight of 0 the aggregate is 0.

    Args:
      weighted: whether a client counts by its weight n_k, as a rule its number of examples; or all alike (a weight of 0 still
        takes no part), as where clients come the more often the larger they are (``ftx.data.weighted_cohorts``, ``exact=True``).

    Example:
      >>> import fedjax_tx as ftx
      >>> update, _, _ = ftx.aggregation.aggregate(mean(), {"w": jnp.array([1.0, 4.0])}, jnp.array([2.0, 1.0]))
      >>> float(update["w"])
      2.0
    """
    check.boolean("weighted", weighted)

    def decode(reduced, totals, state, key):
        scale = 1 / jnp.where(totals.weight > 0, totals.weight, 1)
        return jax.tree.map(lambda leaf: leaf * scale, reduced), state, {}

    name, encode = ("mean()", unchanged) if weighted else ("mean(weighted=False)", _count_once)
    return stage(name, encode=encode, reduce=Linear(weighted=True), decode=decode, reads_update=False)


def fixed_mean(denominator: float | Array, max_weight: float | Array | None = None) -> Aggregator:
    """The sum of the updates over a number that does not depend on who came: the mean of differential privacy.

    Each client counts once, whatever its weight (a weight of 0 still takes no part). One client changes the result by at most
    its own norm over the denominator, so noise can be calibrated behind it. A round to which nobody came gives 0, and counts.

    With ``max_weight`` a client counts by its weight up to that, min(n_k, max_weight), as arXiv 1710.06963 has it: closer to the
    weighted mean, but noise is then for the heaviest, max_weight times what one of weight 1 can change.

    Args:
      denominator: > 0, as a rule the expected number of clients, or with ``max_weight`` their expected bounded weights' sum:
        a number known beforehand, never one of the data that is to be protected.
      max_weight: > 0; None: all count alike.

    Example:
      >>> import fedjax_tx as ftx
      >>> update, _, _ = ftx.aggregation.aggregate(fixed_mean(4), {"w": jnp.array([1.0, 4.0])}, jnp.array([2.0, 1.0]))
      >>> float(update["w"])
      1.25
    """
    check.number("denominator", denominator, above=0)
    if max_weight is not None:
        check.number("max_weight", max_weight, above=0)
    heaviest = 1.0 if max_weight is None else max_weight

    def bounded(update, weight, shared, client_state, client_key, round_key):
        return update, jnp.minimum(weight, heaviest), client_state

    def decode(reduced, totals, state, key):
        return jax.tree.map(lambda leaf: leaf / denominator, reduced), state, {}

    return stage(
        f"fixed_mean({denominator}{'' if max_weight is None else f', max_weight={max_weight}'})",
        encode=_count_once if max_weight is None else bounded,
        reduce=Linear(weighted=True),
        decode=decode,
        releases_empty=True,
        reads_update=False,
        sensitivity=lambda bound: None if bound is None else bound * heaviest / denominator,
    )


def population_mean() -> Aggregator:
    """The sum of the cohort's updates over the number of all clients, there or not: sum_{k in S} update_k / N.

    How the server of SCAFFOLD (arXiv 1910.06378) follows the mean of what all clients remember, of whom a few changed it. Each
    client counts once, whatever its weight (a weight of 0 still takes no part).

    Example:
      >>> import fedjax_tx as ftx
      >>> update, _, _ = ftx.aggregation.aggregate(population_mean(), {"w": jnp.array([1.0, 4.0])}, jnp.array([2.0, 0.0]))
      >>> float(update["w"])
      0.5
    """

    def decode(reduced, totals, state, key):
        scale = 1 / jnp.maximum(totals.population, 1)
        return jax.tree.map(lambda leaf: leaf * scale, reduced), state, {}

    return stage("population_mean()", encode=_count_once, reduce=Linear(weighted=True), decode=decode, reads_update=False)


def total() -> Aggregator:
    """The sum of the updates, without weights; a client of weight 0 takes no part.

    Example:
      >>> import fedjax_tx as ftx
      >>> update, _, _ = ftx.aggregation.aggregate(total(), {"w": jnp.array([1.0, 4.0])}, jnp.array([2.0, 1.0]))
      >>> float(update["w"])
      5.0
    """
    return stage("total()", reduce=Linear(), decode=passed_on, reads_update=False)


def nothing() -> Aggregator:
    """``total()`` by another name, for passes of which only metrics and client states matter: their update is ``{}``.

    Example:
      >>> nothing().decode({}, None, (), None)
      ({}, (), {})
    """
    return total()._replace(name="nothing()")


def _count_once(update, weight, shared, client_state, client_key, round_key):
    """An ``encode`` by which each client that takes part weighs 1."""
    return update, (weight > 0).astype(jnp.float32), client_state
