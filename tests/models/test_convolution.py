"""Convolutions with written gradients: their values, their gradients, a kernel for each client, and what XLA compiles of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_tx.models import convolution, convolve
from fedjax_tx.models.convolution import _Window

CASES = [
    ((7, 6), (3, 3), 1, "SAME"),
    ((8, 5), (3, 2), 2, "SAME"),
    ((8, 8), (3, 3), 2, "VALID"),  # the last row and column are read by no window
    ((6, 4), (2, 3), 3, [(1, 0), (2, 2)]),
    ((9,), (4,), 2, "SAME"),
    ((6,), (3,), 1, "VALID"),
]


def operands(space, size, lanes=()):
    draw = np.random.default_rng(0)
    shapes = (*lanes, 2, *space, 3), (*lanes, *size, 3, 4)
    return tuple(jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes)


def of_xla(x, kernel, stride, padding):
    order = ("NHWC", "HWIO", "NHWC") if x.ndim == 4 else ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * (x.ndim - 2), padding, dimension_numbers=order)


def by_hand(x, kernel, stride, padding):
    """Loops over windows, in NumPy."""
    size, axes = kernel.shape[:-2], tuple(range(1, x.ndim - 1))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], size, (stride,) * len(size), padding)
    x = np.pad(x, [(0, 0), *padding, (0, 0)])
    out = tuple((x.shape[axis] - extent) // stride + 1 for axis, extent in zip(axes, size, strict=True))
    y = np.zeros((len(x), *out, kernel.shape[-1]))
    for place in np.ndindex(*out):
        window = tuple(slice(stride * p, stride * p + extent) for p, extent in zip(place, size, strict=True))
        y[(slice(None), *place)] = np.tensordot(x[(slice(None), *window)], kernel, (range(1, x.ndim), range(kernel.ndim - 1)))
    return y


def scalar(function, stride, padding):
    return lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel, stride, padding)))


def slopes(function, stride, padding):
    return jax.grad(scalar(function, stride, padding), (0, 1))


def assert_close(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.abs(other).max() > 1e-2
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("space", "size", "stride", "padding"), CASES)
def test_values_are_those_of_loops_and_gradients_those_of_xlas_convolution(space, size, stride, padding):
    x, kernel = operands(space, size)
    ours = jax.jit(lambda x, kernel: (convolve(x, kernel, stride, padding), slopes(convolve, stride, padding)(x, kernel)))
    value, gradients = ours(x, kernel)
    assert_close(value, by_hand(np.array(x), np.array(kernel), stride, padding))
    assert_close(gradients, jax.jit(slopes(of_xla, stride, padding))(x, kernel))


@pytest.mark.parametrize("case", [CASES[2]])
def test_gradients_have_gradients(case):
    space, size, stride, padding = case

    def twice(function):
        once = jax.grad(scalar(function, stride, padding), 1)
        return jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(once(x, kernel))), (0, 1)))

    x, kernel = operands(space, size)
    assert_close(twice(convolve)(x, kernel), twice(of_xla)(x, kernel))


@pytest.mark.parametrize(("case", "lanes"), [(CASES[1], (3,)), (CASES[5], (1,)), (CASES[5], (2, 2))])
def test_kernels_of_their_own_give_each_client_what_it_gets_alone(case, lanes):
    space, size, stride, padding = case
    operated, mapped = operands(space, size, lanes), slopes(convolve, stride, padding)
    for _ in lanes:  # two: clients within the settings of a sweep
        mapped = jax.vmap(mapped)
    alone = jax.jit(slopes(of_xla, stride, padding))
    results = jax.jit(mapped)(*operated)
    for lane in np.ndindex(*lanes):
        assert_close([one[lane] for one in results], alone(*(one[lane] for one in operated)))


@pytest.mark.parametrize("axes", [(0, None), (None, 0)])
def test_clients_may_share_the_kernel_or_the_input(axes):
    space, size, stride, padding = CASES[5]
    operated = [one if axis == 0 else one[0] for one, axis in zip(operands(space, size, (2,)), axes, strict=True)]
    results = jax.jit(jax.vmap(slopes(convolve, stride, padding), axes))(*operated)
    alone = jax.jit(slopes(of_xla, stride, padding))
    for lane in range(2):
        expected = alone(*(one[lane] if axis == 0 else one for one, axis in zip(operated, axes, strict=True)))
        assert_close([one[lane] for one in results], expected)


def convolutions_in_a_loop(function, lanes) -> list[str]:
    """The convolutions of the compiled program that descends in a loop, as XLA prints their windows and orders."""
    x, kernel = operands((8, 8), (3, 2), lanes)  # 3 x 3 goes by tiles (test_winograd.py)
    gradient = jax.grad(lambda kernel, x: scalar(function, 1, "VALID")(jnp.tanh(scalar_input(x, kernel)), kernel))
    for _ in lanes:
        gradient = jax.vmap(gradient)

    def descend(count, kernel, x):
        return lax.fori_loop(0, count, lambda _, kernel: kernel - 0.1 * gradient(kernel, x), kernel)

    text = jax.jit(descend).lower(3, kernel, x).compile().as_text()
    return re.findall(r"convolution\(.*?\), (.*?), metadata", text)


def scalar_input(x, kernel):
    """x, made to depend on the kernel, so that the gradient of the input is asked for too."""
    return x * jnp.sum(kernel)


def are_fast(found: list[str]) -> list[bool]:
    return ["dim_labels=b01f_01io->b01f" in one and "feature_group_count" not in one for one in found]


@pytest.mark.parametrize("lanes", [(), (2,)])
def test_in_a_loop_on_a_cpu_every_convolution_has_the_order_and_the_single_group_of_the_fast_routine(lanes):
    assert are_fast(convolutions_in_a_loop(convolve, lanes)) == [True] * 3


def test_in_a_loop_on_a_cpu_xlas_own_convolutions_do_not():
    assert not all(are_fast(convolutions_in_a_loop(of_xla, ())))


def test_half_precision_keeps_its_dtype():
    x, kernel = (one.astype(jnp.bfloat16) for one in operands((5, 5), (3, 3)))
    value = jax.eval_shape(convolve, x, kernel)
    gradients = jax.eval_shape(slopes(convolve, 1, "SAME"), x, kernel)
    assert {value.dtype, *(one.dtype for one in gradients)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 5), (3, 1, 1)), {}, "expected x of shape"),
        (((2, 5, 3), (3, 2, 1)), {}, "the last but one of size 3"),
        (((2, 5, 3), (3, 3, 3, 1)), {}, "to have 3 axes"),
        (((2, 5, 3), (7, 3, 1)), {"padding": "VALID"}, "no larger than the padded input, 5"),
        (((2, 5, 3), (3, 3, 1)), {"padding": [(1, 1), (1, 1)]}, "for each of 1 axes"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes, options, message, unchecked):
    with pytest.raises(ValueError, match=re.escape(message)):
        convolve(*map(np.ones, shapes), **options)


# ---- a kernel for each client on a GPU: one product of all patches

WINDOWS = [
    ((7, 6), (3, 2), _Window((1, 1), ((1, 1), (0, 1)))),
    ((8, 9), (3, 3), _Window((2, 3), ((0, 1), (2, 0)))),
    ((5, 4), (2, 3), _Window((1, 1), ((2, 1), (1, 3)), input_dilation=(2, 3))),
    ((9, 8), (3, 2), _Window((2, 1), ((1, 0), (0, 0)), kernel_dilation=(2, 3))),
    ((9, 8), (7, 7), _Window((1, 1), ((0, 0), (1, 0)))),  # fewer places in the output than in the kernel
    ((11, 12), (4, 5), _Window((2, 1), ((0, 0), (0, 1)), kernel_dilation=(2, 2))),
    ((9, 8), (3, 3), _Window((1, 1), ((-1, 0), (0, -2)))),
]


@pytest.mark.parametrize(("space", "size", "window"), WINDOWS)
def test_a_product_of_patches_is_the_convolution(space, size, window):
    x, kernel = operands(space, size)
    expected = lax.conv_general_dilated(x, kernel, *window, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert_close(convolution._convolve_by_patches(window, x, kernel), expected)


@pytest.mark.parametrize(("space", "size", "stride", "padding"), CASES)
def test_on_a_gpu_each_clients_kernel_gets_its_own_gradient(space, size, stride, padding, monkeypatch):
    monkeypatch.setattr(lax, "platform_dependent", lambda *operands, cuda, **_: cuda(*operands))
    monkeypatch.setattr(convolution, "is_sooner", lambda *_: False)
    x, kernel = operands(space, size, lanes=(3,))
    found = jax.jit(jax.vmap(slopes(convolve, stride, padding)))(x, kernel)
    one_by_one = [slopes(of_xla, stride, padding)(x[lane], kernel[lane]) for lane in range(3)]
    assert_close(found, jax.tree.map(lambda *parts: jnp.stack(parts), *one_by_one))


def test_a_gpu_is_given_no_grouped_convolution():
    x, kernel = operands((8, 8), (3, 3), lanes=(3,))

    def lowered(function, *arguments):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()

    assert "convolution" not in lowered(jax.vmap(slopes(convolve, 2, "SAME")), x, kernel)
    assert "convolution" in lowered(slopes(convolve, 2, "SAME"), x[0], kernel[0])
