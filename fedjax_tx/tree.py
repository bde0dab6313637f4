"""Small functions over pytrees that several layers share."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from fedjax_tx.types import PyTree


def take(tree: PyTree, index: Array | int) -> PyTree:
    """Returns row ``index`` of every leaf (rows, where ``index`` is an array)."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def put(tree: PyTree, index: Array | int, row: PyTree) -> PyTree:
    """Returns ``tree`` with row ``index`` of every leaf replaced by the leaf of ``row``, cast to the leaf's dtype."""

    def leaf(rows, value):
        return rows.at[index].set(value if value.dtype == rows.dtype else value.astype(rows.dtype))

    return jax.tree.map(leaf, tree, row)


def where(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    """Returns ``yes`` where the scalar ``condition`` holds and ``no`` elsewhere, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def subtract(left: PyTree, right: PyTree) -> PyTree:
    """Returns ``left - right``, leaf by leaf."""
    return jax.tree.map(jnp.subtract, left, right)


def zeros(shapes: PyTree, leading: tuple[int, ...] = ()) -> PyTree:
    """Returns zeros of the shapes and dtypes of ``shapes`` (arrays or ``jax.ShapeDtypeStruct``) behind ``leading`` axes."""

    def leaf(shape):
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape.shape, shape.dtype))
            return jax.random.wrap_key_data(jnp.zeros((*leading, *data.shape), data.dtype))
        return jnp.zeros((*leading, *shape.shape), shape.dtype)

    return jax.tree.map(leaf, shapes)


def summand(value: PyTree, weight: Array, weighted: bool) -> PyTree:
    """Returns what a client adds to a sum: its value in the dtype of sums, times its weight if ``weighted``; 0 at weight 0.

    At weight 0 the value is not looked at: 0 times an infinite update would be NaN.
    """

    def leaf(one):
        one = one.astype(sum_dtype(one.dtype))
        return jnp.where(weight > 0, weight.astype(one.dtype) * one if weighted else one, jnp.zeros_like(one))

    return jax.tree.map(leaf, value)


def sum_dtype(dtype: np.dtype) -> np.dtype:
    """Returns the dtype in which values of ``dtype`` are summed: float32 or wider for floats; integers keep their own."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def num_bytes(shapes: PyTree) -> int:
    """Returns the bytes of all leaves (arrays or ``jax.ShapeDtypeStruct``)."""
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(shapes))


def first_shapes(tree: PyTree) -> PyTree:
    """Returns the shapes of one row of every leaf."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
