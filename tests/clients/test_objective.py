"""Masking and averaging: by hand, and by what must never count."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from fedjax_tx.clients import add_metrics, batch_loss, batch_metrics, masked_mean, no_metrics

X = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
Y = jnp.array([0, 2, 1])
PARAMS = {"w": jnp.array([[1.0, 0.0, -1.0], [0.5, 0.0, 0.0]]), "b": jnp.array([0.0, 0.1, 0.2])}


def cross_entropy(row: int) -> float:
    logits = np.asarray(X[row] @ PARAMS["w"] + PARAMS["b"], np.float64)
    return float(np.log(np.exp(logits).sum()) - logits[Y[row]])


def test_masked_mean_by_hand():
    value, weight = jnp.array([1.0, 4.0, 7.0, 100.0]), jnp.array([2.0, 1.0, 0.0, 5.0])
    mean, total = masked_mean(value, weight, jnp.array([True, True, True, False]))
    assert (float(mean), float(total)) == (2.0, 3.0)


def test_nothing_real_has_mean_and_weight_zero():
    for weight, mask in ((jnp.ones(2), jnp.zeros(2, bool)), (jnp.zeros(2), jnp.ones(2, bool))):
        mean, total = masked_mean(jnp.array([3.0, jnp.nan]), weight, mask)
        assert (float(mean), float(total)) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_masked_or_weighs_nothing_may_hold_anything(bad):
    value = jnp.array([2.0, bad, bad])
    mean, total = masked_mean(value, jnp.array([1.0, 1.0, 0.0]), jnp.array([True, False, True]))
    assert (float(mean), float(total)) == (2.0, 1.0)


def test_what_counts_and_is_not_a_number_shows():
    mean, _ = masked_mean(jnp.array([2.0, jnp.nan]), jnp.ones(2), jnp.ones(2, bool))
    assert np.isnan(mean)


def test_bfloat16_is_averaged_in_float32():
    value = jnp.full(1000, 1.0, jnp.bfloat16)
    mean, total = masked_mean(value, jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, bool))
    assert mean.dtype == total.dtype == jnp.float32
    assert (float(mean), float(total)) == (1.0, 1000.0)  # 1000 is no sum of ones in bfloat16


def test_the_loss_of_a_batch_by_hand():
    batch, mask = {"x": X, "y": Y}, jnp.array([True, False, True])
    value, weight = batch_loss(problems.LOGISTIC, PARAMS, (), batch, mask, None)
    np.testing.assert_allclose(value, (cross_entropy(0) + cross_entropy(2)) / 2, rtol=1e-6)
    assert float(weight) == 2.0


def test_an_all_masked_batch_has_a_gradient_of_zero():
    batch = {"x": X, "y": Y}

    def loss(params):
        return batch_loss(problems.LOGISTIC, params, (), batch, jnp.zeros(3, bool), None)

    (value, weight), gradient = jax.value_and_grad(loss, has_aux=True)(PARAMS)
    assert (float(value), float(weight)) == (0.0, 0.0)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_an_all_masked_batch_of_texts_has_a_gradient_of_zero():
    task = problems.text_task()
    params, frozen = jax.jit(task.init)(jax.random.key(0))

    def loss(params):
        return batch_loss(task, params, frozen, {"tokens": jnp.zeros((2, 5), jnp.int32)}, jnp.zeros(2, bool), None)[0]

    assert all(not leaf.any() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


def test_the_gradient_of_a_masked_batch_is_that_of_its_real_rows():
    def gradient(rows, mask):
        def loss(params):
            return batch_loss(problems.LOGISTIC, params, (), {"x": X[rows], "y": Y[rows]}, mask, None)[0]

        return jax.grad(loss)(PARAMS)

    real = gradient(jnp.array([1, 2]), jnp.ones(2, bool))
    masked = gradient(jnp.array([1, 0, 2]), jnp.array([True, False, True]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), real, masked)


def test_metrics_of_a_batch_hold_the_loss_and_the_tasks_own():
    metrics = batch_metrics(problems.LOGISTIC, PARAMS, (), {"x": X, "y": Y}, jnp.array([True, True, False]))
    assert set(metrics) == {"loss", "accuracy"}
    np.testing.assert_allclose(metrics["loss"][0], (cross_entropy(0) + cross_entropy(1)) / 2, rtol=1e-6)
    assert [float(part) for part in metrics["accuracy"]] == [0.5, 2.0]  # row 1 is taken for class 0


def test_metrics_of_two_batches_are_those_of_both_together():
    left, right = {"loss": (jnp.float32(1.0), jnp.float32(3.0))}, {"loss": (jnp.float32(5.0), jnp.float32(1.0))}
    value, weight = add_metrics(left, right)["loss"]
    assert (float(value), float(weight)) == (2.0, 4.0)


def test_no_metrics_is_neutral():
    one = {"loss": (jnp.float32(1.5), jnp.float32(3.0))}
    for left, right in ((one, no_metrics(one)), (no_metrics(one), one)):
        assert [float(part) for part in add_metrics(left, right)["loss"]] == [1.5, 3.0]
    none = add_metrics(no_metrics(one), no_metrics(one))["loss"]
    assert [float(part) for part in none] == [0.0, 0.0]


def test_many_metrics_add_up_in_any_grouping():
    values, weights = np.random.default_rng(0).random((2, 40)).astype(np.float32)
    total = no_metrics({"m": None})
    for value, weight in zip(values, weights, strict=True):
        total = add_metrics(total, {"m": (jnp.asarray(value), jnp.asarray(weight))})
    np.testing.assert_allclose(total["m"][0], (values * weights).sum() / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(total["m"][1], weights.sum(), rtol=1e-5)
