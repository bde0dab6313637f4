"""Small functions over pytrees that several layers share."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fedjax_tx.types import PyTree


def take(tree: PyTree, index: Array | int) -> PyTree:
    """Returns row ``index`` of every leaf (rows, where ``index`` is an array)."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def put(tree: PyTree, index: Array | int, row: PyTree) -> PyTree:
    """Returns ``tree`` with row ``index`` of every leaf replaced by the leaf of ``row``, cast to the leaf's dtype."""

    def leaf(rows, value):
        return rows.at[index].set(value if value.dtype == rows.dtype else value.astype(rows.dtype))

    return jax.tree.map(leaf, tree, row)


def where(condition: Bool[Array, "..."], yes: PyTree, no: PyTree) -> PyTree:
    """Returns ``yes`` where ``condition`` holds and ``no`` elsewhere, leaf by leaf; the same leaf in both stays.

    The condition is a scalar, or has the last axes of each leaf (the settings of a sweep).
    """
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), yes, no)


def subtract(left: PyTree, right: PyTree) -> PyTree:
    """Returns ``left - right``, leaf by leaf."""
    return jax.tree.map(jnp.subtract, left, right)


def cast(tree: PyTree, like: PyTree) -> PyTree:
    """Returns ``tree`` in the dtypes of ``like``, leaf by leaf: sums come in float32, parameters may be narrower."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def zero_sums(shapes: PyTree, weighted: bool = False) -> PyTree:
    """Returns zeros of the shapes of ``shapes`` in the dtypes in which such values are summed, ``weighted`` or as they are."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, sum_dtype(leaf.dtype, weighted)), shapes)


def zeros(shapes: PyTree, leading: tuple[int, ...] = ()) -> PyTree:
    """Returns zeros of the shapes and dtypes of ``shapes`` (arrays or ``jax.ShapeDtypeStruct``) behind ``leading`` axes."""

    def leaf(shape):
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape.shape, shape.dtype))
            return jax.random.wrap_key_data(jnp.zeros((*leading, *data.shape), data.dtype))
        return jnp.zeros((*leading, *shape.shape), shape.dtype)

    return jax.tree.map(leaf, shapes)


def summand(value: PyTree, weight: Array, weighted: bool) -> PyTree:
    """Returns what a client adds to a sum: its value in the dtype of such sums, times its weight if ``weighted``; 0 at weight 0.

    At weight 0 the value is not looked at: 0 times an infinite update would be NaN.
    """

    def leaf(one):
        one = one.astype(sum_dtype(one.dtype, weighted))
        return jnp.where(weight > 0, weight.astype(one.dtype) * one if weighted else one, jnp.zeros_like(one))

    return jax.tree.map(leaf, value)


def norm(tree: PyTree) -> Float[Array, ""]:
    """Returns the L2 norm over all leaves together, in float32."""
    return jnp.sqrt(sum(jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(tree)))


def all_finite(tree: PyTree, kept: int = 0) -> Bool[Array, "..."]:
    """Returns whether every number of every leaf is finite, for each index of the last ``kept`` axes; integers always are."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(leaf).all(tuple(range(leaf.ndim - kept))) for leaf in floats], bool).all(0)


def sum_dtype(dtype: np.dtype, weighted: bool = False) -> np.dtype:
    """Returns the dtype in which values of ``dtype`` are summed: float32 or wider; integers keep theirs if not ``weighted``."""
    return jnp.promote_types(dtype, jnp.float32) if weighted or jnp.issubdtype(dtype, jnp.floating) else dtype


def num_bytes(shapes: PyTree) -> int:
    """Returns the bytes of all leaves (arrays or ``jax.ShapeDtypeStruct``)."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def first_shapes(tree: PyTree) -> PyTree:
    """Returns the shapes of one row of every leaf."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)


def paths(tree: PyTree) -> set[tuple[str, ...]]:
    """Returns the path of every leaf of nested dicts.

    Example:
      >>> sorted(paths({"a": {"x": 1, "y": 2}, "b": 3}))
      [('a', 'x'), ('a', 'y'), ('b',)]
    """
    found: set[tuple[str, ...]] = set()
    for name, part in tree.items():
        below = paths(part) if isinstance(part, dict) else {()}
        found |= {(str(name), *path) for path in below}
    return found


def partition(tree: PyTree, chosen: Callable[[tuple[str, ...]], bool]) -> tuple[dict, dict]:
    """Returns (the leaves whose path is ``chosen``, the others), two nested dicts without empty branches.

    ``tree`` is nested dicts; whatever is not a dict is a leaf, and so is one that is empty (a mark, as ``models.layers`` knows
    them). ``join`` puts the two together again.

    Example:
      >>> partition({"a": {"x": 1, "y": 2}, "b": {"y": 3}}, lambda path: "x" in path)
      ({'a': {'x': 1}}, {'a': {'y': 2}, 'b': {'y': 3}})
    """

    def walk(branch: dict, path: tuple[str, ...], wanted: bool) -> dict:
        kept = {}
        for name, part in branch.items():
            here = (*path, str(name))
            if isinstance(part, dict) and part:
                if below := walk(part, here, wanted):
                    kept[name] = below
            elif bool(chosen(here)) == wanted:
                kept[name] = part
        return kept

    return walk(tree, (), True), walk(tree, (), False)


def change(tree: PyTree, path: tuple[str, ...], function: Callable[[PyTree], PyTree]) -> PyTree:
    """Returns ``tree`` with ``function`` of what is at ``path`` in its place; nothing else is copied or touched.

    Example:
      >>> change({"a": {"x": 1}, "b": 2}, ("a", "x"), lambda x: x + 1)
      {'a': {'x': 2}, 'b': 2}
    """
    if not path:
        return function(tree)
    return {**tree, path[0]: change(tree[path[0]], path[1:], function)}


def join(trainable: PyTree, frozen: PyTree) -> PyTree:
    """Returns a model's trainable and frozen part as one tree, or as the pair where that is no tree of a model.

    Nested dicts without a common leaf are merged; where nothing is frozen, the trainable part is all there is.

    Example:
      >>> join({"a": {"x": 1}}, {"a": {"y": 2}, "b": 3})
      {'a': {'x': 1, 'y': 2}, 'b': 3}
      >>> join({"a": 1}, {"a": 2})
      ({'a': 1}, {'a': 2})
    """
    if not jax.tree.leaves(frozen):
        return trainable
    merged = _merge(trainable, frozen)
    disjoint = len(jax.tree.leaves(merged)) == len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(frozen))
    return merged if disjoint else (trainable, frozen)


def _merge(left: PyTree, right: PyTree) -> PyTree:
    """Merges nested dicts; where both hold a leaf, the right one's."""
    if not isinstance(left, dict) or not isinstance(right, dict):
        return right
    return {**left, **{name: _merge(left[name], part) if name in left else part for name, part in right.items()}}


@jax.tree_util.register_static
@dataclass(frozen=True)
class Structure:
    """What a pytree of arrays looks like, without the arrays: turns such trees into one vector and back.

    A state that JAX does not see as an array, so ``vmap`` and ``jit`` carry it along at no cost.

    Example:
      >>> structure = Structure.of({"a": jnp.zeros(2), "b": jnp.zeros((1, 3))})
      >>> structure.size, structure.unravel(jnp.arange(5.0))["b"].tolist()
      (5, [[2.0, 3.0, 4.0]])
    """

    treedef: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tree: PyTree) -> "Structure":
        """Returns the structure of a tree of arrays, or of anything with shapes."""
        leaves, treedef = jax.tree.flatten(tree)
        return cls(treedef, tuple(tuple(leaf.shape) for leaf in leaves))

    @property
    def size(self) -> int:
        """How many numbers such a tree holds."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def ravel(self, tree: PyTree) -> Float[Array, "size"]:
        """Returns all numbers of a tree of this structure as one float32 vector."""
        return jnp.concatenate([leaf.reshape(-1).astype(jnp.float32) for leaf in jax.tree.leaves(tree)])

    def unravel(self, vector: Float[Array, "size"]) -> PyTree:
        """Returns the tree that ``ravel`` made a vector of, in float32."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        parts = jnp.split(vector, ends)
        leaves = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)
