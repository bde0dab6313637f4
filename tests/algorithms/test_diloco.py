"""DiLoCo by hand: two rounds with momentum on both sides; and that the clients' optimisers remember."""

import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx


def make_algorithm(hyper):
    inner = optax.sgd(scalars.HALF_WAY, hyper["inner_momentum"])
    return ftx.algorithms.diloco(scalars.TASK, inner, hyper["rate"], momentum=hyper["outer_momentum"])


@pytest.mark.parametrize(
    ("hyper", "server", "remembered"),
    [
        # Round 1, from 0: slope -8, momentum -8: to 2. Outer gradient -2 = u: by -(-2 - 2/2) / 2 to 1.5.
        # Round 2: slope 2 (1.5 - 4) = -5, momentum -5 - 8/2 = -9: by 9/4. Outer gradient -2.25, u = -2.25 - 1 = -3.25:
        #          by (2.25 + 3.25 / 2) / 2 = 1.9375 to 3.4375.
        ({"inner_momentum": 0.5, "rate": 0.5, "outer_momentum": 0.5}, 3.4375, -9.0),
        # Without memory and at rate 1 it is FedAvg: half the way, twice.
        ({"inner_momentum": 0.0, "rate": 1.0, "outer_momentum": 0.0}, 3.0, -4.0),
    ],
)
def test_two_rounds_by_hand_in_numbers(hyper, server, remembered):
    experiment = problems.experiment(
        make_algorithm, train=scalars.clients([4]), local=ftx.data.LocalWork(batch_size=1), hyper=hyper
    )
    state, _ = problems.play(experiment, 2)
    np.testing.assert_allclose(state.device.server.params["w"], server, rtol=1e-6)
    np.testing.assert_allclose(state.device.clients[0].trace["w"], [remembered], rtol=1e-6)
