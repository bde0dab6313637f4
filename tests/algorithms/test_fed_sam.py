"""FedSAM by hand: gradients from uphill, a client at its minimum, and the limit without ascent."""

import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx


def make_algorithm(hyper):
    return ftx.algorithms.fed_sam(scalars.TASK, optax.sgd(scalars.HALF_WAY), hyper["rho"])


@pytest.mark.parametrize(
    ("rho", "first"),
    [
        # From 0 towards 4. Uphill is -1, where the slope is -10: to 2.5. Uphill of that is 1.5, slope -5: to 3.75.
        (1.0, 3.75),
        # Without ascent half the way, twice, as FedAvg does.
        (0.0, 3.0),
    ],
)
def test_a_round_by_hand_in_numbers(rho, first):
    # Client 1 is at its minimum: it has no slope to go up along, and stays.
    experiment = problems.experiment(
        make_algorithm, train=scalars.clients([4, 4], [0]), local=ftx.data.LocalWork(batch_size=1), hyper={"rho": rho}
    )
    state, (info,) = problems.play(experiment, 1)
    np.testing.assert_allclose(state.device.server.params["w"], 2 / 3 * first, rtol=1e-6)
    # Losses are those before the ascent.
    second = 2.5 if rho else 2.0
    np.testing.assert_allclose(info.client_metrics["loss"][0], [(4**2 + (4 - second) ** 2) / 2, 0], rtol=1e-6)
