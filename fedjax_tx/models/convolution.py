"""Convolutions whose gradients are fast inside a compiled loop on a CPU, with one kernel or with a kernel for each client.

A round is a loop inside one program, and there XLA gives the convolutions of ``jax.grad`` dimension orders for which its CPU
backend has no routine: some 20 times slower than the same gradients outside. Here the gradients are written out, as convolutions
of transposed operands in the order that has one (batch, space, channels)::

    y[b, p, o] = sum_{q, i} x[b, p + q, i] k[q, i, o]
    dk[q, i, o] = sum_p x'[i, p + q, b] dy'[p, b, o]       the examples are the channels: x' = x as [i, p, b]
    dx[b, p, i] = sum_q dy[b, p - q, o] k[q, i, o]         dy padded, the kernel turned round

A stride of one dilates the kernel or the input of the other. Both gradients are ``convolve`` again, so they have gradients too;
what they don't have is a forward-mode derivative.

Images and kernels of 3 x 3 go another way on a CPU, in float32 and with three channels or more: by tiles (``winograd.py``).

Where clients have kernels of their own, ``vmap`` makes grouped convolutions, for which a CPU has no routine either: there the
clients' convolutions run one after another. On an NVIDIA GPU, whose routines for them are slow, they become one batched product
of all patches; other accelerators keep the grouped ones.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from fedjax_tx import check
from fedjax_tx.models.winograd import convolve_by_tiles, is_sooner

Padding: TypeAlias = str | Sequence[tuple[int, int]]
_ORDER = ("NHWC", "HWIO", "NHWC")


class _Window(NamedTuple):
    """How a kernel goes over the padded input, for rows and columns."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    input_dilation: tuple[int, int] = (1, 1)
    kernel_dilation: tuple[int, int] = (1, 1)


def convolve(
    x: Float[Array, "batch *space inputs"],
    kernel: Float[Array, "*window inputs outputs"],
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "batch *out outputs"]:
    """Returns the convolution of signals [batch, time, channels] or images [batch, height, width, channels].

    Args:
      kernel: [size, inputs, outputs], or [height, width, inputs, outputs], of the dtype of x.
      stride: >= 1, along every axis of space.
      padding: "SAME" (zeros around, as many outputs as inputs at stride 1), "VALID" (none), or (before, after) for each axis.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or shape, or the kernel is larger than the padded input.

    Example:
      >>> convolve(jnp.ones((2, 5, 3)), jnp.ones((3, 3, 4)), padding="VALID").shape
      (2, 3, 4)
      >>> convolve(jnp.ones((2, 5, 7, 1)), jnp.ones((3, 3, 1, 4)), stride=2).shape
      (2, 3, 4, 4)
    """
    window = _make_window(jnp.shape(x), jnp.shape(kernel), stride, padding)
    if jnp.result_type(x) != jnp.result_type(kernel):
        check.fail_type("kernel", f"of the dtype of x, {jnp.result_type(x)}", jnp.result_type(kernel))
    if x.ndim == 4:
        padded = tuple(length + sum(pad) for length, pad in zip(x.shape[1:3], window.padding, strict=True))
        if stride == 1 and is_sooner((len(x), *padded, x.shape[-1]), kernel.shape, x.dtype):
            return convolve_by_tiles(jnp.pad(x, ((0, 0), *window.padding, (0, 0))), kernel)
        return _convolve(window, x, kernel)
    return _convolve(window, x[:, None], kernel[None])[:, 0]


def _make_window(shape: tuple[int, ...], kernel: tuple[int, ...], stride, padding) -> _Window:
    if len(shape) not in (3, 4):
        check.fail_value("x", "of shape [batch, time, channels] or [batch, height, width, channels]", shape)
    if len(kernel) != len(shape) or kernel[-2] != shape[-1]:
        check.fail_value("kernel", f"to have {len(shape)} axes, the last but one of size {shape[-1]}, as x has", kernel)
    check.integer("stride", stride, low=1)
    space, size = shape[1:-1], kernel[:-2]
    if isinstance(padding, str):
        check.one_of("padding", padding, ("SAME", "VALID"))
        sides = lax.padtype_to_pads(space, size, (stride,) * len(space), padding)
        pads = [(before, after) for before, after in sides]
    else:
        pads = check_pads(padding, len(space))
    for length, extent, pad in zip(space, size, pads, strict=True):
        if length + sum(pad) < extent:
            check.fail_value("kernel", f"to be no larger than the padded input, {length + sum(pad)}", extent)
    if len(space) == 1:
        return _Window((1, stride), ((0, 0), pads[0]))
    return _Window((stride, stride), (pads[0], pads[1]))


def check_pads(padding, axes: int) -> list[tuple[int, int]]:
    """Returns padding that was given as (before, after) for each axis of space, if it is such.

    Example:
      >>> check_pads([(1, 0)], 1)
      [(1, 0)]
    """
    check.instance("padding", padding, (list, tuple), '"SAME", "VALID" or a list of (before, after)')
    if len(padding) != axes or any(not isinstance(pad, (list, tuple)) or len(pad) != 2 for pad in padding):
        check.fail_value("padding", f"to have (before, after) for each of {axes} axes", padding)
    return [(check.integer("padding", before, low=0), check.integer("padding", after, low=0)) for before, after in padding]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(window: _Window, x, kernel):
    return _by_lanes(window)(x, kernel)


def _forward(window: _Window, x, kernel):
    return _convolve(window, x, kernel), (x, kernel)  # not the plain one: this may be differentiated in turn


def _backward(window: _Window, residuals, slope):
    x, kernel = residuals
    return _input_gradient(window, x.shape, kernel, slope), _kernel_gradient(window, x, kernel.shape, slope)


_convolve.defvjp(_forward, _backward)


def _kernel_gradient(window: _Window, x, kernel_shape, slope):
    """x with its examples as channels, convolved with the slope of the output as the kernel."""
    pads = []
    for axis in (0, 1):
        x_extent, kernel_extent, slope_extent = _extents(window, x.shape, kernel_shape, slope.shape, axis)
        before = window.padding[axis][0]
        pads.append((before, kernel_extent + slope_extent - 1 - x_extent - before))
    if window.input_dilation == (1, 1):
        # A stride may leave the last inputs unread: cut off here, for the fast routine takes no negative padding.
        x = x[:, : x.shape[1] + min(0, pads[0][1]), : x.shape[2] + min(0, pads[1][1])]
        pads = [(before, max(0, after)) for before, after in pads]
    turned = _Window(window.kernel_dilation, (pads[0], pads[1]), window.input_dilation, window.strides)
    gradient = _convolve(turned, jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(slope, (1, 2, 0, 3)))
    return jnp.transpose(gradient, (1, 2, 0, 3))


def _input_gradient(window: _Window, x_shape, kernel, slope):
    """The slope of the output, convolved with the kernel turned round."""
    pads = []
    for axis in (0, 1):
        x_extent, kernel_extent, slope_extent = _extents(window, x_shape, kernel.shape, slope.shape, axis)
        before = kernel_extent - 1 - window.padding[axis][0]
        pads.append((before, x_extent + kernel_extent - 1 - slope_extent - before))
    turned = _Window(window.input_dilation, (pads[0], pads[1]), window.strides, window.kernel_dilation)
    return _convolve(turned, slope, jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2)))


def _extents(window: _Window, x_shape, kernel_shape, slope_shape, axis: int) -> tuple[int, int, int]:
    """How far input, kernel and output reach along an axis of space, dilated as in the forward convolution."""

    def reach(size: int, step: int) -> int:
        return (size - 1) * step + 1

    return (
        reach(x_shape[axis + 1], window.input_dilation[axis]),
        reach(kernel_shape[axis], window.kernel_dilation[axis]),
        reach(slope_shape[axis + 1], window.strides[axis]),
    )


def _by_lanes(window: _Window):
    """Returns the convolution with a rule for ``vmap``: on a CPU one after another where both operands are of a client's own."""

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, *window, dimension_numbers=_ORDER)

    convolution = custom_vmap(plain)

    @convolution.def_vmap
    def rule(size, batched, x, kernel):
        if not all(batched):  # a larger batch, or more output channels: still one plain convolution
            return jax.vmap(plain, [0 if flag else None for flag in batched])(x, kernel), True

        def in_turn(x, kernel):
            if size == 1:
                return convolution(x[0], kernel[0])[None]
            return lax.map(lambda operands: convolution(*operands), (x, kernel))

        by_patches = jax.vmap(partial(_convolve_by_patches, window))
        return lax.platform_dependent(x, kernel, cpu=in_turn, cuda=by_patches, default=jax.vmap(plain)), True

    return convolution


def _convolve_by_patches(window: _Window, x, kernel):
    """The convolution as a product of the patches [batch, *out, *kernel, inputs] of x with the kernel.

    Patches are put together of one slice for each place of the kernel, or for each of the output (a kernel's gradient is a
    convolution with a large kernel and a small output), whichever are fewer.
    """
    inner = [(*pad, dilation - 1) for pad, dilation in zip(window.padding, window.input_dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
    size, outputs = kernel.shape[:2], kernel.shape[-1]
    reach = [(extent - 1) * dilation + 1 for extent, dilation in zip(size, window.kernel_dilation, strict=True)]
    out = tuple((x.shape[axis + 1] - reach[axis]) // window.strides[axis] + 1 for axis in (0, 1))
    of_kernel = size[0] * size[1] <= out[0] * out[1]
    places, extents = (size, out) if of_kernel else (out, size)
    between, within = (window.kernel_dilation, window.strides)[:: 1 if of_kernel else -1]

    def cut(place):
        first = [number * step for number, step in zip(place, between, strict=True)]
        rows, columns = (
            slice(at, at + (extent - 1) * step + 1, step) for at, extent, step in zip(first, extents, within, strict=True)
        )
        return x[:, rows, columns]

    patches = jnp.stack([cut(place) for place in np.ndindex(*places)], axis=3 if of_kernel else 1)
    y = patches.reshape(len(x) * out[0] * out[1], -1) @ kernel.reshape(-1, outputs)
    return y.reshape(len(x), *out, outputs)
