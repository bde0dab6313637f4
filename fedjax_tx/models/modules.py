"""Parts of the models that are not Transformers: dense and convolutional layers for ReLU networks, and modules as ``Model``s.

Kernels in front of a ReLU are drawn from N(0, 2 / inputs) ("Delving Deep into Rectifiers", arXiv 1502.01852), that of the
head from N(0, 1 / inputs); biases start at 0. Parameters are float32; the arithmetic is in ``dtype``, the head's sums float32.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from fedjax_tx import check
from fedjax_tx.models.convolution import Padding, convolve
from fedjax_tx.models.layers import Dense, merge
from fedjax_tx.types import Model, PyTree

HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
UNIT_NORMAL = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")


def dense(inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs) -> Dense:
    """Returns a dense layer in front of a ReLU.

    Example:
      >>> dense(4, 8, dtype=jnp.float32, rngs=nnx.Rngs(0)).kernel.shape
      (4, 8)
    """
    return Dense(inputs, outputs, dtype=dtype, kernel_init=HE_NORMAL, rngs=rngs)


def make_head(inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs, kernel_init=UNIT_NORMAL) -> Dense:
    """Returns the last dense layer; it hands on float32.

    Example:
      >>> make_head(4, 8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(jnp.ones((1, 4))).dtype
      dtype('float32')
    """
    options = {"dtype": dtype, "preferred_element_type": jnp.float32, "rngs": rngs}
    return Dense(inputs, outputs, kernel_init=kernel_init, **options)


class Convolution(nnx.Module):
    """A convolution, with a bias, of signals or images, by ``models.convolve``.

    Args:
      size: the kernel's, (time,) or (height, width). inputs, outputs: channels. stride, padding: of ``convolve``.
      use_bias: without one where a norm follows.

    Example:
      >>> Convolution((3, 3), 1, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 5, 1))).shape
      (2, 5, 5, 4)
    """

    def __init__(
        self,
        size: Sequence[int],
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        use_bias: bool = True,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.stride, self.padding, self.dtype = stride, padding, jnp.dtype(dtype)
        self.kernel = nnx.Param(HE_NORMAL(rngs.params(), (*size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "batch *space inputs"]) -> Float[Array, "batch *out outputs"]:
        """Convolves; in ``dtype``."""
        y = convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride, self.padding)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def look_up(
    table: nnx.Embed, ids: Int[Array, "*shape"], valid: Bool[Array, "*shape"] | None = None
) -> Float[Array, "*shape width"]:
    """Returns the row of each id: of one that the table lacks NaN, or row 0 where ``valid`` is False.

    Indexing alone takes ids below 0 from the table's end.

    Example:
      >>> table = nnx.Embed(3, 1, rngs=nnx.Rngs(0))
      >>> jnp.isnan(look_up(table, jnp.array([2, 3, -1, -1]), jnp.array([True, True, True, False])))[:, 0].tolist()
      [False, True, True, False]
    """
    ids, size = jnp.asarray(ids, jnp.int32), table.num_embeddings
    if valid is None:
        return table(jnp.where(ids < 0, size, ids))
    return table(jnp.where((ids >= 0) & (ids < size), ids, jnp.where(valid, size, 0)))


def as_model(make: Callable[[nnx.Rngs], nnx.Module], call: Callable[[nnx.Module, PyTree], Array]) -> Model:
    """Returns the two pure functions of a module without dropout.

    Args:
      make: draws the module. call: runs it on a model's inputs.

    Example:
      >>> layer = lambda rngs: dense(4, 8, dtype=jnp.float32, rngs=rngs)
      >>> model = as_model(layer, lambda layer, x: layer(x))
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
      (2, 8)
    """
    graph, _ = jax.eval_shape(lambda: nnx.split(make(nnx.Rngs(0))))

    def init(key: Key[Array, ""]) -> PyTree:
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)))[1])

    def apply(params: PyTree, inputs: PyTree, *, key: Key[Array, ""] | None = None) -> Float[Array, "batch ..."]:
        return call(merge(graph, params), inputs)

    return Model(init, apply)


def check_shape(name: str, x: Array, shape: Sequence[int | None]) -> None:
    """Raises unless x is [batch, \\*shape]; None stands for any size.

    Example:
      >>> check_shape("x", jnp.ones((2, 5, 3)), (None, 3))
    """
    have = jnp.shape(x)[1:]
    if len(have) != len(shape) or any(want not in (None, size) for want, size in zip(shape, have, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        check.fail_value(name, f"of shape [batch, {wanted}]", jnp.shape(x))


def check_layer_sizes(name: str, sizes: Sequence[int], *, empty: bool = True) -> tuple[int, ...]:
    """Returns the sizes of layers as a tuple, if they are integers >= 1.

    Example:
      >>> check_layer_sizes("hidden_sizes", [8, 4])
      (8, 4)
    """
    check.instance(name, sizes, (list, tuple), "a list of integers")
    if not sizes and not empty:
        check.fail_value(name, "to have an entry", sizes)
    return tuple(check.integer(name, size, low=1) for size in sizes)
