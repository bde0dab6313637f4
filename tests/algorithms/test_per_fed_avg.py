"""Per-FedAvg and its variants: a step on paper, and what evaluation scores."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx.algorithms.per_fed_avg import halves

ALPHA, BETA = 0.125, 0.25
METHODS = [ftx.algorithms.per_fed_avg, ftx.algorithms.per_fed_avg_fo, ftx.algorithms.per_fed_avg_hf]
SKEWED = scalars.TASK._replace(loss=lambda outputs, batch: ((outputs["logits"] - batch["x"]) ** 3 / 3, jnp.ones_like(batch["x"])))
"""The loss (w - x)^3 / 3: its gradient is (w - x)^2 and its Hessian 2 (w - x)."""


def step(method, task, start=0.0, dtype=jnp.float32):
    """What one step of one client with the examples 3 and 1 makes of ``start``."""
    algorithm = method(task, optax.sgd(BETA), ALPHA)
    trainer, broadcast = algorithm.passes[0].trainer, ftx.clients.ModelBroadcast({"w": jnp.array(start, dtype)}, ())
    batch, mask = {"x": jnp.array([3.0, 1.0, 7.0])}, jnp.array([True, True, False])

    @jax.jit
    def play(key):
        return trainer.step(broadcast, None, trainer.start(broadcast, None, ()), batch, mask, key)

    local = play(jax.random.key(0))
    return float(local.params["w"]), tuple(map(float, local.metrics["loss"]))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_by_hand(method):
    # The gradient of D = {3} at 0 is 9, so u = -9 / 8; that of D' = {1} at u is g = (-17 / 8)^2.
    # The Hessian of D at 0 is -6: I - alpha H = 1 + 6 / 8. FO leaves it out.
    g = (17 / 8) ** 2
    wanted = {"per_fed_avg_fo": -BETA * g}.get(method.__name__, -BETA * (1 + 6 / 8) * g)
    moved, (loss, weight) = step(method, SKEWED)
    np.testing.assert_allclose(moved, wanted, rtol=1e-3 if method is ftx.algorithms.per_fed_avg_hf else 1e-5)
    np.testing.assert_allclose([loss, weight], [(-17 / 8) ** 3 / 3, 1], rtol=1e-5)


@pytest.mark.parametrize("method", [ftx.algorithms.per_fed_avg, ftx.algorithms.per_fed_avg_hf])
def test_the_hessian_is_not_lost_on_parameters_of_few_bits(method):
    # From 2: u = 2 - 1 / 8, g = (7 / 8)^2, and the Hessian of D is -2. In bfloat16 2 + 0.001 g would be 2.
    moved, _ = step(method, SKEWED, 2.0, jnp.bfloat16)
    np.testing.assert_allclose(moved, 2 - BETA * (1 + 2 / 8) * (7 / 8) ** 2, atol=2**-7)


def test_halves_share_no_example_but_an_only_one():
    for count in range(6):
        first, rest = halves(jnp.arange(5) < count)
        assert int(first.sum()) == -(-count // 2) and int(rest.sum()) == (1 if count == 1 else count // 2)
        assert not (first & rest).any() or count == 1
        np.testing.assert_array_equal(first | rest, jnp.arange(5) < count)


def test_evaluation_tunes_on_the_first_examples_and_scores_the_others():
    algorithm = ftx.algorithms.per_fed_avg(scalars.TASK, optax.sgd(BETA), ALPHA)
    work = ftx.data.LocalWork(batch_size=4)
    experiment = problems.experiment(algorithm, hyper={}, train=scalars.clients([2, 2], [2, 2]), local=work)
    state = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init()
    metrics = ftx.make_evaluation(experiment, scalars.clients([4, 3, 5, 1], [2]))(state)
    # A step on 4 from 0: w = 8 / 8; scored on 3, 5, 1. A single example is scored with the server's model.
    np.testing.assert_allclose(metrics["loss"][0], [(4 + 16 + 0) / 3, 4], rtol=1e-6)
    np.testing.assert_allclose(metrics["global_loss"][0], [(9 + 25 + 1) / 3, 4], rtol=1e-6)
    assert metrics["loss"][1].tolist() == [3, 1]
