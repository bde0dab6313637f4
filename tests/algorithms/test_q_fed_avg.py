"""q-FedAvg by hand; its limit at q = 0; losses of zero; and what it refuses."""

import numpy as np
import optax
import problems
import pytest
import quadratics

from fedjax_tx.algorithms import fed_avg, q_fed_avg

TASK = quadratics.task()
SIZES, COHORTS = (2, 1, 4), [[0, 1], [1, 2]]
RATE, STEPS = 0.1, 3
SETTINGS = {"train": quadratics.quadratic_clients(sizes=SIZES), "batch_size": 4, "rounds_per_call": 1}


def make_algorithm(hyper):
    return q_fed_avg(TASK, optax.sgd(RATE), hyper["q"], hyper["lipschitz"])


def by_hand(rounds, q, lipschitz):
    """Algorithm 2 in float64, one client after another."""
    x = np.ones(2)
    for number in range(rounds):
        up, down = np.zeros(2), 0.0
        for client in COHORTS[number % 2]:
            y = x
            for _ in range(STEPS):
                y = y - RATE * quadratics.gradient(client, y)
            error = x - np.asarray(quadratics.CENTRES[client])
            loss = quadratics.CURVATURES[client] / 2 * error @ error
            moved = lipschitz * (x - y)
            up += loss**q * moved
            down += q * loss ** (q - 1) * moved @ moved + lipschitz * loss**q
        x = x - up / down
    return x


def played(rounds, q, lipschitz=10.0):
    return quadratics.play(make_algorithm, rounds, STEPS, COHORTS, hyper={"q": q, "lipschitz": lipschitz}, **SETTINGS)


def test_the_first_round_by_hand_in_numbers():
    """q = 1, L = 10; clients 0 (a = 0.2, b = (2, -1)) and 1 (a = 1, b = (0, 1)) from (1, 1).

    F = 0.5, 0.5; 10 (w - w_k) = (-0.58808, 1.17616), (2.71, 0); h = 1.729... + 5, 7.3441 + 5.
    """
    state, _ = played(1, 1.0)
    moved = np.array([[-0.58808, 1.17616], [2.71, 0.0]])
    h = [0.58808**2 + 1.17616**2 + 5, 2.71**2 + 5]
    np.testing.assert_allclose(state.device.server.params["x"], 1 - 0.5 * moved.sum(0) / sum(h), rtol=1e-5)
    np.testing.assert_allclose(state.device.clients, [0.5, 0.5, 0.0], rtol=1e-6)


@pytest.mark.parametrize(("q", "lipschitz"), [(0.0, 10.0), (0.0, 3.0), (0.5, 10.0), (1.0, 10.0), (2.0, 5.0)])
def test_rounds_of_some_clients_are_the_papers_algorithm(q, lipschitz):
    state, _ = played(4, q, lipschitz)
    np.testing.assert_allclose(state.device.server.params["x"], by_hand(4, q, lipschitz), rtol=1e-4, atol=1e-6)


def test_at_q_zero_with_clients_of_one_size_it_is_fed_avg_and_else_it_is_not():
    train = problems.ragged_clients((4, 4, 4))
    plain, _ = problems.play(problems.experiment(fed_avg(problems.LOGISTIC, optax.sgd(0.1)), train=train), 3)

    def make_algorithm(hyper):
        return q_fed_avg(problems.LOGISTIC, optax.sgd(0.1), hyper["q"], 10.0)

    for q, same in ((0.0, True), (1.0, False)):
        ours, _ = problems.play(problems.experiment(make_algorithm, train=train, hyper={"q": q}), 3)
        left, right = ours.device.server.params, plain.device.server.params
        assert all(np.allclose(left[name], right[name], rtol=1e-5, atol=1e-6) for name in left) == same


@pytest.mark.slow
def test_with_one_local_step_it_rests_at_the_optimum_of_the_papers_objective():
    """sum_k F_k^(q + 1) / (q + 1) has the gradient sum_k F_k^q grad F_k; the larger q, the less the worst client loses."""
    worst = []
    for q in (0.0, 1.0, 4.0):
        settings = {**SETTINGS, "train": quadratics.quadratic_clients(), "rounds_per_call": 50}
        state, _ = quadratics.play(make_algorithm, 300, 1, hyper={"q": q, "lipschitz": 10.0}, **settings)
        x = np.asarray(state.device.server.params["x"], np.float64)
        gradients = np.array([quadratics.gradient(client, x) for client in range(3)])
        losses = np.square(gradients).sum(1) / (2 * np.array(quadratics.CURVATURES))
        assert np.abs(losses**q @ gradients).max() < 1e-4 * (losses**q).sum()
        worst.append(losses.max())
    assert worst[0] > 1.01 * worst[1] > 1.01**2 * worst[2]


def test_a_client_without_loss_spoils_nothing():
    """Client 1 sits at the start, where F = 0 and F^(q - 1) is infinite for q < 1."""
    train = quadratics.quadratic_clients((1.0, 1.0, 1.0), ((1.0, 1.0), (1.0, 1.0), (5.0, 5.0)), SIZES)
    for q in (0.0, 0.5, 1.0):
        hyper = {"q": q, "lipschitz": 10.0}
        state, _ = quadratics.play(make_algorithm, 2, STEPS, COHORTS, hyper=hyper, **{**SETTINGS, "train": train})
        assert np.isfinite(state.device.server.params["x"]).all()
        assert (np.asarray(state.device.server.params["x"]) > 1).all()


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("expected q >= 0, got -1.0", {"q": -1.0}),
        ("expected q to be finite", {"q": float("inf")}),
        ("expected lipschitz > 0, got 0.0", {"lipschitz": 0.0}),
    ],
)
def test_arguments_that_make_no_sense_are_refused(message, changes):
    with pytest.raises(ValueError, match=message):
        q_fed_avg(TASK, optax.sgd(0.1), **{"q": 1.0, "lipschitz": 10.0, **changes})
