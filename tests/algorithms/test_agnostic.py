"""AFL: rounds on paper, the projection onto the simplex, and the worst mixture of two quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx.algorithms.agnostic import project_to_simplex


def on_paper(hyper):
    return ftx.algorithms.agnostic(scalars.TASK, optax.sgd(hyper["rate"]), 3, hyper["mixture_rate"])


def play(rounds, rate, mixture_rate, cohort, local):
    """Clients that hold 4, 0 and 1."""
    experiment = problems.experiment(
        on_paper,
        hyper={"rate": rate, "mixture_rate": mixture_rate},
        train=scalars.clients([4, 4], [0, 0], [1]),
        cohorts=ftx.data.fixed_cohorts([cohort] * rounds),
        local=local,
    )
    return problems.play(experiment, rounds, rounds_per_call=rounds)


def test_two_rounds_by_hand():
    # Of three clients two take part, so lambda moves by 3 / 2 of their losses, at a rate of 0.01.
    # Round 1: at 0 the losses are 16 and 0; two steps half the way to x: 3 and 0.     w = 3 / 2, for both weigh 1 / 3.
    #          lambda = (1/3 + 0.24, 1/3, 1/3) - 0.08 = (0.493333, 0.253333, 0.253333).
    # Round 2: the losses are 6.25 and 2.25; the steps end at 3.375 and 0.375.
    #          w = (0.493333 * 3.375 + 0.253333 * 0.375) / 0.746667 = 2.357143; of federated averaging 1.875.
    #          lambda + 0.015 * (6.25, 2.25, 0) = (0.587083, 0.287083, 0.253333), 0.1275 too much: - 0.0425 each.
    state, (first, second) = play(2, scalars.HALF_WAY, 0.01, [0, 1], ftx.data.LocalWork(batch_size=1))
    np.testing.assert_allclose(state.device.server.params["w"], 2.357143, rtol=1e-5)
    np.testing.assert_allclose(state.device.server.extra, [0.544583, 0.244583, 0.210833], rtol=1e-5)
    np.testing.assert_allclose(first.server["largest_weight"], 0.493333, rtol=1e-5)
    np.testing.assert_allclose(second.client_metrics["start_loss"][0], [6.25, 2.25], rtol=1e-6)


@pytest.mark.slow
def test_it_ends_between_the_clients_that_are_worst_off():
    # max(F) is least in the middle of 4 and 0, whatever lies between them; federated averaging goes to 8 / 5.
    state, _ = play(400, 0.02, 0.005, [0, 1, 2], ftx.data.LocalWork(batch_size=2))
    np.testing.assert_allclose(state.device.server.params["w"], 2.0, atol=0.05)
    np.testing.assert_allclose(state.device.server.extra, [0.5, 0.5, 0.0], atol=0.02)


def test_the_projection_is_the_nearest_point_of_the_simplex():
    generator = np.random.default_rng(0)
    project = jax.jit(project_to_simplex)
    others = generator.dirichlet(np.ones(5), 200)
    for scale in (0.1, 1.0, 10.0):
        vector = generator.normal(size=5) * scale
        nearest = np.asarray(project(jnp.asarray(vector, jnp.float32)), np.float64)
        np.testing.assert_allclose(nearest.sum(), 1, rtol=1e-5)
        assert nearest.min() >= 0
        # No way from it into the simplex leads nearer: (v - p) (q - p) <= 0 for every q in it.
        assert ((others - nearest) @ (vector - nearest)).max() <= 1e-5 * scale
    np.testing.assert_allclose(project(jnp.full(5, -3.0)), np.full(5, 0.2), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_a_number_of_clients_that_is_not_that_of_the_data_is_refused(count):
    # Of the places of nobody the mixture would keep its share, and a client without a place would have none.
    algorithm = ftx.algorithms.agnostic(scalars.TASK, optax.sgd(0.1), count, 0.01)
    experiment = problems.experiment(algorithm, hyper={}, train=scalars.clients([4], [8]))
    with pytest.raises(ValueError, match=f"the algorithm's number of clients to be 2, as many as the training .*got {count}"):
        ftx.make_round(experiment, ftx.Execution(num_lanes=1))
