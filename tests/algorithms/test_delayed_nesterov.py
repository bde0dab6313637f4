"""Delayed Nesterov on paper: momentum that is renewed with every second update, what c spreads, and Nesterov as its limit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx.algorithms.delayed_nesterov import delayed_momentum


def moved(optimizer, gradients):
    """Where a parameter is after each of the steps, from 0."""
    state, place, places = optimizer.init(jnp.zeros(())), jnp.zeros(()), []
    for gradient in gradients:
        move, state = optimizer.update(jnp.float32(gradient), state, place)
        place = place + move
        places.append(float(place))
    return places


def test_a_server_that_moves_by_half_an_update_and_pushes_every_second_time_by_hand():
    # A client at 8 goes half the way, so that g = (w - 8) / 2; eta = 1, beta = 1/2, N = 2, c = 0.
    # g = -4:        w = 0 + 4/2 = 2.
    # g = -3:        m = (-4 - 3) / 2 = -3.5;  w = 2 + 3.5/2 + 3/2 = 5.25.
    # g = -1.375:    w = 5.25 + 1.375/2 = 5.9375.
    # g = -1.03125:  m = -3.5/2 - 2.40625/2 = -2.953125;  w = 5.9375 + 2.953125/2 + 1.03125/2 = 7.9296875.    FedAvg: 7.5.
    def make(hyper):
        return ftx.algorithms.delayed_nesterov(scalars.TASK, optax.sgd(scalars.HALF_WAY), 3, 1.0, 0.5, momentum_every=2)

    experiment = problems.experiment(make, hyper={}, train=scalars.clients([8]), local=ftx.data.LocalWork(batch_size=1))
    state, _ = problems.play(experiment, 4, 1, 4)
    np.testing.assert_allclose(state.device.server.extra["w"], [7.9296875, 5.9375, 5.25, 2.0], rtol=1e-6)


def test_c_spreads_the_push_over_the_steps_by_hand():
    # beta = 1/2, N = 2, c = 1/4: the second step pushes by 3/4 of beta m, the third by 1/4 of it.
    # m = (-4 - 3) / 2 = -3.5.  Steps: 2;  3/4 * 1.75 + 1.5 = 2.8125;  1/4 * 1.75 + 1 = 1.4375.
    with jax.disable_jit():
        places = moved(delayed_momentum(1.0, 0.5, 2, 0.25), [-4, -3, -2])
    np.testing.assert_allclose(places, np.cumsum([2, 2.8125, 1.4375]), rtol=1e-6)


@pytest.mark.parametrize("between", [0.0, 0.125, 0.25])
def test_momentum_at_its_rest_pushes_as_much_in_all_however_it_is_spread(between):
    # Of equal updates g, m comes to g / (1 - beta), and N steps move by eta (beta m + g) = eta g / (1 - beta).
    with jax.disable_jit():
        places = moved(delayed_momentum(0.7, 0.5, 4, between), [1.0] * 80)
    np.testing.assert_allclose(places[-1] - places[-5], -0.7 * 2, rtol=1e-4)


def test_renewed_each_time_it_is_nesterovs_momentum():
    gradients = [-4, 1, 2, -3]
    with jax.disable_jit():
        ours, theirs = (moved(o, gradients) for o in (delayed_momentum(0.3, 0.9, 1, 0.0), optax.sgd(0.3, 0.9, nesterov=True)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
