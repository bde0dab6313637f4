"""Rounds from the host's side: plain SGD as the limit, what a round says of itself, what compiles when, and who is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx.simulation import auto
from fedjax_tx.simulation.round import run_rounds

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kwargs: COMPILED.append(event) if "backend_compile" in event else None
)


def mean_loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["w"] + params["b"], y).mean()


def test_one_client_and_one_step_with_server_sgd_is_plain_sgd():
    def make_algorithm(hyper):
        return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(hyper["client_lr"]), optax.sgd(1.0))

    experiment = problems.experiment(
        make_algorithm,
        hyper={"client_lr": 0.3},
        cohorts=ftx.data.fixed_cohorts([[3]]),
        local=ftx.data.LocalWork(batch_size=9),
    )
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=1))
    state, own = round_fn.init(), experiment.train.client(3)
    params = state.device.server.params
    for _ in range(3):
        state, info = round_fn(state)
        np.testing.assert_allclose(info.metrics["loss"], mean_loss(params, own["x"], own["y"]), rtol=1e-5)
        gradient = jax.grad(mean_loss)(params, own["x"], own["y"])
        params = jax.tree.map(lambda leaf, g: leaf - 0.3 * g, params, gradient)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.device.server.params, params)


def test_a_server_optimiser_takes_the_mean_difference_for_a_gradient():
    def moved(server_optimizer, rounds):
        algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), server_optimizer)
        experiment = problems.experiment(algorithm)
        round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=2))
        states = [round_fn.init()]
        for _ in range(rounds):
            states.append(round_fn(states[-1])[0])
        return [state.device.server.params["w"] for state in states]

    start, whole = moved(None, 1)
    _, half = moved(optax.sgd(0.5), 1)
    np.testing.assert_allclose(start - half, (start - whole) / 2, rtol=1e-4, atol=1e-7)
    _, first, second = moved(optax.sgd(1.0, momentum=0.9), 2)
    np.testing.assert_allclose(first, whole, rtol=1e-6)
    assert not np.allclose(second, moved(None, 2)[2], rtol=1e-3)


@pytest.fixture(scope="module")
def played():
    """Two rounds of three clients of 5, 0 and 3 examples, then of one of 7; batches of 2, two epochs, two lanes."""
    experiment = problems.experiment(cohorts=ftx.data.fixed_cohorts([[0, 1, 4], [5]]))
    return problems.play(experiment, 2)


def test_a_round_tells_its_numbers(played):
    state, (first, second) = played
    assert (state.round, state.seed) == (2, 3)
    assert (first.round, second.round) == (0, 1)
    assert (first.client_ids.tolist(), second.client_ids.tolist()) == ([0, 1, 4], [5])
    assert (first.num_clients, second.num_clients) == (2, 1)
    assert (first.num_examples, second.num_examples) == (2 * (5 + 3), 14)
    assert (first.num_steps, second.num_steps) == (2 * (3 + 2), 8)
    assert not first.empty
    assert type(first.empty) is bool
    # Lane 0: 6 steps of client 0; lane 1: 4 of client 4, then the empty tick of client 1. 6 ticks x 2 lanes x 2 rows.
    assert first.useful == 16 / 24
    assert second.useful == 14 / (8 * 2 * 2)
    assert set(first.server) == {"update_norm"}
    assert type(first.server["update_norm"]) is float


def test_a_rounds_metrics_are_weighted_means_over_its_clients(played):
    _, (first, _) = played
    value, weight = first.client_metrics["loss"]
    assert value.shape == weight.shape == (3,)
    assert weight.tolist() == [10, 0, 6]
    np.testing.assert_allclose(first.metrics["loss"], (10 * value[0] + 6 * value[2]) / 16, rtol=1e-6)
    assert type(first.metrics["loss"]) is float


def test_the_loss_is_that_seen_on_the_way(played):
    _, (first, _) = played
    experiment = problems.experiment()
    start = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init().device.server.params
    own = experiment.train.client(4)
    untrained = float(mean_loss(start, own["x"], own["y"]))
    assert 0.5 * untrained < first.client_metrics["loss"][0][2] < untrained


# ---- compilation


def test_the_second_call_compiles_nothing_nor_do_other_cohorts_seeds_and_hyperparameters():
    source = ftx.data.uniform_cohorts(3)
    execution = ftx.Execution(num_lanes=2, rounds_per_call=3)
    experiment = problems.experiment(cohorts=source)
    round_fn = ftx.make_round(experiment, execution)
    state, _ = round_fn.run(round_fn.init(), 3)
    programs, compiled = run_rounds.jitted._cache_size(), len(COMPILED)
    for num_rounds in (3, 1, 2):
        state, _ = round_fn.run(state, num_rounds)
    round_fn(round_fn.init(seed=99))
    for changes in ({"seed": 8}, {"hyper": {"client_lr": 0.2}}, {"hyper": {"client_lr": np.float64(0.3)}}):
        other = ftx.make_round(problems.experiment(cohorts=source, **changes), execution)
        other(other.init())
    assert len(COMPILED) == compiled
    assert run_rounds.jitted._cache_size() == programs


def test_compilations_are_counted_at_all():
    compiled = len(COMPILED)
    jax.jit(lambda x: x + 1.2345)(1.0)
    assert len(COMPILED) > compiled


def test_another_seed_and_another_rate_give_another_result():
    (base, _), (seeded, _), (faster, _) = (
        problems.play(problems.experiment(**changes), 1) for changes in ({}, {"seed": 4}, {"hyper": {"client_lr": 0.2}})
    )
    results = [state.device.server.params["w"].tolist() for state in (base, seeded, faster)]
    assert results[0] != results[1]
    assert results[0] != results[2]


def test_a_seed_given_to_init_is_the_experiments():
    round_fn = ftx.make_round(problems.experiment(seed=3), ftx.Execution(num_lanes=2))
    other = ftx.make_round(problems.experiment(seed=5), ftx.Execution(num_lanes=2))
    state, _ = round_fn(round_fn.init(seed=5))
    again, _ = other(other.init())
    np.testing.assert_array_equal(state.device.server.params["w"], again.device.server.params["w"])
    np.testing.assert_array_equal(round_fn.init().device.server.params["w"], round_fn.init(seed=3).device.server.params["w"])


# ---- executions


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({1: 4.0, 2: 2.0, 4: 1.0, 8: 0.5, 16: 0.4}, 16, [1, 2, 4, 8, 16]),
        ({1: 4.0, 2: 2.0, 4: 2.1, 8: 2.1, 16: 2.1}, 2, [1, 2, 4, 8, 16]),
        ({1: 1.0, 2: 2.0, 4: 2.0}, 1, [1, 2, 4]),  # worse twice in a row
        ({1: 4.0, 2: 2.0, 4: 3.0, 8: 1.0, 16: 1.05}, 8, [1, 2, 4, 8, 16]),  # worse once: a bump
        ({1: 1.0, 2: 1.05, 4: 0.5, 8: 1.0, 16: 1.0}, 4, [1, 2, 4, 8, 16]),
    ],
)
def test_automatic_lanes_are_the_fastest_power_of_two_up_to_the_cohort(monkeypatch, seconds, chosen, tried):
    seen = []

    def probe(candidate):
        seen.append(candidate.num_lanes)
        return seconds[candidate.num_lanes]

    monkeypatch.setattr(auto, "probe", probe)
    monkeypatch.setattr(auto, "fits", lambda candidate: True)
    round_fn = ftx.make_round(problems.experiment(train=problems.ragged_clients(3 * problems.SIZES)))  # 18 clients
    assert (round_fn.num_lanes, list(dict.fromkeys(seen))) == (chosen, tried)


def test_a_machine_that_became_slower_does_not_end_the_search(monkeypatch):
    probed = []

    def probe(candidate):
        probed.append(candidate.num_lanes)
        return (10.0 if len(probed) > 1 else 1.0) / candidate.num_lanes  # other work begins after the first probe

    monkeypatch.setattr(auto, "probe", probe)
    monkeypatch.setattr(auto, "fits", lambda candidate: True)
    assert ftx.make_round(problems.experiment()).num_lanes == 4
    assert probed == [1, 2, 1, 4]


def test_automatic_lanes_that_do_not_fit_are_not_tried(monkeypatch):
    monkeypatch.setattr(auto, "probe", lambda candidate: 1.0 / candidate.num_lanes)
    monkeypatch.setattr(auto, "fits", lambda candidate: candidate.num_lanes < 4)
    assert ftx.make_round(problems.experiment()).num_lanes == 2


def test_automatic_lanes_work_unaided_even_where_the_first_cohort_is_empty():
    experiment = problems.experiment(cohorts=ftx.data.fixed_cohorts([[], [0, 3]]))
    round_fn = ftx.make_round(experiment)
    assert round_fn.num_lanes in (1, 2)
    state, info = round_fn(round_fn.init())
    assert info.empty
    state, info = round_fn(state)
    assert info.num_clients == 2


def test_more_lanes_than_clients_are_as_many_as_clients():
    experiment = problems.experiment(cohorts=ftx.data.uniform_cohorts(2))
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=64))
    assert round_fn.num_lanes == 2
    assert round_fn.capacities[0].lanes == 2


@pytest.mark.slow
def test_the_memory_of_a_round_is_its_arguments_and_the_parameters_of_every_lane():
    weights = 4 * 2000 * 3
    wide = problems.LOGISTIC._replace(init=lambda key: ({"w": jnp.zeros((2000, 3)), "b": jnp.zeros(3)}, {}))
    columns = {"x": np.zeros((8, 2000), np.float32), "y": np.zeros(8, np.int32)}
    experiment = ftx.Experiment(
        ftx.algorithms.fed_avg(wide, optax.sgd(0.1)),
        train=ftx.data.FederatedDataset.from_columns(columns, np.arange(8)),
        cohorts=ftx.data.all_clients(),
        local=ftx.data.LocalWork(batch_size=1),
    )
    found = []
    for lanes in (4, 8):
        round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=lanes, taper=0))
        found.append(round_fn.memory(round_fn.init()))
    few, many = found
    given = weights + columns["x"].nbytes + columns["y"].nbytes
    assert all(given < memory["arguments"] < given + 40_000 for memory in found)  # and the schedules
    assert 4 * weights <= many["temporaries"] - few["temporaries"] < 3 * 4 * weights


def test_rounds_per_call_bound_a_call():
    round_fn = ftx.make_round(problems.experiment(), ftx.Execution(num_lanes=1, rounds_per_call=2))
    with pytest.raises(ValueError, match="expected num_rounds <= 2, got 3"):
        round_fn.run(round_fn.init(), 3)


def test_automatic_rounds_per_call_shrink_with_the_schedule():
    assert ftx.make_round(problems.experiment(), ftx.Execution(num_lanes=1)).rounds_per_call == 32
    rows = 100_000
    large = ftx.data.FederatedDataset.from_offsets({"x": np.zeros(rows, np.int8)}, [0, rows])
    experiment = problems.experiment(train=large, local=ftx.data.LocalWork(batch_size=100, epochs=2))
    # Words of a round: 200,000 rows, 4 x 2,000 in the grid, 2 x 2,000 bounds and 8 of the client; 4 MiB hold 4 of them.
    assert ftx.make_round(experiment, ftx.Execution(num_lanes=1)).rounds_per_call == 4


# ---- cohorts


def test_a_cohort_with_a_client_twice_counts_it_twice_where_nothing_is_kept():
    twice, (info,) = problems.play(problems.experiment(cohorts=ftx.data.fixed_cohorts([[3, 3, 0]])), 1)
    alone, _ = problems.play(problems.experiment(cohorts=ftx.data.fixed_cohorts([[3]])), 1)
    other, _ = problems.play(problems.experiment(cohorts=ftx.data.fixed_cohorts([[0]])), 1)
    want = jax.tree.map(lambda a, b: (18 * a + 5 * b) / 23, alone.device.server.params, other.device.server.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), twice.device.server.params, want)
    assert (info.num_clients, info.num_examples) == (3, 2 * (9 + 9 + 5))


def stateful():
    trainer = problems.recorder(1, init_state=lambda broadcast, key: jnp.int32(0))
    return problems.one_pass(trainer)


def test_a_cohort_with_a_client_twice_is_refused_where_state_is_kept():
    round_fn = ftx.make_round(
        problems.experiment(stateful(), cohorts=ftx.data.fixed_cohorts([[0, 1], [3, 0, 3]])), ftx.Execution(num_lanes=1)
    )
    state, _ = round_fn(round_fn.init())
    with pytest.raises(ValueError, match=r"expected the cohort to hold each client once, since its state is kept, got \[3\]"):
        round_fn(state)


def test_a_source_that_repeats_a_client_without_saying_so_is_refused():
    source = ftx.data.all_clients()._replace(select=lambda state, generator, last: (np.array([2, 2]), state))
    round_fn = ftx.make_round(problems.experiment(cohorts=source), ftx.Execution(num_lanes=1))
    with pytest.raises(ValueError, match=r"expected the cohort to hold each client once, as its source says.*got \[2\]"):
        round_fn(round_fn.init())


def test_a_source_that_does_not_fit_the_data_is_refused_before_anything_compiles():
    compiled = len(COMPILED)
    with pytest.raises(ValueError, match="expected clients_per_round <= 6, the number of clients, got 7"):
        ftx.make_round(problems.experiment(cohorts=ftx.data.uniform_cohorts(7)))
    assert len(COMPILED) == compiled


def test_work_that_does_not_fit_the_data_is_refused():
    local = ftx.data.LocalWork(batch_size=2, steps=np.array([1, 2]))
    with pytest.raises(ValueError, match="expected steps to have 6 entries, one for each client, got '2 entries'"):
        ftx.make_round(problems.experiment(local=local), ftx.Execution(num_lanes=1))


def test_a_source_reads_the_metrics_of_the_last_round():
    seen = []

    def select(state, generator, last):
        seen.append(last)
        return np.array([0, 3]), state

    source = ftx.data.all_clients()._replace(select=select, reads_metrics=True)
    round_fn = ftx.make_round(problems.experiment(cohorts=source), ftx.Execution(num_lanes=2, rounds_per_call=8))
    assert round_fn.rounds_per_call == 1
    state, info = round_fn(round_fn.init())
    round_fn(state)
    ids, metrics = seen[-1]
    assert seen[0] is None
    assert ids.tolist() == [0, 3]
    np.testing.assert_array_equal(metrics["loss"][0], info.client_metrics["loss"][0])


# ---- the first state


def test_init_params_are_where_training_starts():
    given = {"w": jnp.ones((2, 3)), "b": jnp.arange(3.0)}
    round_fn = ftx.make_round(problems.experiment(), ftx.Execution(num_lanes=1))
    state = round_fn.init(init_params=given)
    jax.tree.map(np.testing.assert_array_equal, state.device.server.params, given)
    state, info = round_fn(state)
    own = problems.ragged_clients().client(0)
    drawn, _ = round_fn(round_fn.init())
    assert not np.allclose(drawn.device.server.params["w"], state.device.server.params["w"])
    # The losses seen on the way begin with those of the parameters given.
    untrained = float(mean_loss(given, own["x"], own["y"]))
    assert 0.3 * untrained < info.client_metrics["loss"][0][0] < untrained


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"w": np.ones((2, 3), np.float32)}, r"expected init_params to have a leaf \['b'\], which is missing"),
        (
            {"w": np.ones((3, 2), np.float32), "b": np.zeros(3, np.float32)},
            r"init_params\['w'\] of shape \(2, 3\), got \(3, 2\)",
        ),
        (
            {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.int32)},
            r"init_params\['b'\] of dtype float32, got 'int32'",
        ),
    ],
)
def test_init_params_of_another_model_are_refused_naming_the_leaf(given, message):
    round_fn = ftx.make_round(problems.experiment(), ftx.Execution(num_lanes=1))
    with pytest.raises(ValueError, match=message):
        round_fn.init(init_params=given)


def test_hyperparameters_reach_the_algorithm_as_numbers():
    seen = {}

    def make_algorithm(hyper):
        seen.update({name: value.dtype for name, value in hyper.items() if isinstance(value, jax.core.Tracer)})
        return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(hyper["lr"]))

    experiment = problems.experiment(make_algorithm, hyper={"lr": 0.1, "count": 3})
    problems.play(experiment, 1)
    assert seen == {"lr": jnp.float32, "count": jnp.int32}


def test_a_maker_that_makes_something_else_is_refused():
    with pytest.raises(TypeError, match="expected make_algorithm to return a FederatedAlgorithm, got str"):
        ftx.make_round(problems.experiment(lambda hyper: "fed_avg"), ftx.Execution(num_lanes=1))


# ---- stale starts, and work of a pass


def stale_source(version: int, **promises):
    """Everybody, from a model that is ``version`` server steps old."""

    def select(state, generator, last):
        return ftx.Cohort(np.arange(6), np.full(6, version)), state

    return ftx.data.all_clients()._replace(select=select, **promises)


def test_a_source_of_older_starts_than_the_algorithm_serves_is_refused_before_anything_compiles():
    compiled = len(COMPILED)
    message = "expected the cohorts' max_version <= 0, the oldest start that the algorithm serves, got 2"
    with pytest.raises(ValueError, match=message):
        ftx.make_round(problems.experiment(cohorts=stale_source(2, max_version=2)), ftx.Execution(num_lanes=1))
    assert len(COMPILED) == compiled


@pytest.mark.parametrize("version", [1, -1])
def test_a_cohort_of_a_version_that_the_algorithm_does_not_serve_is_refused(version):
    round_fn = ftx.make_round(problems.experiment(cohorts=stale_source(version)), ftx.Execution(num_lanes=1))
    message = rf"expected the cohort's version in 0..0, the starts that the algorithm serves, got \[{version}, "
    with pytest.raises(ValueError, match=message):
        round_fn(round_fn.init())


def test_the_work_of_a_pass_may_be_made_from_the_experiments():
    def half(local):
        return ftx.data.LocalWork(batch_size=local.batch_size, epochs=local.epochs // 2, shuffle=False)

    (training,) = (algorithm := problems.one_pass(problems.recorder(10))).passes
    made = algorithm._replace(passes=(training._replace(work=half),))
    round_fn = ftx.make_round(problems.experiment(made), ftx.Execution(num_lanes=1))
    assert [(work.batch_size, work.epochs, work.shuffle) for work in round_fn.works] == [(2, 1, False)]
    _, info = round_fn(round_fn.init())
    assert info.num_examples == sum(problems.SIZES)
    wrong = algorithm._replace(passes=(training._replace(work=lambda local: 3),))
    with pytest.raises(TypeError, match="expected the work of a pass to be a LocalWork, got 3"):
        ftx.make_round(problems.experiment(wrong), ftx.Execution(num_lanes=1))
