"""A ``vmap`` over the last axis that keeps it last, within a function too.

``jax.vmap(function, in_axes=-1)`` says where the axis is in arguments and results. In between it goes where the rules of each
operation put it, mostly to the front: a bias that is added to a product is enough. Where the axis lies decides how fast a CPU
is: behind few classes it makes the innermost loop long, in front of them each of many loops is short.

So each operation is vmapped by itself, from the last axis to the last axis. The transposes that this writes down XLA folds into
the operations beside them. Calls are looked into; loops and branches are vmapped whole, and inside them the axis goes where it
likes. Values that don't depend on what is mapped stay without the axis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}


def map_last(function: Callable, in_axes: tuple, size: int) -> Callable:
    """Returns ``function`` mapped over the last axis of its arguments; the results have it last too.

    Args:
      in_axes: for each argument -1, None, or a tree prefix of such. size: the length of the axis.

    Example:
      >>> map_last(lambda x, y: x @ y, (None, -1), 3)(jnp.ones((2, 4)), jnp.ones((4, 5, 3))).shape
      (2, 5, 3)
    """

    varies = jax.tree.map(lambda axis: axis is not None, in_axes, is_leaf=lambda axis: axis is None)

    def mapped(*arguments):
        flags = jax.tree.leaves(jax.tree.broadcast(varies, arguments))
        leaves, structure = jax.tree.flatten(arguments)
        examples = [leaf[..., 0] if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)]
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*jax.tree.unflatten(structure, examples))
        results = _run(closed, [*zip(leaves, flags, strict=True)], size)
        return jax.tree.unflatten(jax.tree.structure(shapes), [_spread(value, flag, size) for value, flag in results])

    return mapped


_Value = tuple[Any, bool]  # and whether it has the mapped axis


def _run(closed: core.ClosedJaxpr, arguments: list[_Value], size: int) -> list[_Value]:
    """The results of a program, operation by operation."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, [(value, False) for value in closed.consts], strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(name) -> _Value:
        return (name.val, False) if isinstance(name, core.Literal) else known[name]

    for equation in jaxpr.eqns:
        inputs = [read(name) for name in equation.invars]
        if any(flag for _, flag in inputs) and equation.primitive.name in _CALLS:
            results = _run(equation.params[_CALLS[equation.primitive.name]], inputs, size)
        else:
            results = _run_one(equation, known, size, jaxpr.debug_info)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(name) for name in jaxpr.outvars]


def _run_one(equation: core.JaxprEqn, known: dict, size: int, debug_info: Any) -> list[_Value]:
    """The results of one operation, vmapped where its inputs have the axis."""
    names = list(dict.fromkeys(name for name in equation.invars if not isinstance(name, core.Literal)))
    alone = core.Jaxpr([], names, equation.outvars, [equation], equation.effects, debug_info)
    function = core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))
    values, flags = [known[name][0] for name in names], [known[name][1] for name in names]
    if not any(flags):
        return [(value, False) for value in function(*values)]
    axes = tuple(-1 if flag else None for flag in flags)
    return [(value, True) for value in jax.vmap(function, axes, -1, axis_size=size)(*values)]


def _spread(value: Any, flag: bool, size: int) -> Any:
    """A result with the axis, though it depends on nothing that has it."""
    return value if flag else jnp.broadcast_to(jnp.expand_dims(value, -1), (*jnp.shape(value), size))
