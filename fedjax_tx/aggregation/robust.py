"""Aggregation that some bad clients can't move far: it looks at every update, so rows are kept (``Stacked``).

All clients that take part count alike: a weight says only whether a client takes part (> 0), since a bad client could claim any.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_tx import check
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.types import Aggregator, PyTree, Rows, Stacked


def median() -> Aggregator:
    """The median of each coordinate (arXiv 1803.01498); of an even number of clients, the mean of the two in the middle.

    Example:
      >>> import fedjax_tx as ftx
      >>> update, _, _ = ftx.aggregation.aggregate(median(), {"w": jnp.array([1.0, 2.0, 1e9])}, jnp.ones(3))
      >>> float(update["w"])
      2.0
    """

    def decode(reduced: Rows, totals, state, key):
        count = reduced.valid.sum()
        low, high = jnp.maximum(count - 1, 0) // 2, jnp.minimum(count // 2, reduced.valid.shape[0] - 1)

        def middle(leaf):
            valid = reduced.valid.reshape(-1, *[1] * (leaf.ndim - 1))
            rows = jnp.sort(jnp.where(valid, leaf.astype(jnp.float32), jnp.inf), axis=0)  # absent clients sort to the end
            return jnp.where(count > 0, (rows[low] + rows[high]) / 2, 0)

        return jax.tree.map(middle, reduced.summands), state, {}

    return stage("median()", reduce=Stacked(), decode=decode, reads_update=False)


def krum(num_byzantine: int) -> Aggregator:
    """Krum (arXiv 1703.02757): the one update that is closest to its n - f - 2 nearest neighbours.

    score(i) = sum over the n - f - 2 updates j closest to i of ||V_i - V_j||^2; the update of the least score is taken.
    The paper's theorem asks for n >= 2f + 3 clients; info holds ``krum_too_few`` (True in a round with fewer) and
    ``krum_chosen``, the slot in the cohort.

    Args:
      num_byzantine: f >= 0, how many clients may be bad.

    Errors: ``ValueError`` if a round can never have 2f + 3 clients.

    Example:
      >>> import fedjax_tx as ftx
      >>> updates = {"w": jnp.array([1.0, 1.1, 0.9, 1.05, 99.0])}
      >>> update, _, info = ftx.aggregation.aggregate(krum(1), updates, jnp.ones(5))
      >>> int(info["krum_chosen"])
      3
    """
    check.integer("num_byzantine", num_byzantine, low=0)

    def decode(reduced: Rows, totals, state, key):
        capacity = reduced.valid.shape[0]
        if capacity < 2 * num_byzantine + 3:
            expected = f"at most {(capacity - 3) // 2} for {capacity} clients a round (n >= 2f + 3)"
            check.fail_value("num_byzantine", expected, num_byzantine)
        count = reduced.valid.sum()
        scores = krum_scores(squared_distances(reduced.summands), reduced.valid, count - num_byzantine - 2)
        chosen = jnp.argmin(scores)
        aggregate = jax.tree.map(lambda leaf: jnp.where(count > 0, leaf[chosen].astype(jnp.float32), 0), reduced.summands)
        return aggregate, state, {"krum_chosen": chosen, "krum_too_few": count < 2 * num_byzantine + 3}

    return stage(f"krum({num_byzantine})", reduce=Stacked(), decode=decode, reads_update=False)


def squared_distances(rows: PyTree) -> Float[Array, "client client"]:
    """Returns the squared L2 distance between any two rows of a stacked pytree, over all leaves."""

    def leaf_distances(leaf):
        flat = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)
        return jax.lax.map(lambda row: jnp.square(flat - row).sum(1), flat)  # row by row: [client, size] of memory

    return sum(leaf_distances(leaf) for leaf in jax.tree.leaves(rows))


def krum_scores(
    distances: Float[Array, "client client"], valid: Bool[Array, " client"], num_neighbours
) -> Float[Array, " client"]:
    """Returns each row's sum of squared distances to its ``num_neighbours`` nearest valid others; inf for rows not valid."""
    size = valid.shape[0]
    usable = valid[None, :] & ~jnp.eye(size, dtype=bool) & jnp.isfinite(distances)
    nearest = jnp.sort(jnp.where(usable, distances, jnp.inf), axis=1)
    near = jnp.arange(size) < jnp.maximum(num_neighbours, 1)
    return jnp.where(valid, jnp.where(near, nearest, 0).sum(1), jnp.inf)
