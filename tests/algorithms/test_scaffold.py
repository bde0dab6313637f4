"""SCAFFOLD by hand: two rounds with some of the clients, controls and the 1/N included; its server; and what it refuses."""

import jax
import numpy as np
import optax
import problems
import pytest
import quadratics

import fedjax_tx as ftx
from fedjax_tx.algorithms import fed_avg, scaffold

TASK = quadratics.task()
SIZES, COHORTS = (2, 1, 4), [[0, 1], [1, 2]]
RATE, STEPS = 0.1, 3
SETTINGS = {"train": quadratics.quadratic_clients(sizes=SIZES), "batch_size": 4, "rounds_per_call": 1}


def by_hand(rounds, server_rate=1.0):
    """Algorithm 1 with option II, one client after another, in float64: (x, c, c_i of all clients)."""
    x, control, own = np.ones(2), np.zeros(2), np.zeros((3, 2))
    for number in range(rounds):
        cohort = COHORTS[number % 2]
        local, change = {}, {}
        for client in cohort:
            y = x
            for _ in range(STEPS):
                y = y - RATE * (quadratics.gradient(client, y) - own[client] + control)
            new = own[client] - control + (x - y) / (STEPS * RATE)
            local[client], change[client] = y - x, new - own[client]
        weight = sum(SIZES[client] for client in cohort)
        x = x + server_rate * sum(SIZES[client] * local[client] for client in cohort) / weight
        control = control + sum(change.values()) / 3
        for client in cohort:
            own[client] += change[client]
    return x, control, own


def played(rounds, server_optimizer=None):
    algorithm = scaffold(TASK, RATE, server_optimizer)
    return quadratics.play(algorithm, rounds, STEPS, COHORTS, **SETTINGS)


def test_the_first_round_by_hand_in_numbers():
    """Client 0 (a = 0.2, b = (2, -1)) shrinks x - b by 0.98 a step, client 1 (a = 1, b = (0, 1)) by 0.9."""
    state, _ = quadratics.play(scaffold(TASK, RATE), 1, STEPS, COHORTS, **SETTINGS)
    kept = 1 - 0.98**3, 1 - 0.9**3  # 0.058808 and 0.271
    moved = np.array([-1.0, 2.0]) * kept[0], np.array([1.0, 0.0]) * kept[1]
    np.testing.assert_allclose(state.device.server.params["x"], 1 - (2 * moved[0] + moved[1]) / 3, rtol=1e-5)
    own = moved[0] / 0.3, moved[1] / 0.3, np.zeros(2)
    np.testing.assert_allclose(state.device.clients["x"], own, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state.device.server.extra["x"], (own[0] + own[1]) / 3, rtol=1e-5)


@pytest.mark.parametrize(("rounds", "server_rate"), [(2, 1.0), (5, 1.0), (5, 0.5)])
def test_rounds_of_some_clients_are_the_papers_algorithm(rounds, server_rate):
    state, info = played(rounds, optax.sgd(server_rate))
    x, control, own = by_hand(rounds, server_rate)
    np.testing.assert_allclose(state.device.server.params["x"], x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.device.server.extra["x"], control, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.device.clients["x"], own, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(info.server["control_norm"], np.linalg.norm(control), rtol=1e-4)


def test_the_servers_control_is_the_mean_over_all_clients_there_or_not():
    state, _ = played(2)
    np.testing.assert_allclose(state.device.server.extra["x"], np.mean(state.device.clients["x"], axis=0), rtol=1e-5)


def test_it_is_fed_avg_while_all_controls_are_zero_and_not_after():
    for rounds, same in ((1, True), (2, False)):
        plain, _ = quadratics.play(fed_avg(TASK, optax.sgd(RATE)), rounds, STEPS, COHORTS, **SETTINGS)
        ours, _ = played(rounds)
        close = np.allclose(ours.device.server.params["x"], plain.device.server.params["x"], rtol=1e-5, atol=1e-6)
        assert close == same


def test_of_one_client_alone_it_is_gradient_descent():
    """Then N = 1 and c = c_1, so that nothing is corrected."""
    train = quadratics.quadratic_clients((0.7,), ((3.0, -2.0),))
    state, _ = quadratics.play(scaffold(TASK, RATE), 4, STEPS, train=train, rounds_per_call=1)
    want = np.array([3.0, -2.0]) + (1 - RATE * 0.7) ** 12 * (1 - np.array([3.0, -2.0]))
    np.testing.assert_allclose(state.device.server.params["x"], want, rtol=1e-5)
    np.testing.assert_allclose(state.device.server.extra["x"], state.device.clients["x"][0], rtol=1e-5)


def test_a_client_without_an_example_keeps_its_control_and_the_rest_stays_finite():
    state, infos = problems.play(problems.experiment(scaffold(problems.LOGISTIC, 0.1)), 3)
    for leaf in jax.tree.leaves(state.device.clients):
        assert np.isfinite(leaf).all()
        assert not leaf[1].any()
        assert all(leaf[client].any() for client in (0, 2, 3, 4, 5))
    assert infos[-1].num_clients == 5


def test_bfloat16_parameters_stay_so_while_controls_are_float32():
    def init(key):
        return jax.tree.map(lambda leaf: leaf.astype("bfloat16"), problems.init_logistic(key))

    task = ftx.tasks.classification(ftx.Model(init, lambda p, x, *, key=None: x.astype("bfloat16") @ p["w"] + p["b"]))
    state, infos = problems.play(problems.experiment(scaffold(task, 0.1)), 3, 2, 3)
    server = state.device.server
    assert all(info.server["update_norm"] > 0.01 for info in infos)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(server.params)} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((server.extra, state.device.clients))} == {"float32"}


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="expected client_learning_rate"):
        scaffold(TASK, rate)


def test_a_client_twice_in_a_cohort_is_refused_since_its_control_is_kept():
    with pytest.raises(ValueError, match="to hold each client once, since its state is kept"):
        quadratics.play(scaffold(TASK, RATE), 1, STEPS, [[0, 1, 1]], **SETTINGS)
