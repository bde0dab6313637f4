"""Maps of names: which tensors of a checkpoint make up which leaf of a tree of parameters, both ways.

A map is a list of ``Weight``s, one for each leaf, written out in full in the file of each family (``bert.py``, ...). Every
tensor of a checkpoint is read by a weight or is on the family's list of what is not used; whatever is missing, left over or of
another shape is an error that lists all of it.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_tx import check, tree
from fedjax_tx.types import PyTree


class Weight(NamedTuple):
    """One leaf and the tensors it is made of: ``leaf = concatenate([transpose(t, axes) for t in tensors], -1)``, reshaped.

    Args:
      path: of the leaf, with slashes. names: of the tensors; with a "{}" there is one for each layer, and the leaf stacks them.
      axes: how a tensor is transposed, None: not at all.
      shape: of the tensor after transposing where it differs from the leaf's, which is then reshaped.
    """

    path: str
    names: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None


def dense(path: str, *names: str) -> list[Weight]:
    """Returns the two weights of a dense layer stored as [outputs, inputs]; several names are side by side in one kernel.

    Example:
      >>> [weight.path for weight in dense("head", "classifier")]
      ['head/kernel', 'head/bias']
    """
    kernels = tuple(f"{name}.weight" for name in names)
    return [Weight(f"{path}/kernel", kernels, axes=(1, 0)), Weight(f"{path}/bias", tuple(f"{name}.bias" for name in names))]


def norm(path: str, name: str) -> list[Weight]:
    """Returns the two weights of a layer norm.

    Example:
      >>> [weight.names for weight in norm("final_norm", "ln_f")]
      [('ln_f.weight',), ('ln_f.bias',)]
    """
    return [Weight(f"{path}/scale", (f"{name}.weight",)), Weight(f"{path}/bias", (f"{name}.bias",))]


def embedding(path: str, name: str) -> Weight:
    """Returns the weight of a table of embeddings.

    Example:
      >>> embedding("token_embedding", "wte").path
      'token_embedding/embedding'
    """
    return Weight(f"{path}/embedding", (f"{name}.weight",))


def rename(
    tensors: Mapping[str, np.ndarray], *, prefix: str = "", endings: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Returns the tensors without ``prefix``, where a name has it, and with old ``endings`` of names replaced by new ones.

    Errors: ``ValueError`` if two tensors would then have one name.

    Example:
      >>> sorted(rename({"bert.a": np.zeros(1), "b.gamma": np.zeros(1)}, prefix="bert.", endings={".gamma": ".weight"}))
      ['a', 'b.weight']
    """
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(prefix)
        for old, new in (endings or {}).items():
            short = short.removesuffix(old) + new if short.endswith(old) else short
        if short in renamed:
            check.fail_value("the tensors", f"to hold {short!r} once", f"it again as {name!r}")
        renamed[short] = tensor
    return renamed


def read_weights(
    source: str, tensors: Mapping[str, np.ndarray], weights: Iterable[Weight], shapes: PyTree, unused: Iterable[str] = ()
) -> PyTree:
    """Returns a tree of parameters, float32, of the leaves and shapes of ``shapes``.

    Args:
      source: what the tensors are called in errors. tensors: by name. weights: one for each leaf of ``shapes``.
      unused: patterns, as of ``fnmatch``, of names that may be there and are not read.

    Errors: ``ValueError`` listing every tensor that is missing, left over or of another shape.

    Example:
      >>> import jax
      >>> shapes = {"head": {"kernel": jax.ShapeDtypeStruct((2, 3), "float32"), "bias": jax.ShapeDtypeStruct((3,), "float32")}}
      >>> tensors = {"classifier.weight": np.ones((3, 2), np.float32), "classifier.bias": np.zeros(3, np.float32)}
      >>> read_weights("a file", tensors, dense("head", "classifier"), shapes)["head"]["kernel"].shape
      (2, 3)
    """
    weights, leaves = list(weights), _leaves(shapes)
    assert sorted(weight.path for weight in weights) == sorted(leaves), "the map of names has one weight for each leaf"
    expected: dict[str, tuple[int, ...]] = {}
    for weight in weights:
        expected |= _tensor_shapes(weight, leaves[weight.path].shape)
    _check_tensors(source, {name: tensor.shape for name, tensor in tensors.items()}, expected, tuple(unused))
    return _nested({weight.path: jnp.asarray(_read(weight, tensors, leaves[weight.path].shape)) for weight in weights})


def write_weights(params: PyTree, weights: Iterable[Weight]) -> dict[str, np.ndarray]:
    """Returns the tensors that ``read_weights`` makes ``params`` of.

    Example:
      >>> sorted(write_weights({"final_norm": {"scale": np.ones(2), "bias": np.zeros(2)}}, norm("final_norm", "ln_f")))
      ['ln_f.bias', 'ln_f.weight']
    """
    leaves = _leaves(params)
    tensors: dict[str, np.ndarray] = {}
    for weight in weights:
        leaf = np.asarray(leaves[weight.path])
        rows = [leaf] if not _is_stacked(weight) else list(leaf)
        for layer, row in enumerate(rows):
            parts = np.split(row.reshape(weight.shape or row.shape), len(weight.names), axis=-1)
            for name, part in zip(weight.names, parts, strict=True):
                tensors[name.format(layer)] = part if weight.axes is None else part.transpose(np.argsort(weight.axes))
    return tensors


def _leaves(params: PyTree) -> dict[str, Any]:
    return {"/".join(path): _at(params, path) for path in tree.paths(params)}


def _at(params: PyTree, path: Iterable[str]) -> Any:
    for name in path:
        params = params[name]
    return params


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *branches, last = path.split("/")
        branch = nested
        for name in branches:
            branch = branch.setdefault(name, {})
        branch[last] = leaf
    return nested


def _is_stacked(weight: Weight) -> bool:
    return "{}" in weight.names[0]


def _tensor_names(weight: Weight, leaf_shape: tuple[int, ...]) -> list[list[str]]:
    """The names of each layer; one row of them where the leaf is not of layers."""
    num_rows = leaf_shape[0] if _is_stacked(weight) else 1
    return [[name.format(layer) for name in weight.names] for layer in range(num_rows)]


def _tensor_shapes(weight: Weight, leaf_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shape = weight.shape or (leaf_shape[1:] if _is_stacked(weight) else leaf_shape)
    part = (*shape[:-1], shape[-1] // len(weight.names))
    stored = part if weight.axes is None else tuple(part[axis] for axis in np.argsort(weight.axes))
    return {name: stored for names in _tensor_names(weight, leaf_shape) for name in names}


def _read(weight: Weight, tensors: Mapping[str, np.ndarray], leaf_shape: tuple[int, ...]) -> np.ndarray:
    axes = weight.axes
    rows = [
        np.concatenate([tensors[name] if axes is None else tensors[name].transpose(axes) for name in names], axis=-1)
        for names in _tensor_names(weight, leaf_shape)
    ]
    return np.stack(rows).reshape(leaf_shape)


def _check_tensors(source: str, found: Mapping, expected: Mapping, unused: tuple[str, ...]) -> None:
    """Both mappings are of shapes by name."""
    missing = [f"{name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    over = [f"{name} {found[name]}" for name in sorted(found.keys() - expected.keys()) if not _matches(name, unused)]
    shared = sorted(found.keys() & expected.keys())
    misshapen = [f"{name} {found[name]} in place of {expected[name]}" for name in shared if found[name] != expected[name]]
    lists = {"missing": missing, "not of the model": over, "of another shape": misshapen}
    told = [f"{len(names)} {what}: {', '.join(names)}" for what, names in lists.items() if names]
    if told:
        raise ValueError(f"expected the tensors of {source} to be the model's, got {'; '.join(told)}")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
