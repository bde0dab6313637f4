"""FedProx with a price of its own: the rule on losses written down, and a round of it by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import problems
import scalars

import fedjax_tx as ftx
from fedjax_tx.algorithms import adaptive_fed_prox


def test_the_price_rises_with_the_loss_and_falls_after_five_falls():
    algorithm = adaptive_fed_prox(scalars.TASK, optax.sgd(0.1), mu=0.1)
    state, prices = algorithm.init(None), []
    losses = [9, 8, 7, 6, 5, 4, 3, 5, 4, 4, 6, 5, 4, 3, 2, 1, 0]
    for loss in losses:
        state, said = algorithm.passes[0].combine(state, {"loss": jnp.float32(loss)}, None)
        prices.append(round(float(said["mu"]), 6))
    # The fifth fall is from 5 to 4. Then 3 to 5 and 4 to 6 are rises; 4 to 4 is neither, but breaks the row. The next fifth fall
    # is from 2 to 1, at 0.2 that two rises made.
    assert prices == [0.1] * 5 + [0.0] * 2 + [0.1] * 3 + [0.2] * 5 + [0.1] * 2


def test_the_price_never_falls_below_zero():
    algorithm = adaptive_fed_prox(scalars.TASK, optax.sgd(0.1), mu=0.25, change=0.2, patience=1)
    state, prices = algorithm.init(None), []
    for loss in (9, 8, 7, 6):
        state, said = algorithm.passes[0].combine(state, {"loss": jnp.float32(loss)}, None)
        prices.append(round(float(said["mu"]), 6))
    assert prices == [0.25, 0.05, 0.0, 0.0]


def test_rounds_by_hand_in_numbers():
    def make_algorithm(hyper):
        return adaptive_fed_prox(scalars.TASK, optax.sgd(0.5), hyper["mu"], change=1.0, patience=2)

    train, local = scalars.clients([4]), ftx.data.LocalWork(batch_size=1, steps=2)
    state, infos = problems.play(problems.experiment(make_algorithm, train=train, local=local, hyper={"mu": 1.0}), 4)
    # At rate 1/2 the first step goes from w to 4, where only the price has a slope, mu (4 - w): the second goes mu / 2 of the
    # way back. With mu = 1 that is half the way in each of two rounds. The second fall lowers mu to 0, and the third ends at 4.
    assert [float(info.server["mu"]) for info in infos] == [1.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose([info.metrics["start_loss"] for info in infos], [16, 4, 1, 0], atol=1e-6)
    np.testing.assert_allclose(state.device.server.params["w"], 4, rtol=1e-6)
