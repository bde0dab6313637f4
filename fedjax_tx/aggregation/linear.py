"""Aggregation by addition: the weighted mean, and nothing at all."""

import jax
import jax.numpy as jnp

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

    return Aggregator(_no_state, _no_state, _unchanged, _as_is, Linear(weighted=True), decode, name="mean()")


def nothing() -> Aggregator:
    """Sums what it is given: for passes of which only metrics and client states matter, with the update ``{}``.

    Example:
      >>> nothing().decode({}, None, (), None)
      ({}, (), {})
    """

    def decode(reduced, totals, state, key):
        return reduced, state, {}

    return Aggregator(_no_state, _no_state, _unchanged, _as_is, Linear(), decode, name="nothing()")


def _unchanged(update, weight, shared, client_state, client_key, round_key):
    return update, weight, client_state


def _no_state(update):
    return ()


def _as_is(message, shared):
    return message
