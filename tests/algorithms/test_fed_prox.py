"""FedProx by hand, its limit at mu = 0, and where a client with many steps comes to rest."""

import numpy as np
import optax
import pytest
import quadratics

from fedjax_tx.algorithms import fed_prox

SIZES, COHORTS = (2, 1, 4), [[0, 1], [1, 2]]
RATE, STEPS = 0.1, 3
SETTINGS = {"train": quadratics.quadratic_clients(sizes=SIZES), "batch_size": 4, "rounds_per_call": 1}


def make_algorithm(hyper):
    return fed_prox(quadratics.task(), optax.sgd(RATE), hyper["mu"])


def by_hand(rounds: int, mu: float, steps: int = STEPS) -> np.ndarray:
    """Algorithm 2 in float64, one client after another."""
    x = np.ones(2)
    for number in range(rounds):
        clients = COHORTS[number % 2]
        ends = []
        for client in clients:
            w = x
            for _ in range(steps):
                w = w - RATE * (quadratics.gradient(client, w) + mu * (w - x))
            ends.append(w)
        x = np.average(ends, axis=0, weights=[SIZES[client] for client in clients])
    return x


def played(rounds: int, mu: float, steps: int = STEPS) -> np.ndarray:
    state, _ = quadratics.play(make_algorithm, rounds, steps, COHORTS, hyper={"mu": mu}, **SETTINGS)
    return np.asarray(state.device.server.params["x"])


def test_the_first_round_by_hand_in_numbers():
    """mu = 1. Client 1 (a = 1, b = (0, 1)) goes 1 -> 0.9 -> 0.82 -> 0.756: its slopes are 1, 0.9 - 0.1 and 0.82 - 0.18.

    Client 0 (a = 0.2, b = (2, -1)) moves by 0.02 + 0.0176 + 0.015488 = 0.053088 towards 2 and by twice that towards -1. It holds
    two rows, client 1 holds one.
    """
    expected = [(2 * 1.053088 + 0.756) / 3, (2 * (1 - 2 * 0.053088) + 1.0) / 3]
    np.testing.assert_allclose(played(1, 1.0), expected, rtol=1e-6)


@pytest.mark.parametrize("mu", [0.0, 0.1, 5.0])
def test_rounds_of_some_clients_are_the_papers_algorithm(mu):
    np.testing.assert_allclose(played(4, mu), by_hand(4, mu), rtol=1e-5, atol=1e-6)


def test_it_is_not_fed_avg_and_the_dearer_the_way_the_shorter():
    lengths = [np.linalg.norm(played(1, mu) - 1) for mu in (0.0, 1.0, 5.0)]
    assert (np.diff(lengths) < -0.005).all()


def test_many_steps_end_where_the_gradient_is_the_price():
    """a (w - b) + mu (w - x) = 0."""
    ends = [(a * np.array(b) + 2.0) / (a + 2.0) for a, b in zip(quadratics.CURVATURES, quadratics.CENTRES, strict=True)]
    np.testing.assert_allclose(played(1, 2.0, steps=100), (2 * ends[0] + ends[1]) / 3, rtol=1e-5)
