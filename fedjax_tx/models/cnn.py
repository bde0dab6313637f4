"""Convolutional networks for images and for signals: convolution, ReLU and pooling, layer by layer; then dense layers.

    h_0 = x;   h_l = pool_l(relu(h_{l-1} * K_l + b_l));   logits = MLP(summary(h_L))

The defaults are the network for EMNIST of "Adaptive Federated Optimization" (arXiv 2003.00295) without its dropout. Signals may
come with ``valid``: what is not valid is 0 for every convolution, as the padding beyond a signal's ends, is no part of a mean,
and can't win a maximum, since a ReLU has no output below 0. So a signal that is padded behind its end has the same logits.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_tx import check
from fedjax_tx.models.inputs import check_dtype, check_sizes, read_inputs, read_valid
from fedjax_tx.models.mlp import Perceptron
from fedjax_tx.models.modules import Convolution, as_model, check_layer_sizes, check_shape
from fedjax_tx.models.pooling import masked_mean
from fedjax_tx.types import Model


class _Network(Perceptron):
    """Convolutions ``convolution_0`` ..., and a perceptron behind them."""

    def __init__(self, input_shape, num_classes, channels, *, kernel_size, pool, padding, hidden_sizes, summary, dtype, rngs):
        space, inputs = input_shape[:-1], input_shape[-1]
        self.padding, self.pool, self.summary, self.kernel_size = padding, pool, summary, kernel_size
        for number, outputs in enumerate(channels):
            size = (kernel_size,) * len(space)
            layer = Convolution(size, inputs, outputs, padding=padding, dtype=dtype, rngs=rngs)
            setattr(self, f"convolution_{number}", layer)
            inputs = outputs
            space = [_pooled(_convolved(extent, kernel_size, padding), pool[number]) for extent in space]
        features = inputs
        if summary == "flatten":
            for extent in space:
                features *= extent
        super().__init__(features, hidden_sizes, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x, valid=None):
        for number, size in enumerate(self.pool):
            x = _clear(x, valid)
            x = jax.nn.relu(getattr(self, f"convolution_{number}")(x))
            if valid is not None and self.padding == "VALID":  # a window counts where all of it does
                valid = _whole_windows(valid, self.kernel_size)
            x = _clear(x, valid)
            if size > 1:
                x = max_pool(x, size)
                valid = None if valid is None else _any_of(valid, size)
        if self.summary == "mean":
            x = masked_mean(x.reshape(len(x), -1, x.shape[-1]), valid)
        return super().__call__(x)


def _convolved(extent: int, kernel_size: int, padding: str) -> int:
    return extent if padding == "SAME" else extent - kernel_size + 1


def _pooled(extent: int, size: int) -> int:
    return -(-extent // size)


def _clear(x: Float[Array, "batch ..."], valid: Bool[Array, "batch time"] | None) -> Float[Array, "batch ..."]:
    return x if valid is None else jnp.where(valid[..., None], x, 0)


def _whole_windows(valid: Bool[Array, "batch time"], size: int) -> Bool[Array, "batch out"]:
    """Where all ``size`` positions from each one on are valid."""
    out = valid.shape[1] - size + 1
    return jnp.stack([valid[:, offset : offset + out] for offset in range(size)]).all(0)


def _any_of(valid: Bool[Array, "batch time"], size: int) -> Bool[Array, "batch out"]:
    return max_pool(valid.astype(jnp.float32)[..., None], size)[..., 0] > 0


def max_pool(x: Float[Array, "batch *space channels"], size: int) -> Float[Array, "batch *out channels"]:
    """Returns the greatest of each ``size`` (squared, of images) neighbours, none of which is below 0.

    What is left over at an end is a smaller window. A maximum over split axes has a faster gradient on a CPU than a window's.

    Example:
      >>> max_pool(jnp.array([[[1.0], [3.0], [2.0]]]), 2).tolist()
      [[[3.0], [2.0]]]
    """
    space = x.shape[1:-1]
    pads = [(0, _pooled(extent, size) * size - extent) for extent in space]
    if any(after for _, after in pads):
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    split = [part for extent in space for part in (_pooled(extent, size), size)]
    return jnp.max(x.reshape(len(x), *split, x.shape[-1]), axis=tuple(range(2, 2 * len(space) + 1, 2)))


def cnn(
    input_shape: Sequence[int],
    num_classes: int,
    channels: Sequence[int] = (32, 64),
    *,
    kernel_size: int = 3,
    pool: int | Sequence[int] = (1, 2),
    padding: str = "VALID",
    hidden_sizes: Sequence[int] = (128,),
    summary: str = "flatten",
    dtype=jnp.float32,
) -> Model:
    """Returns a network of convolutions: ``apply(params, x[batch, *input_shape]) -> logits[batch, classes]``, float32.

    The model of signals also takes ``{"x", "valid"[batch, time]}``, to be read as ``inputs=["x", "valid"]`` by a task.

    Args:
      input_shape: (height, width, channels) of images, (time, channels) of signals.
      num_classes: of the output.
      channels: of the convolutions, one after another.
      kernel_size: along each axis.
      pool: the maximum is taken over so many pixels along each axis behind a convolution, 1: none; for each of them, or for all.
      padding: "VALID", or "SAME" (as many outputs as inputs).
      hidden_sizes: of the dense layers before the head, with ReLU.
      summary: what the dense layers read: all outputs ("flatten"), or their mean over space ("mean"), which takes inputs of any
        extent.
      dtype: of the arithmetic, float32 or bfloat16.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or value; in ``apply``, an input has the wrong shape or is unknown.

    Example:
      >>> model = cnn((28, 28, 1), 62)
      >>> params = model.init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      1206590
      >>> model.apply(params, jnp.ones((2, 28, 28, 1))).shape
      (2, 62)
    """
    shape, channels = check_layer_sizes("input_shape", input_shape), check_layer_sizes("channels", channels, empty=False)
    if len(shape) not in (2, 3):
        check.fail_value("input_shape", "to be (time, channels) or (height, width, channels)", shape)
    check_sizes(num_classes=num_classes, kernel_size=kernel_size)
    pool = [pool] * len(channels) if isinstance(pool, int) else pool
    pool = check_layer_sizes("pool", pool)
    if len(pool) != len(channels):
        check.fail_value("pool", f"to have an entry for each of {len(channels)} convolutions", pool)
    check.one_of("padding", padding, ("SAME", "VALID"))
    check.one_of("summary", summary, ("flatten", "mean"))
    hidden = check_layer_sizes("hidden_sizes", hidden_sizes)
    check_dtype(dtype)
    _check_fits(shape[:-1], kernel_size, pool, padding)
    options = {"kernel_size": kernel_size, "pool": pool, "padding": padding, "hidden_sizes": hidden, "dtype": dtype}

    def call(network, inputs):
        given = read_inputs(inputs, "x", ("valid",) if len(shape) == 2 else ())
        x = given["x"]
        check_shape("x", x, (*[None] * (len(shape) - 1), shape[-1]) if summary == "mean" else shape)
        return network(x, read_valid(given, jnp.shape(x)[:2]))

    return as_model(lambda rngs: _Network(shape, num_classes, channels, summary=summary, rngs=rngs, **options), call)


def _check_fits(space: tuple[int, ...], kernel_size: int, pool: tuple[int, ...], padding: str) -> None:
    for size in pool:
        space = tuple(_pooled(_convolved(extent, kernel_size, padding), size) for extent in space)
        if min(space) < 1:
            check.fail_value("kernel_size", "that leaves something of input_shape for every convolution", kernel_size)
