"""MOON by hand: the contrast's pull in the second round, nothing of it in the first; and a task without features."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx.algorithms.moon import contrastive_loss


def apply(params, frozen, batch, key):
    """Of the model w the features are (w, 1)."""
    outputs = scalars.TASK.apply(params, frozen, batch, key)
    return {**outputs, "features": jnp.stack([outputs["logits"], jnp.ones_like(outputs["logits"])], -1)}


def make_algorithm(hyper):
    return ftx.algorithms.moon(scalars.TASK._replace(apply=apply), optax.sgd(scalars.HALF_WAY), hyper["mu"], hyper["tau"])


@pytest.mark.parametrize(("mu", "tau"), [(1.0, 0.5), (10.0, 2.0), (0.0, 0.5)])
def test_two_rounds_by_hand(mu, tau):
    # Clients hold 4 and -4. Round 1, from 0: server and last model are the same, and no features are nearer: half the way, to
    # 2 and -2; server 0. Round 2, from 0: z = z_glob = (0, 1) and z_prev = (2, 1) / sqrt 5, so sim = 1 and 1 / sqrt 5.
    # Along w the first similarity is at its peak and the second rises by 2 / sqrt 5; of log(1 + exp u) the slope is
    # 1 / (1 + exp -u), with u = (1 / sqrt 5 - 1) / tau. FedAvg's client ends at 2 again.
    train = scalars.clients([4], [-4])
    settings = {"train": train, "local": ftx.data.LocalWork(batch_size=1), "hyper": {"mu": mu, "tau": tau}}
    state, (first, second) = problems.play(problems.experiment(make_algorithm, **settings), 2)
    near = (5**-0.5 - 1) / tau
    end = (8 - mu * (2 * 5**-0.5 / tau) / (1 + np.exp(-near))) / 4
    np.testing.assert_allclose(state.device.clients["w"], [end, -end], rtol=1e-5)
    np.testing.assert_allclose(state.device.server.params["w"], 0, atol=1e-6)
    np.testing.assert_allclose(first.client_metrics["contrast"][0], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(second.client_metrics["contrast"][0], np.log1p(np.exp(near)), rtol=1e-5)
    np.testing.assert_allclose(second.client_metrics["loss"][0], 16, rtol=1e-6)


def test_features_of_zero_have_a_gradient():
    def loss(own):
        return contrastive_loss(own, jnp.ones((1, 3)), jnp.zeros((1, 3)), 0.5).sum()

    value, slope = jax.value_and_grad(loss)(jnp.zeros((1, 3)))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert np.isfinite(slope).all()


def test_the_contrast_of_a_text_is_the_mean_over_its_positions():
    own, received, last = jax.random.normal(jax.random.key(0), (3, 2, 5, 4))
    each = [contrastive_loss(own[:, at], received[:, at], last[:, at], 0.5) for at in range(5)]
    np.testing.assert_allclose(contrastive_loss(own, received, last, 0.5), np.mean(each, 0), rtol=1e-6)


def test_a_task_without_features_is_refused():
    experiment = problems.experiment(ftx.algorithms.moon(scalars.TASK, optax.sgd(0.1), 1.0), train=scalars.clients([4]))
    with pytest.raises(ValueError, match=r"expected the task's outputs to have 'features' .*with_features.*, got \['logits'\]"):
        problems.play(experiment, 1)
