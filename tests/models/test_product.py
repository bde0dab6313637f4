"""The product of rows with a kernel: it and its derivatives (first, second, forward, backward) are those of ``jnp.matmul``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

import fedjax_tx as ftx
from fedjax_tx.models.layers import Dense
from fedjax_tx.models.product import product

# rows, inputs, outputs: wide, tall, few rows, square, thin
SHAPES = ((5, 3, 4), (5, 6, 3), (1, 6, 3), (2, 2, 2), (4, 7, 1))


def operands(rows, inputs, outputs, lanes=()):
    x, kernel, slope = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(x, (*lanes, rows, inputs)),
        jax.random.normal(kernel, (*lanes, inputs, outputs)),
        jax.random.normal(slope, (*lanes, rows, outputs)),
    )


def loss(multiply):
    return lambda x, kernel, slope: (jnp.sin(multiply(x, kernel)) * slope).sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_are_those_of_matmul(shape):
    given = operands(*shape)
    for derive in (
        lambda one: jax.grad(one, (0, 1)),
        lambda one: jax.jacfwd(one, (0, 1)),
        lambda one: jax.grad(lambda *rest: (jax.grad(one, 1)(*rest) ** 2).sum(), (0, 1)),
    ):
        found, wanted = jax.jit(derive(loss(product)))(*given), jax.jit(derive(loss(jnp.matmul)))(*given)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5), found, wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_lane_has_its_own(shape):
    given = operands(*shape, lanes=(2,))
    derive = jax.grad(loss(product), (0, 1))
    found = jax.jit(jax.vmap(derive))(*given)
    for lane in range(2):
        alone = jax.jit(derive)(*[one[lane] for one in given])
        jax.tree.map(
            lambda one, other, lane=lane: np.testing.assert_allclose(one[lane], other, rtol=1e-5, atol=1e-6), found, alone
        )


@pytest.mark.parametrize("inputs", [2, 6])
def test_a_frozen_operand_costs_no_product(inputs):
    x, kernel, slope = operands(5, inputs, 3)
    x, slope = x.reshape(1, 5, inputs), slope.reshape(1, 5, 3)
    one, both = (str(jax.make_jaxpr(jax.grad(loss(product), argnums))(x, kernel, slope)) for argnums in (0, (0, 1)))
    assert one.count("dot_general") == 2 and both.count("dot_general") == 3  # y, dx; and of the kernel
    kernel_alone = str(jax.make_jaxpr(jax.grad(loss(product), 1))(x, kernel, slope))
    assert kernel_alone.count("dot_general") == 2


def test_half_precision_is_summed_in_single():
    x, kernel, _ = (one.astype(jnp.bfloat16) for one in operands(5, 4, 3))
    assert product(x, kernel, None, jnp.float32).dtype == jnp.float32
    slopes = jax.grad(lambda x, kernel: product(x, kernel, None, jnp.float32).sum(), (0, 1))(x, kernel)
    assert [slope.dtype for slope in slopes] == [jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 0, 3)])
def test_a_dense_layer_takes_any_axes_of_rows(lead):
    layer = Dense(4, 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (*lead, 4))
    np.testing.assert_allclose(layer(x), x @ layer.kernel[...] + layer.bias[...], rtol=1e-6, atol=1e-6)


def test_kernels_gradients_read_one_axis_of_rows():
    # More axes to sum over make XLA turn the gradient around on a CPU, which doubles the time of that product.
    task = ftx.tasks.next_token(ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=2, width=8, max_length=4))
    params, frozen = task.init(jax.random.key(0))
    batch = {"tokens": jnp.zeros((2, 5), jnp.int32)}

    def of(params):
        return task.loss(task.apply(params, frozen, batch, None), batch)[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(of))(params)
    products = [equation for equation in equations(jaxpr.jaxpr) if equation.primitive.name == "dot_general"]
    of_kernels = [one for one in products if one.outvars[0].aval.ndim == 2]
    assert len(of_kernels) == 3 * 5  # four in the layer and the head: y, dx and dW of each
    assert all(len(one.params["dimension_numbers"][0][0]) == 1 for one in of_kernels)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
