"""Ditto: rounds on paper, the global part against FedAvg, the personal part against local training, who is scored with what."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx

HYPER = {"eta": 0.1, "strength": 0.5}


def on_paper(hyper):
    return ftx.algorithms.ditto(scalars.TASK, optax.sgd(scalars.HALF_WAY), hyper["eta"], hyper["strength"])


def logistic(hyper):
    return ftx.algorithms.ditto(problems.LOGISTIC, optax.sgd(0.1, momentum=0.9), hyper["eta"], hyper["strength"])


def assert_close(left, right, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


# ---- on paper


def test_two_rounds_of_two_clients_by_hand():
    # v <- v - 0.1 (2 (v - x) + 0.5 (v - w)), one example a step, two steps a round; w is the one received, whatever the
    # local copy of it does. Client 0 holds 4 and 4, client 1 holds 0 and 0, all begin at 0.
    # Round 1, client 0: v = -0.1 (-8) = 0.8;  v = 0.8 - 0.1 (-6.4 + 0.5 * 0.8) = 1.4;  local copy: 2, then 3.
    #          client 1: nothing moves.         w = (3 + 0) / 2 = 1.5.
    # Round 2, client 0: v = 1.4 - 0.1 (-5.2 + 0.5 (-0.1)) = 1.925;  v = 1.925 - 0.1 (-4.15 + 0.5 * 0.425) = 2.31875;
    #                    local copy: 2.75, then 3.375.
    #          client 1: v = 0 - 0.1 (0 + 0.5 (-1.5)) = 0.075;  v = 0.075 - 0.1 (0.15 + 0.5 (-1.425)) = 0.13125;
    #                    local copy: 0.75, then 0.375.         w = (3.375 + 0.375) / 2 = 1.875.
    experiment = problems.experiment(
        on_paper, hyper=HYPER, train=scalars.clients([4, 4], [0, 0]), local=ftx.data.LocalWork(batch_size=1)
    )
    state, (first, second) = problems.play(experiment, 2)
    np.testing.assert_allclose(state.device.clients["w"], [2.31875, 0.13125], rtol=1e-6)
    np.testing.assert_allclose(state.device.server.params["w"], 1.875, rtol=1e-6)
    # Losses on the way, of the personal model and of the global one.
    np.testing.assert_allclose(first.client_metrics["personal_loss"][0], [(4**2 + 3.2**2) / 2, 0], rtol=1e-6)
    np.testing.assert_allclose(first.client_metrics["loss"][0], [(4**2 + 2**2) / 2, 0], rtol=1e-6)
    np.testing.assert_allclose(second.client_metrics["personal_loss"][0], [(2.6**2 + 2.075**2) / 2, 0.075**2 / 2], rtol=1e-5)
    assert first.client_metrics["personal_loss"][1].tolist() == [2, 2]


# ---- laws


FEW_AT_A_TIME = ftx.data.fixed_cohorts([[0, 3, 5], [3, 4], [0, 2, 3]])
ORDERED = ftx.data.LocalWork(batch_size=2, epochs=2, shuffle=False)


def play(strength, eta=0.1, rounds=3, num_lanes=2, rounds_per_call=3):
    hyper = {"eta": eta, "strength": strength}
    experiment = problems.experiment(logistic, hyper=hyper, cohorts=FEW_AT_A_TIME, local=ORDERED)
    return problems.play(experiment, rounds, num_lanes, rounds_per_call)


@pytest.fixture(scope="module")
def first_params():
    """Of the seed that all experiments share."""
    experiment = problems.experiment(logistic, hyper=HYPER, cohorts=FEW_AT_A_TIME, local=ORDERED)
    return ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init().device.server.params


def test_the_global_part_is_fed_avg_bit_for_bit_whatever_the_strength():
    averaged = problems.experiment(cohorts=FEW_AT_A_TIME, local=ORDERED)
    want, want_infos = problems.play(averaged, 3, 2, 3)
    for strength in (0.0, 0.5, 7.0):
        state, infos = play(strength)
        jax.tree.map(np.testing.assert_array_equal, state.device.server, want.device.server)
        for info, want_info in zip(infos, want_infos, strict=True):
            np.testing.assert_array_equal(info.client_metrics["loss"][0], want_info.client_metrics["loss"][0])


def local_training(params, data, rounds_of_client, eta):
    """Plain gradient descent of one client, for as many rounds as it takes part in."""

    @jax.jit
    def gradient(params, x, y):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(x @ params["w"] + params["b"], y).mean()

        return jax.grad(loss)(params)

    optimizer = optax.sgd(eta)
    state = optimizer.init(params)
    for _ in range(rounds_of_client * ORDERED.epochs):
        for first in range(0, len(data["y"]), ORDERED.batch_size):
            batch = slice(first, first + ORDERED.batch_size)
            updates, state = optimizer.update(gradient(params, data["x"][batch], data["y"][batch]), state)
            params = optax.apply_updates(params, updates)
    return params


def test_without_proximal_strength_it_is_local_training_in_the_rounds_that_a_client_takes_part_in(first_params):
    state, _ = play(0.0)
    data = problems.ragged_clients()
    for client, rounds in enumerate([2, 0, 1, 3, 1, 1]):
        own = jax.tree.map(lambda leaf, client=client: leaf[client], state.device.clients)
        assert_close(own, local_training(first_params, data.client(client), rounds, 0.1), rtol=1e-4)
    untouched = jax.tree.map(lambda leaf: leaf[1], state.device.clients)
    jax.tree.map(np.testing.assert_array_equal, untouched, first_params)


def test_a_large_strength_pulls_a_personal_model_to_the_global_one_that_its_client_received(first_params):
    # With eta * lambda = 1 a step ends at w - eta * gradient, wherever it began.
    before, _ = play(1e4, eta=1e-4, rounds=2)
    state, _ = play(1e4, eta=1e-4)
    received = before.device.server.params
    for client in (0, 2, 3):  # the cohort of the third round
        own = jax.tree.map(lambda leaf, client=client: leaf[client], state.device.clients)
        assert_close(own, received, atol=2e-4, rtol=0)
    assert not np.allclose(received["w"], first_params["w"], atol=2e-2)
    free, _ = play(0.0, eta=1e-4)
    assert_close(jax.tree.map(lambda leaf: leaf[3], free.device.clients), first_params, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("num_lanes", "rounds_per_call"), [(1, 1), (6, 2)])
def test_lanes_and_calls_change_nothing(num_lanes, rounds_per_call):
    want, want_infos = play(0.5)
    state, infos = play(0.5, num_lanes=num_lanes, rounds_per_call=rounds_per_call)
    assert_close(state.device.server.params, want.device.server.params, rtol=1e-4)
    assert_close(state.device.clients, want.device.clients, rtol=1e-4)
    for info, want_info in zip(infos, want_infos, strict=True):
        assert_close(info.client_metrics, want_info.client_metrics, rtol=1e-4)


# ---- state and evaluation


def test_personal_models_begin_at_the_parameters_that_training_begins_at():
    experiment = problems.experiment(logistic, hyper=HYPER)
    given = {"w": jnp.ones((2, 3)), "b": jnp.arange(3.0)}
    state = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init(init_params=given)
    for client in range(6):
        jax.tree.map(
            lambda leaf, one, client=client: np.testing.assert_array_equal(leaf[client], one), state.device.clients, given
        )


def test_clients_are_scored_with_their_own_model_and_strangers_with_the_global_one():
    train = scalars.clients([4, 4], [0, 0], [2], ids=["a", "b", "never"])
    experiment = problems.experiment(
        on_paper, hyper=HYPER, train=train, local=ftx.data.LocalWork(batch_size=1), cohorts=ftx.data.fixed_cohorts([[0, 1]])
    )
    state, _ = problems.play(experiment, 2)
    # As worked out above: personal models 2.31875 and 0.13125, "never" still at 0, the global model 1.875.
    test = scalars.clients([1], [2, 3], [2], [5], ids=["stranger", "b", "never", "a"])
    metrics = ftx.make_evaluation(experiment, test)(state)
    personal = [(1.875 - 1) ** 2, ((0.13125 - 2) ** 2 + (0.13125 - 3) ** 2) / 2, 2**2, (2.31875 - 5) ** 2]
    np.testing.assert_allclose(metrics["loss"][0], personal, rtol=1e-5)
    shared = [(1.875 - 1) ** 2, ((1.875 - 2) ** 2 + (1.875 - 3) ** 2) / 2, (1.875 - 2) ** 2, (1.875 - 5) ** 2]
    np.testing.assert_allclose(metrics["global_loss"][0], shared, rtol=1e-5)
    assert metrics["loss"][1].tolist() == metrics["global_loss"][1].tolist() == [1, 2, 1, 1]
    assert set(metrics) == {"loss", "global_loss"}


def test_the_dtype_of_personal_models_is_the_parameters_own():
    task = ftx.tasks.regression(scalars.model(lambda key: {"w": jnp.zeros((), jnp.bfloat16)}), inputs="x", targets="x")

    def make_algorithm(hyper):
        return ftx.algorithms.ditto(task, optax.sgd(scalars.HALF_WAY), hyper["eta"], hyper["strength"])

    experiment = problems.experiment(make_algorithm, hyper=HYPER, train=scalars.clients([4, 4], [0, 0]))
    state, _ = problems.play(experiment, 2)
    assert state.device.clients["w"].dtype == state.device.server.params["w"].dtype == jnp.bfloat16
    assert 0.5 < float(state.device.clients["w"][0]) < 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"personal_learning_rate": 0.0}, "expected personal_learning_rate > 0, got 0.0"),
        ({"proximal_strength": -1.0}, "expected proximal_strength >= 0, got -1.0"),
        ({"proximal_strength": np.inf}, "expected proximal_strength to be finite, got inf"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(changes, message):
    numbers = {"personal_learning_rate": 0.1, "proximal_strength": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        ftx.algorithms.ditto(scalars.TASK, optax.sgd(0.1), **numbers)
