"""FedExP by hand: the server's rate where clients disagree and where they agree."""

import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx


def make_algorithm(hyper):
    return ftx.algorithms.fed_exp(scalars.TASK, optax.sgd(scalars.HALF_WAY), hyper["epsilon"])


@pytest.mark.parametrize(
    ("examples", "epsilon", "rate", "mean"),
    [
        # From 0 half the way to 4 and to -2: squares 4 and 1, their mean 5/2; the mean change 1/2. FedAvg would end at 1/2.
        ((4, -2), 0.0, 2.5 / (2 * 0.25), 0.5),
        ((4, -2), 0.25, 2.5 / (2 * 0.5), 0.5),
        # Of equal changes the ratio is 1/2; of none it is 0 / 0.
        ((4, 4), 0.0, 1.0, 2.0),
        ((0, 0), 0.0, 1.0, 0.0),
    ],
)
def test_a_round_by_hand_in_numbers(examples, epsilon, rate, mean):
    train = scalars.clients(*[[number] for number in examples])
    local = ftx.data.LocalWork(batch_size=1)
    experiment = problems.experiment(make_algorithm, train=train, local=local, hyper={"epsilon": epsilon})
    state, (info,) = problems.play(experiment, 1)
    np.testing.assert_allclose(info.server["server_learning_rate"], rate, rtol=1e-6)
    np.testing.assert_allclose(state.device.server.params["w"], rate * mean, rtol=1e-6)
