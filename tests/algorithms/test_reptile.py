"""Reptile by hand: part of the way to the plain mean of the clients, by a rate that falls over the rounds."""

import numpy as np
import optax
import problems
import scalars

import fedjax_tx as ftx


def test_two_rounds_by_hand_in_numbers():
    # Half the way at each of two steps to 4, of one step to 8: 3 and 4, in the mean 3.5; epsilon is 1, then 1/2.
    # From 3.5: 4 - 0.5 / 4 = 3.875 and 5.75, in the mean 4.8125. FedAvg would go to 10/3 first.
    algorithm = ftx.algorithms.reptile(scalars.TASK, optax.sgd(scalars.HALF_WAY), optax.linear_schedule(1.0, 0.5, 1))
    experiment = problems.experiment(
        algorithm, train=scalars.clients([4, 4], [8]), local=ftx.data.LocalWork(batch_size=1), hyper={}
    )
    state, _ = problems.play(experiment, 2)
    np.testing.assert_allclose(state.device.server.params["w"], 3.5 + (4.8125 - 3.5) / 2, rtol=1e-6)
