"""Aggregation by addition: the weighted mean, and nothing at all."""

import jax
import jax.numpy as jnp

from fedjax_tx.types import Aggregator, Linear


def mean() -> Aggregator:
    """The weighted mean of FedAvg (arXiv 1602.05629): sum_k n_k update_k / sum_k n_k, summed in float32.

    A client of weight 0 adds nothing, whatever its update holds. Over a total weight of 0 the aggregate is 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> update, _, _ = ftx.aggregation.aggregate(mean(), {"w": jnp.array([1.0, 4.0])}, jnp.array([2.0, 1.0]))
      >>> float(update["w"])
      2.0
    """

    def encode(update, weight, shared, client_state, client_key, round_key):
        def scaled(leaf):
            return jnp.where(weight > 0, weight * leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), 0)

        return jax.tree.map(scaled, update), weight, client_state

    def decode(reduced, totals, state, key):
        scale = 1 / jnp.where(totals.weight > 0, totals.weight, 1)
        return jax.tree.map(lambda leaf: leaf * scale, reduced), state, {}

    return Aggregator(_no_state, _no_state, encode, _as_is, Linear(), decode)


def nothing() -> Aggregator:
    """Sums what it is given: for passes of which only metrics and client states matter, with the update ``{}``.

    Example:
      >>> nothing().decode({}, None, (), None)
      ({}, (), {})
    """

    def encode(update, weight, shared, client_state, client_key, round_key):
        return update, weight, client_state

    def decode(reduced, totals, state, key):
        return reduced, state, {}

    return Aggregator(_no_state, _no_state, encode, _as_is, Linear(), decode)


def _no_state(update):
    return ()


def _as_is(message, shared):
    return message
