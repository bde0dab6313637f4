"""pFedMe: a round on paper, the envelope's gradient, and who is scored with what."""

import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx


def on_paper(hyper):
    return ftx.algorithms.p_fed_me(scalars.TASK, optax.sgd(hyper["eta"]), 0.1, hyper["strength"], personal_steps=2)


@pytest.fixture(scope="module")
def played():
    """Two clients of three, in a round of two steps."""
    experiment = problems.experiment(
        on_paper,
        hyper={"eta": 0.5, "strength": 1.0},
        train=scalars.clients([4, 4], [0, 0], [2], ids=["a", "b", "never"]),
        local=ftx.data.LocalWork(batch_size=1),
        cohorts=ftx.data.fixed_cohorts([[0, 1]]),
    )
    return experiment, *problems.play(experiment, 1)


def test_a_round_by_hand(played):
    # theta <- theta - 0.1 (2 (theta - 4) + (theta - w)), twice from w;  w <- w - 0.5 (w - theta).
    # w = 0:    theta = 0.8;  0.8 - 0.1 (-6.4 + 0.8) = 1.36;                        w = 0.68.
    # w = 0.68: theta = 0.68 + 0.664 = 1.344;  1.344 - 0.1 (-5.312 + 0.664) = 1.8088;  w = 0.68 + 0.5644 = 1.2444.
    # The other client rests at 0. With one inner step each it would be FedAvg: w = 0.4, then 0.76.
    _, state, (info,) = played
    np.testing.assert_allclose(state.device.clients["w"], [1.8088, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(state.device.server.params["w"], 1.2444 / 2, rtol=1e-5)
    np.testing.assert_allclose(info.client_metrics["loss"][0], [(4**2 + 3.32**2) / 2, 0], rtol=1e-5)


def test_clients_are_scored_with_their_own_model_and_strangers_with_the_global_one(played):
    experiment, state, _ = played
    metrics = ftx.make_evaluation(experiment, scalars.clients([1], [2], [5], ids=["stranger", "never", "a"]))(state)
    np.testing.assert_allclose(metrics["loss"][0], [(0.6222 - 1) ** 2, 4, (1.8088 - 5) ** 2], rtol=1e-4)
    np.testing.assert_allclose(metrics["global_loss"][0], [(0.6222 - 1) ** 2, (0.6222 - 2) ** 2, (0.6222 - 5) ** 2], rtol=1e-4)
