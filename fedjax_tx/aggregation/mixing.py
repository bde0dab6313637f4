"""Mixing updates with their neighbours before they are aggregated."""

import jax.numpy as jnp

from fedjax_tx import check
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.aggregation.stacked import squared_distances, taking_part, weighted_sum
from fedjax_tx.types import Aggregator, Rows


def nearest_neighbor_mixing(num_byzantine: int) -> Aggregator:
    """Replaces each update by the mean of the n - f updates nearest to it, itself among them (NNM, arXiv 2302.01772).

    y_i = 1/(n - f) sum over the n - f updates j nearest to i of V_j. Good clients whose data differ come closer together, so
    that a robust rule behind it errs less: ``chain(nearest_neighbor_mixing(f), trimmed_mean(0.2))``. A good client's mixture is
    of good updates, or of bad ones no further away from it than a good one is. All clients count alike.

    No noise can stand behind it: one client is in the mixtures of others, and clipping those bounds one mixture, not all of them.

    The theorem asks for n > 2f; info holds ``mixing_too_few``, True in a round with fewer.

    Args:
      num_byzantine: f >= 0, how many clients may be bad.

    Errors: ``ValueError`` if a round can never have more than 2f clients; by ``chain``, with noise behind it.

    Example:
      >>> import fedjax_tx as ftx
      >>> mixed = ftx.aggregation.chain(nearest_neighbor_mixing(1), ftx.aggregation.median())
      >>> update, _, _ = ftx.aggregation.aggregate(mixed, {"w": jnp.array([1.0, 2.0, 6.0, 99.0])}, jnp.ones(4))
      >>> float(update["w"])
      3.0
    """
    check.integer("num_byzantine", num_byzantine, low=0)

    def mix(reduced: Rows, key):
        capacity = reduced.valid.size
        if capacity <= 2 * num_byzantine:
            check.fail_value(
                "num_byzantine", f"at most {(capacity - 1) // 2} for {capacity} clients a round (n > 2f)", num_byzantine
            )
        rows, valid = taking_part(reduced)
        ranks = jnp.argsort(jnp.argsort(squared_distances(rows, valid), axis=1), axis=1)
        near = (ranks < jnp.maximum(valid.sum() - num_byzantine, 1)) & valid
        mixed = weighted_sum(near / jnp.maximum(near.sum(1, keepdims=True), 1), rows)
        return Rows(mixed, jnp.where(valid, reduced.weights, 0), valid), {"mixing_too_few": valid.sum() <= 2 * num_byzantine}

    return stage(f"nearest_neighbor_mixing({num_byzantine})", change_rows=mix, reads_update=False)
