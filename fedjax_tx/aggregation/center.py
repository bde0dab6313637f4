"""Robust aggregation towards a centre: the geometric median, and clipping around what was agreed on before."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_tx import check, tree
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.aggregation.coordinates import coordinate_median
from fedjax_tx.aggregation.stacked import squared_norms, taking_part, weighted_sum
from fedjax_tx.types import Aggregator, PyTree, Rows, Stacked


def geometric_median(*, num_iterations: int = 8, smoothing: float | Array = 1e-6) -> Aggregator:
    """The point of least summed distance to the updates, by the smoothed Weiszfeld algorithm of RFA (arXiv 1912.13445).

    v <- sum_i b_i V_i / sum_i b_i,   b_i = 1 / max(smoothing, ||v - V_i||), some times over. Fewer bad clients than good ones
    cannot move the geometric median far: with f of n, no further from any point than 2 (n - f) / (n - 2f) times what the
    furthest good client is.

    We deviate from the paper in two things. All clients count alike: it weighs them by numbers of examples, which a bad client
    could make up. And we start at the coordinates' medians, since from a mean that bad clients have moved far away a few
    iterations do not lead back.

    Args:
      num_iterations: >= 1. smoothing: > 0, the distance below which a client gets no more weight.

    Example:
      >>> import fedjax_tx as ftx
      >>> updates = {"w": jnp.array([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0], [2.0, 9e9]])}
      >>> update, _, _ = ftx.aggregation.aggregate(geometric_median(), updates, jnp.ones(4))
      >>> [round(float(x), 3) for x in update["w"]]
      [2.0, 1.0]
    """
    check.integer("num_iterations", num_iterations, low=1)
    check.number("smoothing", smoothing, above=0)

    def decode(reduced: Rows, totals, state, key):
        rows, valid = taking_part(reduced)

        def iterate(_, center):
            attraction = jnp.where(valid, 1 / jnp.maximum(smoothing, _distances(rows, center)), 0)
            total = attraction.sum()
            return weighted_sum(attraction / jnp.where(total > 0, total, 1), rows)

        return jax.lax.fori_loop(0, num_iterations, iterate, coordinate_median(rows, valid)), state, {}

    return stage(f"geometric_median({num_iterations}, {smoothing})", reduce=Stacked(), decode=decode, reads_update=False)


def centered_clip(max_norm: float | Array, *, num_iterations: int = 1) -> Aggregator:
    """Centred clipping (arXiv 2012.10333): the mean of the updates, each clipped around the aggregate of the round before.

    v <- v + 1/n sum_i (V_i - v) min(1, max_norm / ||V_i - v||), some times over, from the aggregate of the round before (0 in
    the first round), which is the aggregator's state. In a round the aggregate moves by ``num_iterations * max_norm`` at most,
    and f of n clients have at most 2 f/n of that in their hands.

    The paper clips the clients' momenta, which change less from round to round than updates do.

    Args:
      max_norm: > 0, the paper's tau. num_iterations: >= 1.

    Example:
      >>> import fedjax_tx as ftx
      >>> clip, updates = centered_clip(2.0), {"w": jnp.array([1.0, -1.0, 2.0, 9e9])}
      >>> update, state, _ = ftx.aggregation.aggregate(clip, updates, jnp.ones(4))
      >>> float(update["w"])
      1.0
      >>> update, state, _ = ftx.aggregation.aggregate(clip, updates, jnp.ones(4), state)
      >>> float(update["w"])  # 1 + (0 - 2 + 1 + 2) / 4
      1.25
    """
    check.number("max_norm", max_norm, above=0)
    check.integer("num_iterations", num_iterations, low=1)

    def decode(reduced: Rows, totals, state, key):
        rows, valid = taking_part(reduced)
        count = valid.sum()

        def iterate(_, center):
            distances = _distances(rows, center)
            share = jnp.where(valid, jnp.minimum(1, max_norm / jnp.where(distances > 0, distances, 1)), 0) / jnp.maximum(count, 1)
            # sum_i share_i (V_i - v), without another copy of the rows
            return jax.tree.map(lambda pull, v: pull + (1 - share.sum()) * v, weighted_sum(share, rows), center)

        center = jax.lax.fori_loop(0, num_iterations, iterate, state)
        nothing = jax.tree.map(jnp.zeros_like, state)
        return tree.where(count > 0, center, nothing), tree.where(count > 0, center, state), {}

    return stage(f"centered_clip({max_norm}, {num_iterations})", init=_zeros, reduce=Stacked(), decode=decode, reads_update=False)


def _zeros(update: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), update)


def _distances(rows: PyTree, center: PyTree) -> Float[Array, " client"]:
    """The L2 distance of each row from a centre."""
    return jnp.sqrt(squared_norms(jax.tree.map(jnp.subtract, rows, center)))
