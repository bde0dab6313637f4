"""Robust aggregation of each coordinate by itself: the median and the trimmed mean (arXiv 1803.01498)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.aggregation.stacked import along, sort_coordinates, taking_part
from fedjax_tx.types import Aggregator, PyTree, Rows, Stacked


def median() -> Aggregator:
    """The median of each coordinate (arXiv 1803.01498); of an even number of clients, the mean of the two in the middle.

    Fewer bad clients than good ones cannot move a coordinate out of the range of the good ones' values.

    Example:
      >>> import fedjax_tx as ftx
      >>> update, _, _ = ftx.aggregation.aggregate(median(), {"w": jnp.array([1.0, 2.0, 1e9])}, jnp.ones(3))
      >>> float(update["w"])
      2.0
    """

    def decode(reduced: Rows, totals, state, key):
        return coordinate_median(*taking_part(reduced)), state, {}

    return stage("median()", reduce=Stacked(), decode=decode, reads_update=False)


def trimmed_mean(fraction: float | Array) -> Aggregator:
    """The mean of each coordinate without its least and its greatest values (arXiv 1803.01498).

    Of n clients that take part, k = floor(fraction * n) values are left out at either end. As many bad clients cannot move a
    coordinate out of the range of the good ones' values; one more can, as far as it likes.

    Args:
      fraction: 0 <= fraction < 0.5; at 0 it is the mean of all clients, whatever their weights.

    Example:
      >>> import fedjax_tx as ftx
      >>> updates = {"w": jnp.array([-1e9, 1.0, 3.0, 5.0, 1e9])}
      >>> update, _, _ = ftx.aggregation.aggregate(trimmed_mean(0.2), updates, jnp.ones(5))
      >>> float(update["w"])
      3.0
    """
    check.number("fraction", fraction, low=0, below=0.5)

    def decode(reduced: Rows, totals, state, key):
        rows, valid = taking_part(reduced)
        count, place = valid.sum(), jnp.arange(valid.size)
        # 0.2 of 5 is 1 in float32 too, whichever way it is rounded.
        trimmed = jnp.floor(fraction * count + 1e-4).astype(jnp.int32)
        kept = (place >= trimmed) & (place < count - trimmed)

        def leaf_mean(leaf):
            ranked = sort_coordinates(leaf, valid)
            return jnp.where(along(kept, leaf), ranked, 0).sum(0) / jnp.maximum(kept.sum(), 1)

        return jax.tree.map(leaf_mean, rows), state, {}

    return stage(f"trimmed_mean({fraction})", reduce=Stacked(), decode=decode, reads_update=False)


def coordinate_median(rows: PyTree, valid: Array) -> PyTree:
    """Returns the median of each coordinate over the rows that count, 0 where none does."""
    count = valid.sum()
    low, high = jnp.maximum(count - 1, 0) // 2, jnp.minimum(count // 2, valid.size - 1)

    def middle(leaf):
        ranked = sort_coordinates(leaf, valid)
        return jnp.where(count > 0, (ranked[low] + ranked[high]) / 2, 0)

    return jax.tree.map(middle, rows)
