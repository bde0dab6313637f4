"""Robust aggregation by distances between updates: Krum, multi-Krum and Bulyan.

All three need n rows side by side and n^2 distances; what is done with these costs little beside them.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_tx import check, tree
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.aggregation.coordinates import coordinate_median
from fedjax_tx.aggregation.stacked import along, sort_coordinates, squared_distances, taking_part, weighted_sum
from fedjax_tx.types import Aggregator, PyTree, Rows, Stacked


def krum(num_byzantine: int) -> Aggregator:
    """Krum (arXiv 1703.02757): the one update that is closest to its n - f - 2 nearest neighbours.

    score(i) = sum over the n - f - 2 updates j closest to i of ||V_i - V_j||^2; the update of the least score is taken. It is
    a good client's, or no further from one than sqrt(n - f - 2) times the greatest distance between good ones.
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
        _check_enough(num_byzantine, reduced, 2)
        rows, valid = taking_part(reduced)
        chosen = jnp.argmin(_scores_of(rows, valid, num_byzantine))
        info = {"krum_chosen": chosen, "krum_too_few": valid.sum() < 2 * num_byzantine + 3}
        return tree.take(rows, chosen), state, info

    return stage(f"krum({num_byzantine})", reduce=Stacked(), decode=decode, reads_update=False)


def multi_krum(num_byzantine: int, num_selected: int) -> Aggregator:
    """Multi-Krum (arXiv 1703.02757): the mean of the m updates whose scores, those of Krum, are least.

    Each of them is a good client's, or as near to one as Krum's choice. With m = 1 it is Krum. A round with fewer than
    m + f clients takes f fewer than it has, one at least. Info holds ``krum_too_few``, as ``krum`` does.

    Args:
      num_byzantine: f >= 0, how many clients may be bad. num_selected: m >= 1.

    Errors: ``ValueError`` if a round can never have 2f + 3 clients, or never m + f: then bad ones would be among the m.

    Example:
      >>> import fedjax_tx as ftx
      >>> updates = {"w": jnp.array([1.0, 1.25, 0.75, 1.5, 99.0])}
      >>> update, _, _ = ftx.aggregation.aggregate(multi_krum(1, 3), updates, jnp.ones(5))
      >>> float(update["w"])
      1.0
    """
    check.integer("num_byzantine", num_byzantine, low=0)
    check.integer("num_selected", num_selected, low=1)

    def decode(reduced: Rows, totals, state, key):
        _check_enough(num_byzantine, reduced, 2)
        capacity = reduced.valid.size
        if num_selected > capacity - num_byzantine:
            expected = f"at most {capacity - num_byzantine} for {capacity} clients a round (m <= n - f)"
            check.fail_value("num_selected", expected, num_selected)
        rows, valid = taking_part(reduced)
        ranks = jnp.argsort(jnp.argsort(_scores_of(rows, valid, num_byzantine)))
        chosen = valid & (ranks < jnp.clip(valid.sum() - num_byzantine, 1, num_selected))
        aggregate = weighted_sum(chosen / jnp.maximum(chosen.sum(), 1), rows)
        return aggregate, state, {"krum_too_few": valid.sum() < 2 * num_byzantine + 3}

    return stage(f"multi_krum({num_byzantine}, {num_selected})", reduce=Stacked(), decode=decode, reads_update=False)


def bulyan(num_byzantine: int) -> Aggregator:
    """Bulyan (arXiv 1802.07927): updates that Krum selects one after another, then a mean around each coordinate's median.

    Krum takes an update out of those that are left, n - 2f times; of each coordinate of these the n - 4f values nearest to
    their median are averaged. In each coordinate the result is no further from the good clients' range than that is wide.
    The paper asks for n >= 4f + 3 clients; info holds ``bulyan_too_few``, True in a round with fewer. What it leaves open: of an
    even number, the median here is the mean of the two in the middle; values that are equally near all count; and where of few
    that are left fewer than two neighbours would count, two do, lest each other's nearest tie.

    Args:
      num_byzantine: f >= 0, how many clients may be bad.

    Errors: ``ValueError`` if a round can never have 4f + 3 clients.

    Example:
      >>> import fedjax_tx as ftx
      >>> updates = {"w": jnp.array([0.0, 1.0, 2.0, 4.0, 6.0, 11.0, 99.0])}
      >>> update, _, _ = ftx.aggregation.aggregate(bulyan(1), updates, jnp.ones(7))
      >>> float(update["w"])
      4.0
    """
    check.integer("num_byzantine", num_byzantine, low=0)

    def decode(reduced: Rows, totals, state, key):
        _check_enough(num_byzantine, reduced, 4)
        rows, valid = taking_part(reduced)
        num_selected = jnp.maximum(valid.sum() - 2 * num_byzantine, 1)
        selected = valid & _take_out(squared_distances(rows, valid), valid, num_byzantine, num_selected)
        nearest = jnp.maximum(num_selected - 2 * num_byzantine, 1)
        aggregate = jax.tree.map(lambda leaf: _mean_near_median(leaf, selected, nearest), rows)
        return aggregate, state, {"bulyan_too_few": valid.sum() < 4 * num_byzantine + 3}

    return stage(f"bulyan({num_byzantine})", reduce=Stacked(), decode=decode, reads_update=False)


def _check_enough(num_byzantine: int, reduced: Rows, times: int) -> None:
    """Raises if a round can never have ``times`` * f + 3 clients."""
    capacity = reduced.valid.shape[0]
    if capacity < times * num_byzantine + 3:
        expected = f"at most {(capacity - 3) // times} for {capacity} clients a round (n >= {times}f + 3)"
        check.fail_value("num_byzantine", expected, num_byzantine)


def _scores_of(rows: PyTree, valid: Bool[Array, " client"], num_byzantine: int) -> Float[Array, " client"]:
    return _scores(squared_distances(rows, valid), valid, num_byzantine, 1)


def _scores(
    distances: Float[Array, "client client"], left: Bool[Array, " client"], num_byzantine: int, least: int
) -> Float[Array, " client"]:
    """Krum's scores among the rows that are left, inf for others; ``least`` neighbours count however few are left."""
    num_neighbours = jnp.maximum(left.sum() - num_byzantine - 2, least)
    others = left[None, :] & ~jnp.eye(left.size, dtype=bool)
    ranked = jnp.sort(jnp.where(others, distances, jnp.inf), axis=1)
    near = jnp.where(jnp.arange(left.size) < num_neighbours, ranked, 0)
    # A client that is alone has no neighbour, yet it is the one to take.
    finite = jnp.where(jnp.isfinite(near), near, jnp.finfo(jnp.float32).max / left.size)
    return jnp.where(left, finite.sum(1), jnp.inf)


@partial(jax.jit, static_argnames="num_byzantine")
def _take_out(distances, valid, num_byzantine: int, num_selected) -> Bool[Array, " client"]:
    """Who is among the ``num_selected`` rows that Krum takes out, one after another."""

    def take_next(_, left):
        return left.at[jnp.argmin(_scores(distances, left, num_byzantine, 2))].set(False)

    return ~jax.lax.fori_loop(0, num_selected, take_next, valid)


def _mean_near_median(leaf: Float[Array, "client ..."], selected: Bool[Array, " client"], nearest: Array) -> Array:
    """The mean of the ``nearest`` selected values that are nearest to their median, of each coordinate."""
    away = jnp.abs(leaf - coordinate_median(leaf, selected))
    radius = sort_coordinates(away, selected)[nearest - 1]
    near = along(selected, leaf) & (away <= radius)
    return jnp.where(near, leaf, 0).sum(0) / jnp.maximum(near.sum(0), 1)
