"""Convolutions by tiles: their transforms, rounding, gradients, a kernel for each client, and where ``convolve`` takes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_tx.models import convolve, winograd


def operands(batch, height, width, inputs, outputs, lanes=()):
    draw = np.random.default_rng(0)
    shapes = (*lanes, batch, height, width, inputs), (*lanes, 3, 3, inputs, outputs)
    return tuple(jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes)


def of_xla(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def slopes(function):
    return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel))), (0, 1))


def assert_close(left, right, tolerance=1e-4):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.abs(other).max() > 1e-2
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_the_transforms_of_an_axis_make_a_product_at_six_points_a_convolution():
    outputs, of_kernel, of_inputs = winograd._transforms()
    draw = np.random.default_rng(0)
    kernel, inputs = draw.standard_normal(3), draw.standard_normal(6)
    y = outputs @ ((of_kernel @ kernel) * (of_inputs @ inputs))
    np.testing.assert_allclose(y, np.correlate(inputs, kernel, "valid"), rtol=1e-12)


def by_hand(x, kernel):
    """In float64."""
    x, kernel = np.float64(x), np.float64(kernel)
    height, width = x.shape[1] - 2, x.shape[2] - 2
    parts = [x[:, row : row + height, column : column + width] @ kernel[row, column] for row in range(3) for column in range(3)]
    return np.sum(parts, axis=0)


@pytest.mark.parametrize("shape", [(3, 6, 6, 3, 8), (2, 5, 9, 4, 3), (2, 13, 7, 32, 16)])
def test_rounding_is_that_of_single_precision(shape):
    x, kernel = operands(*shape)
    expected = by_hand(x, kernel)
    y = jax.jit(winograd.convolve_by_tiles)(x, kernel)
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() < 1e-5 * expected.std()


@pytest.mark.parametrize("shape", [(3, 6, 6, 3, 8), (2, 5, 9, 4, 3)])
def test_gradients_are_those_of_a_direct_convolution(shape):
    x, kernel = operands(*shape)
    assert_close(jax.jit(slopes(winograd.convolve_by_tiles))(x, kernel), jax.jit(slopes(of_xla))(x, kernel))


def test_gradients_have_gradients():
    def twice(function):
        once = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel))), 1)
        return jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(once(x, kernel))), (0, 1)))

    x, kernel = operands(2, 5, 6, 3, 4)
    assert_close(twice(winograd.convolve_by_tiles)(x, kernel), twice(of_xla)(x, kernel), 1e-3)


@pytest.mark.parametrize(
    ("lanes", "axes"), [((3,), (0, 0)), ((1,), (0, 0)), ((2, 2), (0, 0)), ((2,), (0, None)), ((2,), (None, 0))]
)
def test_each_client_gets_what_it_gets_alone(lanes, axes):
    operated = [one if axis == 0 else one[0] for one, axis in zip(operands(2, 5, 6, 3, 4, lanes), axes, strict=True)]
    mapped = slopes(winograd.convolve_by_tiles)
    for _ in lanes:  # two: clients within the settings of a sweep
        mapped = jax.vmap(mapped, axes)
    results, alone = jax.jit(mapped)(*operated), jax.jit(slopes(of_xla))
    for lane in np.ndindex(*lanes):
        expected = alone(*(one[lane] if axis == 0 else one for one, axis in zip(operated, axes, strict=True)))
        assert_close([one[lane] for one in results], expected)


@pytest.mark.parametrize(
    ("case", "is_taken"),
    [
        (((4, 6, 6, 3), (3, 3, 3, 8), jnp.float32, 1, "VALID"), True),
        (((4, 4, 4, 3), (3, 3, 3, 8), jnp.float32, 1, "SAME"), True),
        (((4, 6, 6, 1), (3, 3, 1, 8), jnp.float32, 1, "VALID"), False),  # one channel: no product to save at
        (((4, 4, 4, 3), (3, 3, 3, 8), jnp.float32, 1, "VALID"), False),  # less than a tile
        (((4, 6, 6, 3), (3, 3, 3, 8), jnp.float32, 2, "VALID"), False),
        (((4, 6, 6, 3), (3, 2, 3, 8), jnp.float32, 1, "VALID"), False),
        (((4, 6, 6, 3), (3, 3, 3, 8), jnp.bfloat16, 1, "VALID"), False),
    ],
)
def test_convolve_takes_it_for_kernels_of_three_by_three_in_single_precision_on_a_cpu(case, is_taken):
    x_shape, kernel_shape, dtype, stride, padding = case
    x, kernel = jnp.ones(x_shape, dtype), jnp.ones(kernel_shape, dtype)
    text = jax.jit(lambda x, kernel: convolve(x, kernel, stride, padding)).lower(x, kernel).as_text()
    assert ("stablehlo.convolution" not in text) == is_taken
