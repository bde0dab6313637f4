"""Bounding what one client can do: clip its update's norm, as a whole or layer by layer, or drop an update that is too long."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check, tree
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.types import Aggregator, PyTree


def clip_norm(max_norm: float | Array) -> Aggregator:
    """Scales an update down to the L2 norm ``max_norm`` if it is longer, all its leaves together (arXiv 1710.06963).

    update * min(1, max_norm / ||update||). An update that is not finite becomes 0.

    Args:
      max_norm: > 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> clipped = ftx.aggregation.chain(clip_norm(5.0), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(clipped, {"w": jnp.array([[6.0, 8.0]])}, [1.0])
      >>> update["w"].tolist()
      [3.0, 4.0]
    """
    check.number("max_norm", max_norm, above=0)

    def encode(update, weight, shared, client_state, client_key, round_key):
        return clipped(update, max_norm), weight, client_state

    return stage(f"clip_norm({max_norm})", encode=encode, sensitivity=lambda bound: max_norm)


def clip_layers(max_norm: float | Array | Mapping[str, float | Array]) -> Aggregator:
    """Clips the layers of an update, each to a norm of its own (per-layer clipping, arXiv 1710.06963, section 2).

    A layer of small updates is then not scaled down for the sake of one of large ones. What one client can change all together
    is the root of the sum of the squared norms, and that is what noise behind it is calibrated to. A layer that is not finite
    becomes 0.

    Args:
      max_norm: > 0, the norm of all together: each of the m leaves is clipped to max_norm / sqrt(m). Or a norm for each pattern
        of paths, ``{"delta/embed/*": 0.1, "*": 1.0}``: a leaf belongs to the first pattern that it matches, and the leaves of
        a pattern are clipped as one. Paths are those of the update (``delta`` is the model's part), names joined by "/", and "*"
        stands for any characters, "/" too.

    Errors: ``ValueError``, once the updates are known, for a pattern that no leaf is left for, or a leaf that matches none.

    Example:
      >>> import fedjax_tx as ftx
      >>> clipped = ftx.aggregation.chain(clip_layers({"a": 1.0, "*": 3.0}), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(clipped, {"a": jnp.array([5.0]), "b": jnp.array([-2.0])}, [1.0])
      >>> float(update["a"]), float(update["b"])
      (1.0, -2.0)
    """
    if isinstance(max_norm, Mapping):
        if not max_norm:
            check.fail_value("max_norm", "to have a norm for some pattern, such as '*'", dict(max_norm))
        for pattern, norm in check.mapping("max_norm", max_norm).items():
            check.number(f"max_norm[{pattern!r}]", norm, above=0)
        together = sum(norm**2 for norm in max_norm.values()) ** 0.5
    else:
        together = check.number("max_norm", max_norm, above=0)

    def init(update):
        _layers(update, max_norm)
        return ()

    def encode(update, weight, shared, client_state, client_key, round_key):
        leaves, structure = jax.tree.flatten(update)
        for numbers, norm in _layers(update, max_norm):
            for number, leaf in zip(numbers, clipped([leaves[number] for number in numbers], norm), strict=True):
                leaves[number] = leaf
        return jax.tree.unflatten(structure, leaves), weight, client_state

    return stage(f"clip_layers({max_norm})", init=init, encode=encode, sensitivity=lambda bound: together)


def clipped(update: PyTree, max_norm: float | Array) -> PyTree:
    """Returns update * min(1, max_norm / ||update||), the norm over all leaves together; 0 if that is not finite.

    A leaf of fewer bits than float32 is scaled by a little less, lest what it is rounded to be longer.
    """
    norm = tree.norm(update)
    scale = jnp.minimum(1, max_norm / jnp.where(norm > 0, norm, 1))

    def leaf(one):
        narrow = jnp.issubdtype(one.dtype, jnp.floating) and jnp.finfo(one.dtype).bits < 32
        own = jnp.where(scale < 1, scale * (1 - float(jnp.finfo(one.dtype).eps)), 1) if narrow else scale
        return jnp.where(jnp.isfinite(norm), one * own, 0).astype(one.dtype)

    return jax.tree.map(leaf, update)


def _layers(update: PyTree, max_norm: float | Array | Mapping[str, float | Array]) -> list[tuple[list[int], float | Array]]:
    """For each layer the numbers of its leaves, and the norm to which they are clipped together."""
    with_paths = jax.tree_util.tree_leaves_with_path(update)
    if not isinstance(max_norm, Mapping):
        return [([number], max_norm / len(with_paths) ** 0.5) for number in range(len(with_paths))]
    members: dict[str, list[int]] = {pattern: [] for pattern in max_norm}
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths]
    for number, path in enumerate(paths):
        first = next((pattern for pattern in max_norm if fnmatchcase(path, pattern)), None)
        if first is None:
            check.fail_value("max_norm", f"to have a pattern that {path!r} matches", list(max_norm))
        members[first].append(number)
    for pattern, numbers in members.items():
        if not numbers:
            check.fail_value("a pattern of max_norm", f"to be the first that one of {paths} matches", pattern)
    return [(members[pattern], norm) for pattern, norm in max_norm.items()]


def zero_norm(max_norm: float | Array) -> Aggregator:
    """Makes an update 0 if its L2 norm, of all its leaves together, exceeds ``max_norm`` or is not finite (cf. arXiv 1911.07963).

    Its client still counts in a mean. Where honest updates are shorter, what is longer is an error or an attack.

    Args:
      max_norm: > 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> safe = ftx.aggregation.chain(zero_norm(5.0), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(safe, {"w": jnp.array([[3.0, 4.0], [6.0, 8.0]])}, [1.0, 1.0])
      >>> update["w"].tolist()
      [1.5, 2.0]
    """
    check.number("max_norm", max_norm, above=0)

    def encode(update, weight, shared, client_state, client_key, round_key):
        short = tree.norm(update) <= max_norm
        return jax.tree.map(lambda leaf: jnp.where(short, leaf, 0).astype(leaf.dtype), update), weight, client_state

    return stage(f"zero_norm({max_norm})", encode=encode, sensitivity=lambda bound: max_norm)
