"""Convolutions of images by kernels of 3 x 3, with a quarter of the multiplications: Winograd's minimal filtering.

"Fast Algorithms for Convolutional Neural Networks" (Lavin, Gray, arXiv:1509.09308): a tile of 4 x 4 outputs is the product of two
polynomials, found from its values at six points an axis::

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A        d: 6 x 6 inputs of a tile, g: the kernel

Summed over channels, each of the 36 entries of ⊙ is a matrix product over all tiles, [tiles, inputs] x [inputs, outputs]: 36
multiplications for 16 outputs, not 144. Gradients are the transposed products, as many. Both axes of a transform are one product
with a Kronecker product, [36, 36], which a CPU does at full speed.

Rounding is mostly two to ten times that of a direct convolution, some 1e-5 of a gradient's standard deviation
(``experiments/benchmarks/convolutions.py``): points are 0, ±3/4, ±3/2 and infinity, which round less than the
paper's (0, ±1, ±2; "Error Analysis and Improving the Accuracy of Winograd Convolution", Barabasz et al., arXiv:1803.10986).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

_KERNEL, _TILE = 3, 4  # extents along an axis, of a tile in outputs
_INPUTS = _TILE + _KERNEL - 1  # of a tile, along an axis
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity
_MAY_BE_TAKEN = ContextVar("may convolutions by tiles be taken", default=True)


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Aᵀ [4, 6], G [6, 3] and Bᵀ [6, 6] of one axis, as Toom and Cook make them of the points."""
    outputs, kernel, inputs = np.zeros((_TILE, _INPUTS)), np.zeros((_INPUTS, _KERNEL)), np.zeros((_INPUTS, _INPUTS))
    for number, point in enumerate(_POINTS):
        others = np.delete(_POINTS, number)
        outputs[:, number] = point ** np.arange(_TILE)
        kernel[number] = point ** np.arange(_KERNEL) / np.prod(point - others)
        inputs[number, :-1] = np.poly(others)[::-1]
    outputs[-1, -1] = kernel[-1, -1] = 1.0
    inputs[-1] = np.poly(_POINTS)[::-1]
    return outputs, kernel, inputs


_TO_OUTPUTS, _OF_KERNEL, _OF_INPUTS = (np.kron(one, one).astype(np.float32) for one in _transforms())  # both axes at once


def is_sooner(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], dtype) -> bool:
    """Whether this is sooner than a direct convolution: on a CPU, as measured with one core, 1.1 to 2.8 times.

    ``x_shape``: [batch, height, width, inputs], padded. ``kernel_shape``: [height, width, inputs, outputs]. The stride is 1.

    Example:
      >>> is_sooner((20, 26, 26, 32), (3, 3, 32, 64), jnp.bfloat16)
      False
    """
    square, large = kernel_shape[:2] == (_KERNEL, _KERNEL), min(x_shape[1:3]) >= _KERNEL + 2
    fits = dtype == jnp.float32 and square and large and min(kernel_shape[2:]) >= 3
    return fits and jax.default_backend() == "cpu" and _MAY_BE_TAKEN.get()


@contextmanager
def never() -> Iterator[None]:
    """While it lasts, convolutions are traced as direct ones: for counting their arithmetic as everybody does.

    Example:
      >>> with never():
      ...     is_sooner((20, 26, 26, 32), (3, 3, 32, 64), jnp.float32)
      False
    """
    token = _MAY_BE_TAKEN.set(False)
    try:
        yield
    finally:
        _MAY_BE_TAKEN.reset(token)


def convolve_by_tiles(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "3 3 inputs outputs"]
) -> Float[Array, "batch rows columns outputs"]:
    """Returns the convolution with stride 1 and no padding: rows = height - 2, columns = width - 2.

    Where clients have kernels of their own, ``vmap`` makes one convolution after another.

    Example:
      >>> convolve_by_tiles(jnp.ones((2, 7, 5, 3)), jnp.ones((3, 3, 3, 8))).shape
      (2, 5, 3, 8)
    """
    return _in_turn(_convolve_by_tiles)(x, kernel)


def _convolve_by_tiles(x, kernel):
    batch, height, width, _ = x.shape
    out_height, out_width, outputs = height - _KERNEL + 1, width - _KERNEL + 1, kernel.shape[-1]
    rows, columns = -(-out_height // _TILE), -(-out_width // _TILE)
    tiles = _cut(x, rows, columns)
    values = (_OF_INPUTS @ tiles.reshape(len(_OF_INPUTS), -1)).reshape(len(_OF_INPUTS), batch * rows * columns, -1)
    of_kernel = (_OF_KERNEL @ kernel.reshape(_KERNEL**2, -1)).reshape(len(_OF_KERNEL), -1, outputs)
    products = jnp.einsum("vti,vio->vto", values, of_kernel)
    y = (_TO_OUTPUTS @ products.reshape(len(_OF_INPUTS), -1)).reshape(_TILE, _TILE, batch, rows, columns, outputs)
    y = y.transpose(2, 3, 0, 4, 1, 5).reshape(batch, rows * _TILE, columns * _TILE, outputs)
    return y[:, :out_height, :out_width]


def _cut(x, rows: int, columns: int) -> Float[Array, "6 6 batch rows columns inputs"]:
    """Returns the tiles of x, which overlap by two: each is a block of four, and the first two of the next block."""
    batch, height, width, inputs = x.shape
    x = jnp.pad(x, ((0, 0), (0, (rows + 1) * _TILE - height), (0, (columns + 1) * _TILE - width), (0, 0)))
    blocks = x.reshape(batch, rows + 1, _TILE, columns + 1, _TILE, inputs).transpose(2, 4, 0, 1, 3, 5)
    more = _INPUTS - _TILE
    blocks = jnp.concatenate([blocks[:, :, :, :-1], blocks[:more, :, :, 1:]], axis=0)
    return jnp.concatenate([blocks[..., :-1, :], blocks[:, :more, ..., 1:, :]], axis=1)


def _in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with a rule for ``vmap``: one lane after another, as are its gradients and theirs."""
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def rule(size, batched, *operands):
        def call(own):
            lane = iter(own)
            return mapped(*[next(lane) if flag else operand for flag, operand in zip(batched, operands, strict=True)])

        own = [operand for flag, operand in zip(batched, operands, strict=True) if flag]
        if size == 1:
            results = jax.tree.map(lambda result: result[None], call([operand[0] for operand in own]))
        else:
            results = lax.map(call, own)
        return results, jax.tree.map(lambda _: True, results)

    @jax.custom_vjp
    def differentiable(*operands):
        return mapped(*operands)

    def forward(*operands):
        return differentiable(*operands), operands

    def pull_back(slope, *operands):
        return jax.vjp(function, *operands)[1](slope)

    differentiable.defvjp(forward, lambda operands, slope: _in_turn(pull_back)(slope, *operands))
    return differentiable
