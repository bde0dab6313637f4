"""FedAvgM, FedAdagrad, FedYogi, FedAdam and FedAMS by hand, in numbers, step by step of the server."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quadratics

import fedjax_tx as ftx
from fedjax_tx.algorithms import fed_adagrad, fed_adam, fed_ams, fed_avg, fed_avgm, fed_opt, fed_yogi

TASK = quadratics.task(start=(1.0, 1.0))
SGD = optax.sgd(0.1)
DELTAS = np.array([[0.3, 0.0], [-0.1, 0.0], [0.2, 0.0]], np.float32)
"""server - client, three rounds; the second parameter never changes."""

# D = -0.3, 0.1, -0.2;  eta = 0.5, beta_1 = 0.5, so m = -0.15, -0.025, -0.1125;  tau = 0.1 and v_{-1} = 0.01;  beta_2 = 0.75.
FIRST = np.array([0.15, 0.025, 0.1125])
SECOND = {
    fed_adagrad: [0.1, 0.11, 0.15],
    fed_yogi: [0.0325, 0.03, 0.04],  # rises by a quarter of 0.09, falls by a quarter of 0.01, rises by a quarter of 0.04
    fed_adam: [0.03, 0.025, 0.02875],
    fed_ams: [0.03, 0.03, 0.03],
}
COMMON = {"server_learning_rate": 0.5, "beta1": 0.5, "tau": 0.1}


def played(algorithm: ftx.FederatedAlgorithm) -> np.ndarray:
    """The server's parameters before the rounds and after each."""
    state = algorithm.init(None)
    path = [state.params["x"]]
    for delta in DELTAS:
        state, _ = algorithm.passes[0].combine(state, {"delta": {"x": jnp.asarray(delta)}}, None)
        path.append(state.params["x"])
    return np.stack(path)


@pytest.mark.parametrize("make", SECOND)
def test_three_rounds_are_the_papers_equations_in_numbers(make):
    options = {} if make is fed_adagrad else {"beta2": 0.75}
    path = played(make(TASK, SGD, **COMMON, **options))
    steps = 0.5 * FIRST / (np.sqrt(SECOND[make]) + 0.1)
    np.testing.assert_allclose(path[:, 0], 1 - np.append(0, np.cumsum(steps)), rtol=1e-6)
    np.testing.assert_array_equal(path[:, 1], 1.0)  # 0 / (0.1 + 0.1): what no client changes stays


def test_momentum_alone_in_numbers():
    """u = -0.3, -0.17, -0.353 at momentum 0.9, and half of it is the step."""
    path = played(fed_avgm(TASK, SGD, server_learning_rate=0.5, momentum=0.9))
    np.testing.assert_allclose(path[:, 0], [1.0, 0.85, 0.765, 0.5885], rtol=1e-6)


@pytest.mark.parametrize("make", SECOND)
def test_the_accumulator_starts_where_it_is_told(make):
    """At v_{-1} = 0 the first step does not depend on the size of the change, but for tau."""
    options = {"beta1": 0.0, "tau": 1e-8, "initial_accumulator": 0.0}
    step = 1 - played(make(TASK, SGD, server_learning_rate=0.1, **options))[1, 0]
    np.testing.assert_allclose(step, 0.1 if make is fed_adagrad else 0.1 / np.sqrt(1 - 0.99), rtol=1e-5)


def test_nothing_is_corrected_for_bias_as_optax_does():
    ours = played(fed_adam(TASK, SGD, 0.1, beta2=0.999, tau=1e-8, initial_accumulator=0.0))
    theirs = played(fed_avg(TASK, SGD, optax.adam(0.1)))
    np.testing.assert_allclose((1 - ours[1, 0]) / (1 - theirs[1, 0]), 0.1 / np.sqrt(0.001), rtol=1e-4)


def test_rounds_of_clients_are_the_papers_algorithm():
    """Two rounds of clients 0 and 1 from (1, 1), one step of rate 0.1 each; a = 0.2, 1, b = (2, -1), (0, 1), equal weights."""
    algorithm = fed_adam(TASK, SGD, server_learning_rate=0.5)
    state, _ = quadratics.play(algorithm, 2, 1, [[0, 1]] * 2, rounds_per_call=1)
    x, m, v = np.ones(2), np.zeros(2), np.full(2, 1e-6)
    for _ in range(2):
        change = -0.1 * np.mean([quadratics.gradient(client, x) for client in (0, 1)], axis=0)
        m, v = 0.9 * m + 0.1 * change, 0.99 * v + 0.01 * change**2
        x = x + 0.5 * m / (np.sqrt(v) + 1e-3)
    np.testing.assert_allclose(state.device.server.params["x"], x, rtol=1e-5)


@pytest.mark.parametrize("keep_largest", [False, True])
def test_states_and_steps_keep_the_parameters_dtype(keep_largest):
    params = {"x": jnp.ones(2, jnp.bfloat16)}
    optimizer = fed_opt.adaptive(0.1, lambda v, square: v + square, 0.9, 0.1, keep_largest=keep_largest)
    kept = optimizer.update(params, optimizer.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
