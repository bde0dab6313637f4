"""FedNova by hand: two clients of unequal steps, without and with momentum; and that FedAvg ends elsewhere."""

import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx

CLIENTS = scalars.clients([4, 4], [8])
ONE_BY_ONE = ftx.data.LocalWork(batch_size=1)


def make_fed_nova(hyper):
    return ftx.algorithms.fed_nova(scalars.TASK, optax.sgd(scalars.HALF_WAY, hyper["momentum"]))


def first_round(algorithm, **hyper):
    state, (info,) = problems.play(problems.experiment(algorithm, train=CLIENTS, local=ONE_BY_ONE, hyper=hyper), 1)
    return float(state.device.server.params["w"]), info


@pytest.mark.parametrize(
    ("momentum", "expected", "length"),
    [
        # From 0, client 0 goes half the way to 4 and again: 3 in 2 steps. Client 1 goes to 4 in one. p = 2/3, 1/3.
        # tau_eff = 5/3; per step 2/3 * 3/2 + 1/3 * 4 = 7/3.
        (0.0, 5 / 3 * 7 / 3, 5 / 3),
        # Client 0: to 2; then with slope 2 (2 - 4) = -4 and momentum -8/2 by another 8/4: 4, of length 1 + 3/2.
        # tau_eff = 2/3 * 5/2 + 1/3 = 2; per step 2/3 * 4 / (5/2) + 1/3 * 4 = 12/5.
        (0.5, 2 * 12 / 5, 2.0),
    ],
)
def test_the_first_round_by_hand_in_numbers(momentum, expected, length):
    got, info = first_round(make_fed_nova, momentum=momentum)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(info.server["mean_length"], scalars.HALF_WAY * length, rtol=1e-6)


def test_fed_avg_ends_elsewhere():
    got, _ = first_round(ftx.algorithms.fed_avg(scalars.TASK, optax.sgd(scalars.HALF_WAY)))
    np.testing.assert_allclose(got, 2 / 3 * 3 + 1 / 3 * 4, rtol=1e-6)
