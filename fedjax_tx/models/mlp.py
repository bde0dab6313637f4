"""Dense networks: logistic regression, and a perceptron of several layers with ReLU.

h_0 = x as one vector;   h_l = relu(h_{l-1} W_l + b_l);   logits = h_L W + b
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_tx import check
from fedjax_tx.models.inputs import check_dtype, check_sizes
from fedjax_tx.models.modules import UNIT_NORMAL, as_model, check_layer_sizes, check_shape, dense, make_head
from fedjax_tx.types import Model


class Perceptron(nnx.Module):
    """Dense layers with ReLU, ``hidden_0``, ``hidden_1`` ..., and a ``head``.

    Example:
      >>> Perceptron(4, (8,), 3, dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
      (2, 3)
    """

    def __init__(self, inputs: int, hidden_sizes, outputs: int, *, dtype, rngs: nnx.Rngs, head_init=UNIT_NORMAL):
        self.depth, self.dtype = len(hidden_sizes), jnp.dtype(dtype)
        for number, size in enumerate(hidden_sizes):
            setattr(self, f"hidden_{number}", dense(inputs, size, dtype=dtype, rngs=rngs))
            inputs = size
        self.head = make_head(inputs, outputs, dtype=dtype, kernel_init=head_init, rngs=rngs)

    def __call__(self, x):
        """Returns the logits [batch, outputs] of x [batch, ...]."""
        x = x.reshape(len(x), -1).astype(self.dtype)
        for number in range(self.depth):
            x = jax.nn.relu(getattr(self, f"hidden_{number}")(x))
        return self.head(x)


def mlp(input_shape: int | Sequence[int], num_classes: int, hidden_sizes: Sequence[int] = (128,), *, dtype=jnp.float32) -> Model:
    """Returns a perceptron: ``apply(params, x[batch, *input_shape]) -> logits[batch, classes]``, float32.

    Args:
      input_shape: of one example; it is read as one vector. num_classes: of the output. hidden_sizes: of the layers before it.
      dtype: of the arithmetic, float32 or bfloat16.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or value; in ``apply``, x has another shape.

    Example:
      >>> model = mlp((4, 2), 3, hidden_sizes=[16])
      >>> sorted(model.init(jax.random.key(0)))
      ['head', 'hidden_0']
    """
    hidden = check_layer_sizes("hidden_sizes", hidden_sizes)
    return _perceptron(input_shape, num_classes, hidden, dtype, UNIT_NORMAL)


def logistic_regression(input_shape: int | Sequence[int], num_classes: int, *, dtype=jnp.float32) -> Model:
    """Returns multinomial logistic regression; its one layer, ``head``, starts at 0, where all classes are equally likely.

    Args:
      input_shape, num_classes, dtype: as of ``mlp``.

    Raises:
      TypeError, ValueError: as of ``mlp``.

    Example:
      >>> model = logistic_regression(4, 3)
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((1, 4))).tolist()
      [[0.0, 0.0, 0.0]]
    """
    return _perceptron(input_shape, num_classes, (), dtype, nnx.initializers.zeros)


def _perceptron(input_shape, num_classes: int, hidden: tuple[int, ...], dtype, head_init) -> Model:
    listed = isinstance(input_shape, list | tuple)
    shape = check_layer_sizes("input_shape", input_shape) if listed else (check.integer("input_shape", input_shape, low=1),)
    check_sizes(num_classes=num_classes)
    check_dtype(dtype)
    options = {"dtype": dtype, "head_init": head_init}

    def make(rngs):
        size = 1
        for extent in shape:
            size *= extent
        return Perceptron(size, hidden, num_classes, rngs=rngs, **options)

    def call(network, x):
        check_shape("x", x, shape)
        return network(x)

    return as_model(make, call)
