"""The full gradient of one client, without the executor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from test_local import BROADCAST, DATA, PARAMS, batches, info

from fedjax_tx.clients import full_gradient


def taken(task, state=()):
    trainer = full_gradient(task)
    local = trainer.start(BROADCAST, info(), state)
    for batch, mask in batches():
        local = trainer.step(BROADCAST, info(), local, batch, mask, jax.random.key(0))
    return trainer.finish(BROADCAST, info(), local)


@pytest.mark.parametrize("weights", [np.ones(5), np.array([0.5, 1.0, 0.0, 2.0, 0.25])])
def test_it_is_the_gradient_of_the_mean_loss_over_all_examples_by_their_weights(weights):
    """In batches of 2, 2 and 1, of which the last is filled up with an example that must not count."""

    def loss(outputs, batch):
        value, _ = problems.LOGISTIC.loss(outputs, batch)
        return value, jnp.asarray(weights, jnp.float32)[batch["row"]]

    def mean_loss(params):
        logits = DATA.columns["x"] @ params["w"] + params["b"]
        values = optax.softmax_cross_entropy_with_integer_labels(logits, DATA.columns["y"])
        return (weights * values).sum() / weights.sum()

    result = taken(problems.LOGISTIC._replace(loss=loss), state={"kept": jnp.float32(7.0)})
    value, gradient = jax.value_and_grad(mean_loss)(PARAMS)
    assert set(result.update) == {"gradient"}
    for name, leaf in gradient.items():
        np.testing.assert_allclose(result.update["gradient"][name], leaf, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.metrics["start_loss"], (value, weights.sum()), rtol=1e-5)
    assert float(result.weight) == 5.0
    assert float(result.state["kept"]) == 7.0


def test_of_no_example_it_is_zero_and_weighs_nothing():
    trainer = full_gradient(problems.LOGISTIC)
    result = trainer.finish(BROADCAST, info(0, 0), trainer.start(BROADCAST, info(0, 0), ()))
    assert float(result.weight) == 0.0
    assert all(not leaf.any() for leaf in jax.tree.leaves(result.update))
