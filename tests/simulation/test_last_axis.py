"""A map over the last axis is ``jax.vmap``, wherever the axis goes in between."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx.simulation.last_axis import map_last

SIZE = 3


def loop(x):
    return jax.lax.fori_loop(0, 3, lambda number, carry: carry * x + number, x)


FUNCTIONS = {
    "a product and a bias": lambda x: jnp.ones((2, 4)) @ x + x[0],
    "a softmax's gradient": jax.grad(lambda x: (jax.nn.log_softmax(x) * jnp.arange(5)).sum()),
    "sorted, gathered, concatenated": lambda x: jnp.concatenate([jnp.sort(x, axis=0)[::-1], x[jnp.argmax(x[:, 0])][None]]),
    "a loop": loop,
    "a branch": lambda x: jax.lax.cond(x[0, 0] > 0.5, jnp.sin, jnp.cos, x),
    "random numbers of a key": lambda x: x + jax.random.normal(jax.random.fold_in(jax.random.key(0), 1), x.shape),
    "a rule of its own for gradients": jax.grad(lambda x: jax.nn.relu(x - 0.5).sum() ** 2),
    "several results, some the same for all": lambda x: {"sum": x.sum(), "ones": jnp.ones(2), "key": jax.random.key(3)},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_a_vmap(name):
    x = jnp.asarray(np.random.default_rng(0).random((4, 5, SIZE), np.float32))
    ours = jax.jit(map_last(FUNCTIONS[name], (-1,), SIZE))(x)
    theirs = jax.vmap(FUNCTIONS[name], -1, -1)(x)
    for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        one, other = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_keys_have_the_axis_too():
    keys = jax.random.split(jax.random.key(0), SIZE)
    ours = map_last(lambda key, shape: jax.random.normal(key, shape.shape), (-1, None), SIZE)(keys, jnp.ones(2))
    np.testing.assert_array_equal(ours, jnp.stack([jax.random.normal(key, (2,)) for key in keys], -1))


def test_it_lies_under_another_vmap():
    x, w = jnp.arange(8.0).reshape(2, 4), jnp.arange(24.0).reshape(2, 4, SIZE)
    ours = jax.vmap(map_last(lambda x, w: x @ w, (None, -1), SIZE))(x, w)
    np.testing.assert_allclose(ours, jnp.einsum("li,lis->ls", x, w))


def test_parts_of_an_argument_may_be_the_same_for_all():
    given = {"w": jnp.ones((2, SIZE)), "x": jnp.arange(2.0), "none": ()}
    ours = map_last(lambda given: (given["w"] * given["x"]).sum(), ({"w": -1, "x": None, "none": -1},), SIZE)(given)
    np.testing.assert_array_equal(ours, [1.0] * SIZE)


def shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name, tuple(name.aval.shape for name in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from shapes(inner)


def test_the_axis_stays_last_where_vmap_brings_it_to_the_front():
    def function(x, b):
        return jnp.exp(x * b[:, None])

    given = jnp.ones((4, 5, SIZE)), jnp.ones((4, SIZE))
    ours = jax.make_jaxpr(map_last(function, (-1, -1), SIZE))(*given)
    theirs = jax.make_jaxpr(jax.vmap(function, -1, -1))(*given)
    assert ("exp", ((4, 5, SIZE),)) in shapes(ours.jaxpr)
    assert ("exp", ((SIZE, 4, 5),)) in shapes(theirs.jaxpr)
