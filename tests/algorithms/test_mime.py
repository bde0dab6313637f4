"""Mime and MimeLite by hand: statistics held fixed at clients, moved by the full gradient; limits; and what they refuse."""

import numpy as np
import optax
import problems
import pytest
import quadratics

import fedjax_tx as ftx
from fedjax_tx.algorithms import fed_avg, mime, mime_lite

TASK = quadratics.task()
SIZES, COHORTS = (2, 1, 4), [[0, 1], [1, 2]]
RATE, STEPS, BETA = 0.1, 3, 0.9
SETTINGS = {"train": quadratics.quadratic_clients(sizes=SIZES), "batch_size": 4, "rounds_per_call": 1}


def by_hand(rounds, step, keep, statistics, corrected):
    """Algorithm 1 in float64, one client after another; ``step(y, g, s)`` is U and ``keep(g, s)`` is V."""
    x = np.ones(2)
    for number in range(rounds):
        cohort = COHORTS[number % 2]
        weights = np.array([SIZES[client] for client in cohort]) / sum(SIZES[client] for client in cohort)
        full = weights @ [quadratics.gradient(client, x) for client in cohort]
        ends = []
        for client in cohort:
            y = x
            for _ in range(STEPS):
                slope = quadratics.gradient(client, y)
                y = step(y, slope - quadratics.gradient(client, x) + full if corrected else slope, statistics)
            ends.append(y)
        x, statistics = weights @ ends, keep(full, statistics)
    return x, statistics


@pytest.mark.parametrize(("make", "corrected"), [(mime, True), (mime_lite, False)])
@pytest.mark.parametrize("rounds", [2, 5])
def test_rounds_with_momentum_are_the_papers_algorithm(make, corrected, rounds):
    state, _ = quadratics.play(make(TASK, optax.sgd(RATE, BETA)), rounds, STEPS, COHORTS, **SETTINGS)
    x, momentum = by_hand(rounds, lambda y, g, m: y - RATE * (g + BETA * m), lambda g, m: g + BETA * m, np.zeros(2), corrected)
    np.testing.assert_allclose(state.device.server.params["x"], x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.device.server.optimizer[0].trace["x"], momentum, rtol=1e-4, atol=1e-6)


def test_rounds_with_adam_count_rounds_not_steps():
    """Second moments of a step hold a share 1 - b2 of its own gradient, as the file says; the statistics move once a round."""
    b1, b2, tiny, rate = 0.9, 0.99, 1e-8, 0.07

    def moments(g, s):
        m, v, count = s
        return b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2, count + 1

    def step(y, g, s):
        m, v, count = moments(g, s)
        return y - rate * (m / (1 - b1**count)) / (np.sqrt(v / (1 - b2**count)) + tiny)

    x, (m, v, count) = by_hand(4, step, moments, (np.zeros(2), np.zeros(2), 0), True)
    state, _ = quadratics.play(mime(TASK, optax.adam(rate, b1, b2, tiny)), 4, STEPS, COHORTS, **SETTINGS)
    np.testing.assert_allclose(state.device.server.params["x"], x, rtol=1e-4, atol=1e-6)
    statistics = state.device.server.optimizer[0]
    assert int(statistics.count) == count == 4
    np.testing.assert_allclose(statistics.mu["x"], m, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics.nu["x"], v, rtol=1e-4, atol=1e-6)


def same(left, right):
    return all(np.allclose(left[name], right[name], rtol=1e-4, atol=1e-6) for name in left)


def params(make_algorithm, **changes):
    return problems.play(problems.experiment(make_algorithm, **changes), 3, 2, 3)[0].device.server.params


@pytest.mark.slow
def test_mime_lite_on_plain_sgd_is_fed_avg_and_mime_is_not():
    plain = params(fed_avg(problems.LOGISTIC, optax.sgd(0.1)))
    assert same(params(mime_lite(problems.LOGISTIC, optax.sgd(0.1))), plain)
    assert not same(params(mime(problems.LOGISTIC, optax.sgd(0.1))), plain)


@pytest.mark.slow
def test_mime_with_one_step_on_all_data_is_the_base_optimiser_on_the_pooled_data():
    """Then every client steps by c itself, whatever the base optimiser."""
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    experiment = problems.experiment(mime(problems.LOGISTIC, optimizer), local=ftx.data.LocalWork(batch_size=9))
    start = ftx.make_round(experiment, ftx.Execution(num_lanes=2, rounds_per_call=3)).init().device.server.params
    pooled = problems.experiment(
        fed_avg(problems.LOGISTIC, optax.sgd(1.0), optimizer),
        train=problems.ragged_clients((25,)),
        local=ftx.data.LocalWork(batch_size=25),
    )
    round_fn = ftx.make_round(pooled, ftx.Execution(num_lanes=1, rounds_per_call=3))
    state, _ = round_fn.run(round_fn.init(init_params=start), 3)
    ours, _ = problems.play(experiment, 3, 2, 3)
    assert same(ours.device.server.params, state.device.server.params)


def test_the_first_pass_counts_each_example_once_whatever_its_batches():
    one = mime(problems.LOGISTIC, optax.sgd(0.1))
    results = [
        problems.play(problems.experiment(one, hyper={}, local=ftx.data.LocalWork(batch_size=size)), 1)[1][0] for size in (1, 4)
    ]
    for info in results:
        np.testing.assert_allclose(info.server["gradient_norm"], results[0].server["gradient_norm"], rtol=1e-5)
        assert info.client_metrics["start_loss"][1].tolist() == list(problems.SIZES)
    experiment = problems.experiment(one)
    start = ftx.make_round(experiment, ftx.Execution(num_lanes=2)).init()
    losses = ftx.make_evaluation(experiment, experiment.train)(start)["loss"][0]
    np.testing.assert_allclose(results[0].client_metrics["start_loss"][0], losses, rtol=1e-5)
