"""Client drift on quadratics of different curvature, with several local steps: where each method comes to rest, in closed form.

With f_i(x) = a_i / 2 ||x - b_i||^2 and K steps at rate eta a client goes from x to b_i + (1 - eta a_i)^K (x - b_i). All clients
take part. FedAvg rests where sum_i w_i (x - b_i) = 0 with w_i = 1 - (1 - eta a_i)^K; at the optimum of the mean, a_i is in the
place of w_i.
"""

import numpy as np
import optax
import pytest
import quadratics

from fedjax_tx.algorithms import fed_avg, fed_dyn, fed_nova, mime, mime_lite, scaffold

RATE, STEPS, ROUNDS = 0.3, 5, 200
A, B = np.array(quadratics.CURVATURES), np.array(quadratics.CENTRES)
OPTIMUM = A @ B / A.sum()
PULL = 1 - (1 - RATE * A) ** STEPS
DRIFTED = PULL @ B / PULL.sum()
TASK = quadratics.task()


def rest(make_algorithm, rounds=ROUNDS, steps=STEPS, **settings):
    """Where the server is after many rounds; and that it has come to rest there."""
    state, info = quadratics.play(make_algorithm, rounds, steps, rounds_per_call=50, **settings)
    assert info.server["update_norm"] < 1e-5
    return np.asarray(state.device.server.params["x"])


def test_the_two_points_are_far_apart():
    assert np.abs(OPTIMUM - DRIFTED).min() > 0.1


@pytest.mark.parametrize("make_algorithm", [fed_avg, mime_lite], ids=["fed_avg", "mime_lite"])
def test_without_correction_it_rests_at_the_wrong_point(make_algorithm):
    # MimeLite on plain SGD is FedAvg.
    np.testing.assert_allclose(rest(make_algorithm(TASK, optax.sgd(RATE))), DRIFTED, atol=1e-4)


def test_scaffold_reaches_the_optimum():
    np.testing.assert_allclose(rest(scaffold(TASK, RATE)), OPTIMUM, atol=1e-4)


@pytest.mark.slow
def test_scaffold_reaches_the_optimum_though_one_client_is_away_each_round():
    cohorts = [[0, 1], [1, 2], [2, 0]]
    np.testing.assert_allclose(rest(scaffold(TASK, RATE), 300, cohorts=cohorts), OPTIMUM, atol=1e-4)


def test_scaffold_rests_at_the_optimum_of_the_plain_mean_though_clients_hold_unequal_data():
    train = quadratics.quadratic_clients(sizes=(1, 4, 1))
    weighted = (A * [1, 4, 1]) @ B / (A @ [1, 4, 1])
    assert np.abs(weighted - OPTIMUM).min() > 0.1
    np.testing.assert_allclose(rest(scaffold(TASK, RATE), 400, train=train), OPTIMUM, atol=1e-4)


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_mime_reaches_the_optimum(momentum):
    """Its steps sum to -eta c sum_j (1 - eta a_i)^j, a multiple of the full gradient c: it rests where c = 0, for SGD at once."""
    np.testing.assert_allclose(rest(mime(TASK, optax.sgd(RATE, momentum))), OPTIMUM, atol=1e-4)


def test_mime_on_plain_sgd_contracts_at_the_rate_of_its_theory():
    """x+ - x* = (1 - mean_i a_i mean_i (w_i / a_i)) (x - x*), on quadratics in one round and exactly."""
    state, _ = quadratics.play(mime(TASK, optax.sgd(RATE)), 3, STEPS)
    factor = 1 - A.mean() * (PULL / A).mean()
    want = OPTIMUM + factor**3 * (np.ones(2) - OPTIMUM)
    np.testing.assert_allclose(state.device.server.params["x"], want, rtol=1e-4)


@pytest.mark.slow
def test_two_local_steps_already_drift_and_one_does_not():
    for steps, pull in ((1, RATE * A), (2, 1 - (1 - RATE * A) ** 2)):
        state, _ = quadratics.play(fed_avg(TASK, optax.sgd(RATE)), 400, steps, rounds_per_call=50)
        np.testing.assert_allclose(state.device.server.params["x"], pull @ B / pull.sum(), atol=1e-4)


UNEQUAL = np.array([8, 1, 3])


def resting_point(rate: float, normalised: bool) -> np.ndarray:
    """Where sum_i w_i (x - b_i) = 0 for unequal steps; FedNova divides each client's pull w_i by its number of steps."""
    pull = (1 - (1 - rate * A) ** UNEQUAL) / (UNEQUAL if normalised else 1)
    return pull @ B / pull.sum()


def test_with_unequal_steps_fed_nova_rests_at_its_own_point_which_tends_to_the_optimum():
    def make_algorithm(hyper):
        return fed_nova(TASK, optax.sgd(hyper["rate"]))

    errors = []
    for rate, rounds in ((0.2, 200), (0.02, 400)):
        point = resting_point(rate, normalised=True)
        np.testing.assert_allclose(rest(make_algorithm, rounds, UNEQUAL, hyper={"rate": rate}), point, atol=1e-4)
        errors.append(np.abs(point - OPTIMUM).max())
    assert errors[0] > 0.1 and errors[1] < errors[0] / 5
    # That of FedAvg does not: clients with more steps count for more however small the rate.
    assert np.abs(resting_point(1e-6, normalised=True) - OPTIMUM).max() < 1e-4
    assert np.abs(resting_point(1e-6, normalised=False) - OPTIMUM).max() > 0.1


@pytest.mark.slow
def test_fed_avg_with_unequal_steps_rests_at_the_point_without_normalisation():
    np.testing.assert_allclose(rest(fed_avg(TASK, optax.sgd(0.2)), steps=UNEQUAL), resting_point(0.2, False), atol=1e-4)


def test_fed_dyn_reaches_the_optimum_though_one_client_is_away_each_round_and_local_steps_are_few():
    cohorts = [[0, 1], [1, 2], [2, 0]]
    np.testing.assert_allclose(rest(fed_dyn(TASK, optax.sgd(RATE), 1.0), 300, cohorts=cohorts), OPTIMUM, atol=1e-4)
