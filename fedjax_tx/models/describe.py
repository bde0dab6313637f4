"""What a model costs: its parameters, the arithmetic of an example, and what training it holds on to.

FLOPs are those of matrix products and convolutions, two for each multiplication with its addition, as papers count them: padding
counts, and a convolution is a direct one. They are counted in the traced program, a loop as often as it runs, since XLA's own
count takes the body of a scan once.
Activation memory is what the backward pass reads of the forward pass; XLA may hold less by computing some of it again.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_tx import check, tree
from fedjax_tx.models import winograd
from fedjax_tx.types import Model, PyTree


class Costs(NamedTuple):
    """What a model costs.

    num_parameters, parameter_bytes: of the whole model. Of each example: forward_flops; training_flops, forward and backward
    together, with every parameter trained; activation_bytes, which the backward pass reads.
    """

    num_parameters: int
    parameter_bytes: int
    forward_flops: int
    training_flops: int
    activation_bytes: int


def describe(model: Model, inputs: PyTree) -> Costs:
    """Returns what a model costs, without computing anything.

    Args:
      model: any; one with dropout is described as in evaluation.
      inputs: a batch of any size, arrays or shapes [batch, ...], as ``model.apply`` takes it. Only shapes count.

    Raises:
      TypeError: ``model`` is not a Model.
      ValueError: ``inputs`` has no array, or arrays without a batch axis; the model has a loop whose length depends on data.

    Example:
      >>> from fedjax_tx.models import logistic_regression
      >>> describe(logistic_regression(4, 3), jnp.ones((8, 4)))
      Costs(num_parameters=15, parameter_bytes=60, forward_flops=24, training_flops=48, activation_bytes=16)
    """
    check.instance("model", model, Model, "a Model")
    arrays = jax.tree.leaves(inputs)
    if not arrays or any(len(jnp.shape(array)) == 0 for array in arrays):
        check.fail_value("inputs", "to be arrays with a leading batch axis", jax.tree.map(jnp.shape, inputs))
    params = jax.eval_shape(model.init, jax.random.key(0))
    with winograd.never():
        one, two = (_costs_of_batch(model, params, inputs, size) for size in (1, 2))
    per_example = [double - single for single, double in zip(one, two, strict=True)]  # what all examples share drops out
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return Costs(size, tree.num_bytes(params), *per_example)


def _costs_of_batch(model: Model, params: PyTree, inputs: PyTree, size: int) -> tuple[int, int, int]:
    """FLOPs of a forward pass and of a training step, and the bytes kept between the two, for a batch of ``size`` examples."""
    batch = jax.tree.map(lambda array: jax.ShapeDtypeStruct((size, *jnp.shape(array)[1:]), jnp.result_type(array)), inputs)

    def forward(params, batch):
        return model.apply(params, batch)

    def train(params, batch):
        outputs, backward = jax.vjp(lambda params: model.apply(params, batch), params)
        return backward(jnp.ones_like(outputs))

    def keep(params, batch):
        return jax.vjp(lambda params: model.apply(params, batch), params)[1]

    flops = [_flops(jax.make_jaxpr(function)(params, batch).jaxpr) for function in (forward, train)]
    return flops[0], flops[1], tree.num_bytes(jax.eval_shape(keep, params, batch))


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [_flops(part) for part in _programs(equation)]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * (kernel.size // outputs)
        elif name == "scan":
            total += equation.params["length"] * sum(inner)
        elif name == "cond":
            total += max(inner)  # one branch runs: the dearest
        elif name == "while" and any(inner):
            check.fail_value("the model", "to have no products in a loop whose length depends on data", name)
        else:
            total += sum(inner)
    return total


def _programs(equation: Any) -> Iterator[Any]:
    """The programs within an equation: of a call, a loop or branches."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part
