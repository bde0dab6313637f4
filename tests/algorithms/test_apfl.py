"""APFL: two rounds on paper, who is scored with what, and the global part against FedAvg."""

import jax
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx.algorithms.apfl import Mixture, mix


def on_paper(hyper):
    return ftx.algorithms.apfl(
        scalars.TASK, optax.sgd(scalars.HALF_WAY), 0.1, hyper["alpha"], alpha_learning_rate=hyper["alpha_rate"]
    )


@pytest.fixture(scope="module")
def played():
    """Two clients of three, in two rounds of two steps."""
    experiment = problems.experiment(
        on_paper,
        hyper={"alpha": 0.5, "alpha_rate": 0.05},
        train=scalars.clients([4, 4], [0, 0], [2], ids=["a", "b", "never"]),
        local=ftx.data.LocalWork(batch_size=1),
        cohorts=ftx.data.fixed_cohorts([[0, 1]] * 2),
    )
    return experiment, *problems.play(experiment, 2, rounds_per_call=2)


def test_two_rounds_by_hand(played):
    # m = alpha v + (1 - alpha) w;  v <- v - 0.1 alpha 2 (m - x);  at first in a round alpha <- alpha - 0.05 2 (m - x) (v - w).
    # Round 1, a: v = w = 0: v = 0 - 0.05 (-8) = 0.4, alpha stays, w = 2;  m = 1.2: v = 0.4 - 0.05 (-5.6) = 0.68, w = 3.
    #          b: nothing moves.      w = 1.5.
    # Round 2, a: m = 0.5 * 0.68 + 0.5 * 1.5 = 1.09: v = 0.68 - 0.05 (-5.82) = 0.971, w = 2.75,
    #             alpha = 0.5 - 0.05 (-5.82) (0.68 - 1.5) = 0.26138;
    #             m = 2.75 + 0.26138 (0.971 - 2.75) = 2.285005: v = 0.971 - 0.026138 (-3.42999) = 1.060653, w = 3.375.
    #          b: m = 0.75: v = -0.05 * 1.5 = -0.075, w = 0.75, alpha = 0.5 - 0.05 * 1.5 (-1.5) = 0.6125;
    #             m = 0.75 + 0.6125 (-0.825) = 0.2446875: v = -0.075 - 0.06125 * 0.489375 = -0.104974, w = 0.375.
    #          w = 1.875.
    _, state, (first, second) = played
    np.testing.assert_allclose(state.device.clients.params["w"], [1.060653, -0.104974, 0], rtol=1e-5)
    np.testing.assert_allclose(state.device.clients.alpha, [0.26138, 0.6125, 0.5], rtol=1e-5)
    np.testing.assert_allclose(state.device.server.params["w"], 1.875)
    np.testing.assert_allclose(first.client_metrics["personal_loss"][0], [(4**2 + 2.8**2) / 2, 0], rtol=1e-6)
    np.testing.assert_allclose(second.client_metrics["alpha"][0], [0.26138, 0.6125], rtol=1e-5)


def test_clients_are_scored_with_their_mixture_and_strangers_with_the_global_model(played):
    experiment, state, _ = played
    metrics = ftx.make_evaluation(experiment, scalars.clients([1], [2], [5], ids=["stranger", "never", "a"]))(state)
    mixture = 0.26138 * 1.060653 + (1 - 0.26138) * 1.875
    np.testing.assert_allclose(metrics["loss"][0], [0.875**2, (1.875 / 2 - 2) ** 2, (mixture - 5) ** 2], rtol=1e-5)
    np.testing.assert_allclose(metrics["global_loss"][0], [0.875**2, 0.125**2, 3.125**2], rtol=1e-5)


def test_the_ends_of_the_mixture():
    own, shared = {"w": np.float32(3)}, {"w": np.float32(-1)}
    mixtures = [mix(Mixture(own, jax.numpy.float32(alpha)), shared)["w"] for alpha in (0, 0.25, 1)]
    np.testing.assert_allclose(mixtures, [-1, 0, 3])
