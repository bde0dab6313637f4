"""Local loops, run for one client without the executor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

from fedjax_tx.clients import ModelBroadcast, client_weight, local_evaluation, local_sgd
from fedjax_tx.simulation.lanes import batch_shapes
from fedjax_tx.types import ClientInfo

PARAMS = problems.init_logistic(jax.random.key(1))
BROADCAST = ModelBroadcast(PARAMS, ())
DATA = problems.ragged_clients((5,))


def info(num_examples: int = 5, num_steps: int = 3) -> ClientInfo:
    zero, shapes = jnp.int32(0), batch_shapes(DATA.columns, 2)
    counts = (jnp.int32(num_examples), jnp.int32(num_steps))
    return ClientInfo(zero, zero, *counts, zero, {}, jax.random.key(0), shapes)


def batches():
    """Five examples in batches of 2, 2 and 1, the last filled up."""
    for rows, mask in (([0, 1], [True, True]), ([2, 3], [True, True]), ([4, 0], [True, False])):
        yield {name: jnp.asarray(column[rows]) for name, column in DATA.columns.items()}, jnp.array(mask)


def work(trainer, state=()):
    local = trainer.start(BROADCAST, info(), state)
    for batch, mask in batches():
        local = trainer.step(BROADCAST, info(), local, batch, mask, jax.random.key(0))
    return trainer.finish(BROADCAST, info(), local)


def mean_loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["w"] + params["b"], y).mean()


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adamw(0.05)])
def test_local_sgd_is_optax_on_the_clients_batches(optimizer):
    params, state, losses = PARAMS, optimizer.init(PARAMS), []
    for rows in ([0, 1], [2, 3], [4]):
        value, gradient = jax.value_and_grad(mean_loss)(params, DATA.columns["x"][rows], DATA.columns["y"][rows])
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    result = work(local_sgd(problems.LOGISTIC, optimizer))
    want = jax.tree.map(jnp.subtract, PARAMS, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), result.update, {"delta": want})
    assert float(result.weight) == 5.0
    value, weight = result.metrics["loss"]
    np.testing.assert_allclose(value, np.average(losses, weights=[2, 2, 1]), rtol=1e-5)
    assert float(weight) == 5.0


def test_local_sgd_hands_back_the_client_state_it_got():
    result = work(local_sgd(problems.LOGISTIC, optax.sgd(0.1)), state={"kept": jnp.float32(7.0)})
    assert float(result.state["kept"]) == 7.0


def test_a_client_that_made_no_step_has_weight_zero_and_no_update():
    trainer = local_sgd(problems.LOGISTIC, optax.sgd(0.1))
    for nothing in (info(0, 0), info(5, 0)):
        result = trainer.finish(BROADCAST, nothing, trainer.start(BROADCAST, nothing, ()))
        assert float(result.weight) == 0.0
        assert all(not leaf.any() for leaf in jax.tree.leaves(result.update))
        assert [float(part) for part in result.metrics["loss"]] == [0.0, 0.0]


def test_the_weight_is_the_number_of_examples_not_of_steps():
    assert float(client_weight(info(num_examples=5, num_steps=12))) == 5.0


def test_local_evaluation_scores_all_examples_at_the_servers_parameters():
    result = work(local_evaluation(problems.LOGISTIC), state={"kept": jnp.float32(7.0)})
    x, y = DATA.columns["x"], DATA.columns["y"]
    np.testing.assert_allclose(result.metrics["loss"][0], mean_loss(PARAMS, x, y), rtol=1e-5)
    right = np.asarray((x @ PARAMS["w"] + PARAMS["b"]).argmax(-1) == y).mean()
    np.testing.assert_allclose(result.metrics["accuracy"][0], right, rtol=1e-6)
    assert float(result.metrics["loss"][1]) == 5.0
    assert result.update == {}
    assert float(result.state["kept"]) == 7.0


def test_local_evaluation_knows_its_metrics_before_its_first_batch():
    trainer = local_evaluation(problems.LOGISTIC)
    metrics, _ = trainer.start(BROADCAST, info(), ())
    assert set(metrics) == {"loss", "accuracy"}


def test_dropout_follows_the_step_key_in_training_and_is_off_in_evaluation():
    task = problems.text_task(dropout=0.5)
    params, frozen = jax.jit(task.init)(jax.random.key(0))
    broadcast = ModelBroadcast(params, frozen)
    batch = {"tokens": jnp.asarray(problems.text_clients().columns["tokens"][:2])}
    mask = jnp.ones(2, bool)
    told = info()._replace(batch=batch_shapes(batch, 2))

    def losses(trainer):
        def loss(seed):
            local = trainer.step(broadcast, told, trainer.start(broadcast, told, ()), batch, mask, jax.random.key(seed))
            return trainer.finish(broadcast, told, local).metrics["loss"][0]

        return jax.jit(jax.vmap(loss))(jnp.array([0, 0, 1])).tolist()

    one, same, other = losses(local_sgd(task, optax.sgd(1.0)))
    assert one == same != other
    assert len(set(losses(local_evaluation(task)))) == 1
