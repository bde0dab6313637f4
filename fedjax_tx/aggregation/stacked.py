"""Rows of updates side by side: what rules that look at every client share.

All clients that take part count alike: a weight says only whether a client takes part (> 0), since a bad client could claim any.
A row that is not finite takes no part either, as in a round.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fedjax_tx.types import PyTree, Rows


def taking_part(reduced: Rows) -> tuple[PyTree, Bool[Array, " client"]]:
    """Returns the rows in float32, and which of them count; the others are 0."""
    valid = reduced.valid
    for leaf in jax.tree.leaves(reduced.summands):
        valid = valid & jnp.isfinite(leaf).all(tuple(range(1, leaf.ndim)))
    rows = jax.tree.map(lambda leaf: jnp.where(along(valid, leaf), leaf.astype(jnp.float32), 0), reduced.summands)
    return rows, valid


def along(vector: Array, leaf: Array) -> Array:
    """Returns a number for each client in a shape that broadcasts against a leaf [client, ...]."""
    return vector.reshape(-1, *[1] * (leaf.ndim - 1))


def weighted_sum(weights: Float[Array, "*some client"], rows: PyTree) -> PyTree:
    """Returns sum_i weights_i row_i of every leaf; of a matrix of weights, as many rows as it has."""
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1, precision="highest"), rows)


def squared_norms(rows: PyTree) -> Float[Array, " client"]:
    """Returns the squared L2 norm of each row, over all leaves."""
    norms = [jnp.square(leaf).reshape(leaf.shape[0], -1).sum(1) for leaf in jax.tree.leaves(rows)]
    return jnp.stack(norms).sum(0)


@jax.jit
def squared_distances(rows: PyTree, valid: Bool[Array, " client"]) -> Float[Array, "client client"]:
    """Returns the squared L2 distance between any two rows, over all leaves; inf where one of them does not count.

    ||x||^2 + ||y||^2 - 2 x.y: ten times faster on a CPU than differences, but it loses what is small beside the norms. So it is
    done twice: from the first time we know a row in the midst of the others, by which all are shifted the second time.
    """
    middle = jnp.argmin(_middle_distances(_by_products(rows), valid))
    distances = _by_products(jax.tree.map(lambda leaf: leaf - leaf[middle], rows))
    both = valid[:, None] & valid[None, :] & jnp.isfinite(distances)
    return jnp.where(both, distances, jnp.inf)


def _by_products(rows: PyTree) -> Float[Array, "client client"]:
    """Squared distances; 0 on the diagonal."""
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(rows)]
    products = sum(jnp.dot(leaf, leaf.T, precision="highest") for leaf in flat)
    norms = jnp.diagonal(products)
    distances = jnp.maximum(norms[:, None] + norms[None, :] - 2 * products, 0)
    return jnp.where(jnp.eye(norms.size, dtype=bool), 0, distances)


def _middle_distances(distances: Float[Array, "client client"], valid: Bool[Array, " client"]) -> Float[Array, " client"]:
    """The median of each row's distances to those that count; inf for a row that does not."""
    ranked = jnp.sort(jnp.where(valid & jnp.isfinite(distances), distances, jnp.inf), axis=1)
    return jnp.where(valid, ranked[:, jnp.maximum(valid.sum() - 1, 0) // 2], jnp.inf)


@jax.jit
def sort_coordinates(rows: Float[Array, "client ..."], valid: Bool[Array, " client"]) -> Float[Array, "client ..."]:
    """Returns each coordinate sorted over the clients, upwards; inf in the places of those that do not count, at the end.

    A bitonic network over whole rows: of 64 clients by 400,000 coordinates on 2 CPU cores it took 1.6 s where ``jnp.sort``,
    which sorts one short column after another, took 6.8 s.
    """
    place = jnp.arange(rows.shape[0])

    def compare(rows, partner):
        others = rows[partner]
        return jnp.where(along(place <= partner, rows), jnp.minimum(rows, others), jnp.maximum(rows, others)), None

    return jax.lax.scan(compare, jnp.where(along(valid, rows), rows, jnp.inf), _partners(rows.shape[0]))[0]


def _partners(size: int) -> np.ndarray:
    """[stage, place]: with whom each place is compared; the one in front keeps the smaller. A place may have itself.

    The network is that of the next power of two; places beyond ``size`` would hold inf for ever, so they are left out.
    """
    stages, place, block = [], np.arange(size), 2
    while block < 2 * size:
        mirrored = place ^ (block - 1)
        stages += [mirrored, *(place ^ (block >> halvings) for halvings in range(2, block.bit_length()))]
        block *= 2
    return np.reshape([np.where(other < size, other, place) for other in stages], (-1, size)).astype(np.int32)
