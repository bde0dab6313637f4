"""FedAc by hand: two rounds of two clients, both points; and the convexity at which it is federated averaging."""

import numpy as np
import problems
import pytest
import scalars

import fedjax_tx as ftx


def make_algorithm(hyper):
    return ftx.algorithms.fed_ac(scalars.TASK, scalars.HALF_WAY, hyper["mu"], local_steps=1)


@pytest.mark.parametrize(
    ("mu", "model", "ahead"),
    [
        # eta = 1/4 and mu = 1: gamma = 1/2, alpha = 2, beta = 3. The middle is w / 3 + 2/3 w_ag.
        # Round 1, from 0: towards 4 the slope is -8: w_ag = 2, w = 4; towards 0 nothing moves. Means: w_ag = 1, w = 2.
        # Round 2: the middle is 4/3. Slope -16/3: w_ag = 4/3 + 4/3 = 8/3, w = 1 + 2/3 + 8/3 = 13/3.
        #          Slope 8/3: w_ag = 4/3 - 2/3 = 2/3, w = 1 + 2/3 - 4/3 = 1/3. Means: w_ag = 5/3, w = 7/3.
        (1.0, 5 / 3, 7 / 3),
        # mu = 1 / eta: both are FedAvg's, half the way to 2 in each round.
        (4.0, 1.5, 1.5),
    ],
)
def test_two_rounds_by_hand_in_numbers(mu, model, ahead):
    experiment = problems.experiment(
        make_algorithm, train=scalars.clients([4], [0]), local=ftx.data.LocalWork(batch_size=1), hyper={"mu": mu}
    )
    state, _ = problems.play(experiment, 2)
    server = state.device.server
    np.testing.assert_allclose([server.params["w"], server.extra["w"]], [model, ahead], rtol=1e-6)
