"""FedDyn by hand: two rounds with some of the clients, whose local step ends exactly at the minimum; and FedAvg beside it."""

import numpy as np
import optax
import problems
import scalars

import fedjax_tx as ftx

SETTINGS = {
    "train": scalars.clients([4], [0], [7]),
    "local": ftx.data.LocalWork(batch_size=1),
    "cohorts": ftx.data.fixed_cohorts([[0, 1], [1, 2]]),
    "hyper": {},
}


def play(algorithm):
    return ftx.run(problems.experiment(algorithm, **SETTINGS), 2, execution=ftx.Execution(num_lanes=1), progress=False)


def test_two_rounds_of_some_clients_by_hand():
    # alpha = 2 and rate 1/4: from w the step 1/4 (2 (w - x) - g) ends at (2 x + g + 2 w) / 4, where all of it is minimal.
    # Round 1, from 0: clients end at 2 and 0; g = -4, 0: the slopes 2 (2 - 4) and 2 (0 - 0). h = -4/3; w = 1 - h / 2 = 5/3.
    # Round 2: client 1 ends at 5/6 with g = 5/3, client 2 at 13/3 with g = -16/3. h = (-4 + 5/3 - 16/3) / 3 = -23/9.
    #          w = (5/6 + 13/3) / 2 + 23/18 = 139/36.
    result = play(ftx.algorithms.fed_dyn(scalars.TASK, optax.sgd(scalars.HALF_WAY), alpha=2.0))
    device = result.state.device
    np.testing.assert_allclose(device.server.params["w"], 139 / 36, rtol=1e-6)
    np.testing.assert_allclose(device.clients["w"], [-4, 5 / 3, -16 / 3], rtol=1e-6)
    np.testing.assert_allclose(device.server.extra["w"], -23 / 9, rtol=1e-6)
    # The loss is the data's alone: (5/3 - 0)^2 and (5/3 - 7)^2.
    np.testing.assert_allclose(result.history[-1]["train/loss"], (25 / 9 + 256 / 9) / 2, rtol=1e-5)
    # Each of 2 * 2 clients gets one number and sends one: the gradient's change is a multiple of it.
    assert result.ledger["bytes_down"] == result.ledger["bytes_up"] == 2 * 2 * 4


def test_fed_avg_ends_elsewhere():
    # Half the way to 4 and to 0: 1. Then half the way from there to 0 and to 7: 2.25.
    result = play(ftx.algorithms.fed_avg(scalars.TASK, optax.sgd(scalars.HALF_WAY)))
    np.testing.assert_allclose(result.params["w"], 2.25, rtol=1e-6)
