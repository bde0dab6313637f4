"""Parameters that are added to a model's tree: where they go, how they are drawn, how the new model is made.

``lora``, ``adapters`` and ``prefix`` are the same step over any ``Model``: choose modules by patterns of their paths, and put a
subtree beside the leaves of each. What a subtree does is up to the module (``models.layers``).
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from fedjax_tx import check, prng, tree
from fedjax_tx.models.layers import EXTRAS
from fedjax_tx.types import Model, PyTree

Path = tuple[str, ...]


class Place(NamedTuple):
    """A module that an extra may stand beside: shape and dtype that the extra goes by, and the names already there."""

    shape: tuple[int, ...]
    dtype: np.dtype
    beside: frozenset[str]


def dense_kernels(path: Path, branch: dict) -> Place | None:
    """Returns the place at a dense layer: its kernel is [in, out], or [layer, in, out] below ``layers``.

    Kernels of convolutions have more axes.
    """
    kernel = branch.get("kernel")
    if kernel is None or isinstance(kernel, dict) or len(kernel.shape) != (3 if "layers" in path else 2):
        return None
    return Place(tuple(kernel.shape), kernel.dtype, frozenset(branch))


def places(
    model: Model,
    where: str | Sequence[str],
    place: Callable[[Path, dict], Place | None],
    kind: str,
    *,
    without: str | None = None,
) -> dict[Path, Place]:
    """Returns the modules of a model that ``place`` takes and whose path one of the patterns ``where`` matches.

    Errors: ``ValueError`` if the model has no such module, if a pattern matches none (some are named), or if one that is matched
    has the extra ``without`` already.

    Example:
      >>> from fedjax_tx.models import decoder
      >>> model = decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> ["/".join(path) for path in places(model, "*mlp*", dense_kernels, "dense layers")]
      ['layers/mlp_in', 'layers/mlp_out']
    """
    check.instance("model", model, Model, "a Model(init, apply)")
    patterns = (where,) if isinstance(where, str) else where
    check.instance("where", patterns, (list, tuple), "a pattern of paths, or a list of them")
    shapes = check.mapping("the model's parameters", jax.eval_shape(model.init, jax.random.key(0)))
    found = dict(_walk(shapes, (), place))
    paths = {path: "/".join(path) for path in sorted(found)}
    if not paths:
        check.fail_value("model", f"to have {kind}", sorted(shapes))
    if not patterns:
        check.fail_value("where", "to have at least one pattern", where)
    for pattern in patterns:
        check.instance("a pattern of where", pattern, str, "a string")
        if not any(fnmatchcase(name, pattern) for name in paths.values()):
            check.fail_value("where", f"to match {kind}, such as {', '.join(list(paths.values())[:8])}", pattern)
    chosen = {path: found[path] for path, name in paths.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    for path, at in chosen.items():
        if without in at.beside:
            check.fail_value("where", f"to match {kind} without {without!r} only", paths[path])
    return chosen


def _walk(branch: Mapping, path: Path, place):
    if (found := place(path, branch)) is not None:
        yield path, found
    for name, part in branch.items():
        if isinstance(part, dict) and name not in EXTRAS:
            yield from _walk(part, (*path, name), place)


def add(model: Model, chosen: dict[Path, Place], name: str, draw: Callable[[Path, Place, Key[Array, ""]], PyTree]) -> Model:
    """Returns the model whose ``init`` adds the subtree ``name`` at each place, each drawn by a key of its own path."""

    def init(key):
        params = model.init(key)
        for path, place in chosen.items():
            extra = draw(path, place, prng.fold(key, name, "/".join(path)))
            params = tree.change(params, path, partial(_with, name, extra))
        return params

    return Model(init, model.apply)


def _with(name: str, extra: PyTree, branch: dict) -> dict:
    return {**branch, name: extra}


def add_extras(params: PyTree, model: Model, key: Key[Array, ""]) -> PyTree:
    """Returns parameters of ``model``, one with adapters or prefixes, from those of the model without: pretrained weights.

    What ``params`` holds stays, and what it lacks of the extras of ``lora``, ``adapters`` and ``prefix`` is drawn. As
    ``init_params`` of a run it starts from there. With new adapters the model gives what it gave without; a new prefix changes
    that.

    Args:
      params: nested dicts, of the same model without extras, or with some of them. model: the one with. key: draws the extras.

    Errors: ``ValueError`` if the model has no extras, or naming a leaf that ``params`` lacks or has in another shape or dtype.

    Example:
      >>> from fedjax_tx.models import adapters, decoder, lora
      >>> plain = decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> pretrained = plain.init(jax.random.key(0))
      >>> params = add_extras(pretrained, adapters(lora(plain, rank=2), size=3), jax.random.key(1))
      >>> sorted(params["layers"]["mlp_out"])
      ['adapter', 'bias', 'kernel', 'lora']
    """
    check.instance("model", model, Model, "a Model(init, apply)")
    check.key("key", key)
    held, shapes = tree.paths(check.mapping("params", params)), jax.eval_shape(model.init, key)
    if not any(_is_extra(path) for path in tree.paths(shapes)):
        check.fail_value("the model's parameters", "to hold extras, as of lora, adapters or prefix", sorted(shapes))

    def is_new(path: Path) -> bool:
        return _is_extra(path) and path not in held

    check.same_tree("params", params, tree.partition(shapes, is_new)[1])
    return tree.join(jax.jit(lambda key: tree.partition(model.init(key), is_new)[0])(key), params)


def _is_extra(path: Path) -> bool:
    return not {"lora", "adapter", "prefix"}.isdisjoint(path)


def before(apply: Callable[..., PyTree], function: Callable[[PyTree], PyTree]) -> Callable[..., PyTree]:
    """Returns ``apply`` of a model with ``function`` of the parameters in their place."""
    return lambda params, inputs, *, key=None: apply(function(params), inputs, key=key)
