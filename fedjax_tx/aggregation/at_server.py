"""Aggregation of updates that lie side by side at the server: each is encoded, received, reduced and decoded there."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fedjax_tx import prng, tree
from fedjax_tx.types import Aggregator, Linear, PyTree, Rows, Totals


def aggregate_rows(aggregator: Aggregator, rows: Rows, totals: Totals, state: PyTree, key: Key[Array, ""]) -> tuple:
    """Returns (aggregate, state, info) of rows of updates; what the aggregator remembers of clients starts anew.

    ``totals`` say how many clients were invited and how many there are; the rest of them is counted anew.
    """
    template = tree.take(rows.summands, 0)
    round_key, decode_key = prng.fold(key, "round"), prng.fold(key, "decode")
    client_keys = jax.vmap(lambda client: prng.fold(key, "client", client))(jnp.arange(rows.weights.shape[0]))

    def client(update, weight, client_key):
        client_state = aggregator.init_client(template)
        message, weight, _ = aggregator.encode(update, weight, state, client_state, client_key, round_key)
        return aggregator.receive(message, state), weight

    summands, weights = jax.vmap(client)(rows.summands, rows.weights, client_keys)
    valid = weights > 0
    if isinstance(aggregator.reduce, Linear):
        weighted = aggregator.reduce.weighted
        summands = jax.vmap(lambda summand, weight: tree.summand(summand, weight, weighted))(summands, weights)
        reduced = jax.tree.map(lambda leaf: leaf.sum(0, dtype=leaf.dtype), summands)
    else:
        reduced = Rows(summands, weights, valid)
    totals = totals._replace(weight=weights.sum(), clients=valid.sum())
    return aggregator.decode(reduced, totals, state, decode_key)
