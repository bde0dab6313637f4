"""Run an aggregator on a stack of updates that is already there: no lanes, no round."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fedjax_tx import check, tree
from fedjax_tx.aggregation.at_server import aggregate_rows
from fedjax_tx.aggregation.chain import check_complete, check_max_clients
from fedjax_tx.types import Aggregator, PyTree, Rows, Totals


def aggregate(
    aggregator: Aggregator, stacked_updates: PyTree, weights, state: PyTree = None, key=None
) -> tuple[PyTree, PyTree, dict]:
    """Aggregates updates stacked along a leading client axis.

    Args:
      aggregator: any aggregator, such as ``ftx.aggregation.mean()``.
      stacked_updates: a pytree; every leaf is [client, ...].
      weights: [client], each >= 0.
      state: the aggregator's state from the call before; None starts anew.
      key: a JAX key for aggregators that draw random numbers; None stands for ``jax.random.key(0)``.

    Returns: (update, state, info). The update has the dtypes of the updates, but a mean of integers is in float32. Client states
    of encoders start anew in each call. Under ``jit`` or ``vmap`` what weights are is not checked.

    Errors: ``ValueError`` if a leaf or ``weights`` has another number of clients, a weight is negative or not finite, or there
    are more clients than the aggregator takes.

    Example:
      >>> from fedjax_tx.aggregation import mean
      >>> update, state, info = aggregate(mean(), {"w": jnp.array([[1.0], [3.0]])}, [1.0, 1.0])
      >>> update["w"].tolist()
      [2.0]
    """
    check_complete("aggregator", aggregator)
    weights = _checked_weights(weights)
    check_max_clients(aggregator, weights.shape[0])
    leaves = jax.tree_util.tree_leaves_with_path(stacked_updates)
    for path, leaf in leaves:
        if np.ndim(leaf) < 1 or np.shape(leaf)[0] != weights.shape[0]:
            where = f"stacked_updates{jax.tree_util.keystr(path)}"
            check.fail_value(where, f"to have a leading axis of {weights.shape[0]} clients", np.shape(leaf))
    key = jax.random.key(0) if key is None else check.key("key", key)
    stacked_updates = jax.tree.map(jnp.asarray, stacked_updates)
    return aggregate_arrays(aggregator, stacked_updates, jnp.asarray(weights), state, key)


def aggregate_arrays(aggregator: Aggregator, stacked_updates: PyTree, weights: Array, state: PyTree, key) -> tuple:
    """Does what ``aggregate`` does, without its checks: fit for ``jit``."""
    template = tree.take(stacked_updates, 0)
    state = aggregator.init(template) if state is None else state
    count = jnp.int32(weights.shape[0])
    rows, totals = Rows(stacked_updates, weights, weights > 0), Totals(weights.sum(), count, count, count)
    update, state, info = aggregate_rows(aggregator, rows, totals, state, key)

    def as_given(leaf, like):
        return leaf.astype(like.dtype) if jnp.issubdtype(like.dtype, jnp.floating) else leaf  # a mean of integers is none

    return jax.tree.map(as_given, update, template), state, dict(info)


def _checked_weights(weights):
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(weights))
    array = jnp.asarray(weights) if traced else np.asarray(weights)
    if array.dtype.kind not in "fiub":
        check.fail_type("weights", "an array of numbers, one for each client", weights)
    if array.ndim != 1 or array.size == 0:
        check.fail_value("weights", "to have shape [client] with at least one client", array.shape)
    if not traced and (not np.isfinite(array).all() or (array < 0).any()):
        bad = array[~np.isfinite(array) | (array < 0)][0]
        check.fail_value("weights", "to be finite and >= 0", float(bad))
    return array.astype(np.float32)
