"""Laws of every model in ``table.py``: lanes, padding, finite gradients, one compilation, dtypes and bfloat16's drift."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_transformer import draw_params
from table import TABLE

from fedjax_tx.models import describe, features, lora
from fedjax_tx.types import Model

MASKED = [name for name, row in TABLE.items() if isinstance(row.inputs, dict) and "valid" in row.inputs]
UNOPTIMISED = {"xla_backend_optimization_level": 0}  # the same program, compiled in half the time


def rows(names):
    slow = pytest.mark.slow
    return pytest.mark.parametrize("name", [pytest.param(name, marks=slow) if TABLE[name].variant else name for name in names])


every_model, every_masked_model = rows(TABLE), rows(MASKED)


def kept(outputs, inputs):
    """The outputs, 0 at positions that are not valid."""
    valid = inputs.get("valid") if isinstance(inputs, dict) else None
    if valid is None or outputs.ndim < 3 or outputs.shape[1] != valid.shape[1]:
        return outputs
    return jnp.where(jnp.reshape(valid, (*valid.shape, *[1] * (outputs.ndim - 2))) != 0, outputs, 0.0)


def loss(model: Model, params, inputs):
    """A mean of squares against fixed targets, in which every output counts."""
    outputs = kept(model.apply(params, inputs), inputs)
    targets = jnp.sin(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape)
    return jnp.mean(jnp.square(outputs - kept(targets, inputs))), outputs


class Subject(NamedTuple):
    """A model and its compiled gradient, shared by the tests of a row."""

    model: Model
    inputs: object
    params: object
    gradient: object


@functools.cache
def subject(name: str, dtype: str = "float32") -> Subject:
    row = TABLE[name]
    model = row.make(jnp.dtype(dtype))
    gradient = jax.jit(jax.value_and_grad(functools.partial(loss, model), has_aux=True), compiler_options=UNOPTIMISED)
    return Subject(model, jax.tree.map(jnp.asarray, row.inputs), draw_params(model, scale=0.3), gradient)


def with_rubbish(inputs):
    """The same examples with other content where they are padding."""

    def change(array):
        # Rolled, the padding holds what other examples hold: content of the right kind.
        valid = np.reshape(inputs["valid"], (*inputs["valid"].shape, *[1] * (array.ndim - 2)))
        return jnp.asarray(np.where(valid, array, np.roll(array, (1, 1), (0, 1))))

    return {name: part if name == "valid" else change(part) for name, part in inputs.items()}


def with_an_empty_row(inputs):
    return {**inputs, "valid": jnp.asarray(inputs["valid"] & np.array([[True], [False], [True]]))}


def close(first, second, rtol=1e-4, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


def distance(first, second) -> float:
    squares = jax.tree.map(lambda a, b: np.sum(np.square(np.asarray(a) - np.asarray(b))), first, second)
    return float(np.sqrt(sum(jax.tree.leaves(squares))))


def size(tree) -> float:
    return distance(tree, jax.tree.map(np.zeros_like, tree))


@every_model
def test_parameters_are_a_plain_dict_of_float32_that_a_key_decides(name):
    model = subject(name).model
    init = jax.jit(model.init, compiler_options=UNOPTIMISED)
    params, again, other = (jax.device_get(init(jax.random.key(seed))) for seed in (0, 0, 1))
    kinds = {type(branch) for branch in jax.tree.leaves(params, is_leaf=lambda branch: not isinstance(branch, dict))}
    assert isinstance(params, dict) and all(kind is np.ndarray for kind in kinds)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    close(params, again, rtol=0, atol=0)
    assert (distance(params, other) == 0) == TABLE[name].at_zero
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@every_model
def test_clients_side_by_side_equal_one_by_one(name):
    model, inputs, params, gradient = subject(name)
    clients = [params, draw_params(model, seed=1, scale=0.3)]
    shifted = jax.tree.map(lambda array: jnp.asarray(np.roll(array, 1, axis=0)), inputs)
    stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *pair) for pair in (clients, (inputs, shifted))]
    stack_gradient = jax.vmap(jax.value_and_grad(functools.partial(loss, model), has_aux=True))
    together = jax.jit(stack_gradient, compiler_options=UNOPTIMISED)(*stacked)
    for lane, (own, data) in enumerate(zip(clients, (inputs, shifted), strict=True)):
        close(jax.tree.map(lambda leaf: leaf[lane], together), gradient(own, data), atol=1e-5)  # noqa: B023


@every_model
def test_every_parameter_has_a_finite_gradient_and_a_second_call_compiles_nothing(name):
    _, inputs, params, gradient = subject(name)
    (_, outputs), first = gradient(params, inputs)
    assert outputs.dtype == jnp.float32 and np.isfinite(outputs).all()
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), jax.tree_util.keystr(path)
    before = gradient._cache_size()
    gradient(jax.tree.map(lambda leaf: jnp.asarray(2 * np.asarray(leaf)), params), inputs)
    assert gradient._cache_size() == before


@every_masked_model
def test_what_padding_holds_changes_nothing(name):
    _, inputs, params, gradient = subject(name)
    other = with_rubbish(inputs)
    assert any(np.any(inputs[part] != other[part]) for part in inputs)
    close(gradient(params, other), gradient(params, inputs), rtol=1e-6, atol=1e-7)
    everything = {**other, "valid": jnp.ones_like(inputs["valid"])}
    assert distance(gradient(params, everything)[1], gradient(params, inputs)[1]) > 1e-3


@every_masked_model
def test_more_padding_changes_nothing(name):
    model, inputs, params, _ = subject(name)
    if not TABLE[name].longer:
        pytest.skip("the model reads a fixed number of positions")
    longer = {part: np.pad(array, [(0, 0), (0, 2), *[(0, 0)] * (array.ndim - 2)]) for part, array in inputs.items()}
    apply = jax.jit(lambda inputs: kept(model.apply(params, inputs), inputs), compiler_options=UNOPTIMISED)
    want, have = apply(inputs), apply(longer)
    close(have[tuple(slice(size) for size in want.shape)], want)


@every_masked_model
def test_gradients_of_an_example_of_padding_alone_are_finite(name):
    _, inputs, params, gradient = subject(name)
    (value, outputs), gradients = gradient(params, with_an_empty_row(inputs))
    assert np.isfinite(value) and np.isfinite(outputs).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    (_, whole), _ = gradient(params, inputs)
    close(outputs[0], whole[0], rtol=1e-6)


@every_model
def test_bfloat16_keeps_float32_outside_and_is_near(name):
    _, inputs, params, gradient = subject(name)
    (_, want), exact = gradient(params, inputs)
    (_, outputs), near = subject(name, "bfloat16").gradient(params, inputs)
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(near)} == {jnp.dtype("float32")}
    assert 0 < distance(outputs, want) < 0.05 * size(want)
    assert distance(near, exact) < 0.1 * size(exact)


def trained(gradient, params, inputs, steps: int, after=lambda leaf: leaf):
    for _ in range(steps):
        _, step = gradient(params, inputs)
        params = jax.tree.map(lambda leaf, part: after(np.asarray(leaf) - np.float32(0.02) * part), params, step)
    return params


@every_model
def test_bfloat16_does_not_drift_away_in_training(name):
    _, inputs, start, gradient = subject(name)
    exact = trained(gradient, start, inputs, 20)
    near = trained(subject(name, "bfloat16").gradient, start, inputs, 20)
    assert distance(near, exact) < 0.05 * distance(exact, start)


def test_rounded_parameters_would_drift_away():
    """What the last test would see if parameters were kept in bfloat16: steps are lost in the rounding."""
    _, inputs, start, gradient = subject("encoder, tokens")
    exact = trained(gradient, start, inputs, 20)
    rounded = trained(gradient, start, inputs, 20, lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32))
    assert distance(rounded, exact) > 0.1 * distance(exact, start)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_its_description_has_the_real_counts(name):
    """Bytes that the backward pass reads: counted in arrays that were computed. Products: ``test_describe.py``."""
    model, inputs, params, gradient = subject(name)
    told = describe(model, inputs)
    assert told.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert told.parameter_bytes == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(params))
    kept = [sum(leaf.nbytes for leaf in jax.tree.leaves(backward(model, params, inputs, size))) for size in (1, 3)]
    assert told.activation_bytes == (kept[1] - kept[0]) / 2 > 0
    assert 0 < told.forward_flops < told.training_flops


def backward(model: Model, params, inputs, size: int):
    batch = jax.tree.map(lambda array: array[:size], inputs)
    keep = jax.jit(lambda params: jax.vjp(lambda params: model.apply(params, batch), params)[1])
    return keep(params)


@pytest.mark.slow
def test_no_two_rows_are_the_same_model():
    shapes = [jax.tree.map(np.shape, subject(name).params) for name in TABLE]
    assert all(first != second for first, second in itertools.combinations(shapes, 2))


@pytest.mark.parametrize("name", TABLE)
def test_adapters_hang_on_every_dense_layer_and_the_head_gives_its_features(name):
    """Traced only: what adapters compute is tested in ``test_transfer.py``, here that no model has a layer that refuses them."""
    model, inputs, params, _ = subject(name)
    want = jax.eval_shape(model.apply, params, inputs)
    adapted = lora(model, rank=1)
    widened = jax.eval_shape(adapted.init, jax.random.key(0))
    assert any("lora" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(widened))
    assert jax.eval_shape(adapted.apply, widened, inputs) == want
    kernel = params.get("head", {}).get("kernel")
    if kernel is not None and kernel.shape[1] == want.shape[-1]:  # a forecast is a reshaped output of its head
        entering = jax.eval_shape(features(model).apply, params, inputs)
        assert entering.shape == (*want.shape[:-1], kernel.shape[0]) and entering.dtype == jnp.float32
