"""FedAsync on paper: models mixed as they come, the price of the distance from the start, and where it is not FedBuff."""

import numpy as np
import optax
import problems
import scalars

import fedjax_tx as ftx


def play(hyper, examples, steps, cohorts, rounds):
    def make(hyper):
        half_way = optax.sgd(scalars.HALF_WAY)
        return ftx.algorithms.fed_async(scalars.TASK, half_way, 2, hyper["alpha"], lambda s: 1 / (1 + s), hyper["mu"])

    work = ftx.data.LocalWork(batch_size=1, steps=steps)
    data = scalars.clients(*examples)
    return problems.play(problems.experiment(make, hyper=hyper, train=data, local=work, cohorts=cohorts), rounds, 1, rounds)


def test_three_models_are_mixed_as_they_come_by_hand():
    # A, B and C at 4, -4, 8 train for 1, 2 and 5, half the way to their number; alpha = 1/2, s = 1 / (1 + age).
    # t=1  A from w0 = 0 ends at 2,   age 0: w1 = 0 + 1/2 (2 - 0) = 1.
    # t=2  B from w0 = 0 ends at -2,  age 1: w2 = 1 + 1/4 (-2 - 1) = 1/4.    FedBuff's server would go by -2 from 1.
    # t=2  A from w1 = 1 ends at 5/2, age 1: w3 = 1/4 + 1/4 (5/2 - 1/4) = 13/16.
    clock = ftx.data.async_cohorts([1, 2, 5], concurrency=3, buffer_size=1, max_staleness=2)
    state, infos = play({"alpha": 0.5, "mu": 0.0}, [[4], [-4], [8]], 1, clock, 3)
    assert [info.metrics["staleness"] for info in infos] == [0, 1, 1]
    np.testing.assert_allclose(state.device.server.extra["w"], [0.8125, 0.25, 1.0], rtol=1e-6)


def test_a_client_pays_for_the_distance_from_its_own_start_by_hand():
    # A at 8, two steps from w: to (w + 8) / 2, then by 1/4 of 2 (w' - 8) + mu (w' - w); mu = 1.
    # w0 = 0: to 4, then 4 - (-8 + 4) / 4 = 5;  w1 = 5 with alpha = 1, where FedAvg had 6.
    # w1 = 5: to 6.5, then 6.5 - (-3 + 1.5) / 4 = 6.875.
    cohorts = ftx.data.fixed_cohorts([[0]])
    state, _ = play({"alpha": 1.0, "mu": 1.0}, [[8]], 2, cohorts, 2)
    np.testing.assert_allclose(state.device.server.extra["w"], [6.875, 5.0, 0.0], rtol=1e-6)
