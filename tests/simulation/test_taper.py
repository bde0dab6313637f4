"""Lanes that halve as they run dry never change what is computed; the loops after a halving do run, and no client is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from test_lanes import assert_close, assert_equal

import fedjax_tx as ftx

SIZES = (5, 0, 1, 9, 3, 7, 40, 2)
COHORTS = [list(range(8)), [6, 1, 0], [5, 3, 0, 2, 7], []]
LOCAL = ftx.data.LocalWork(batch_size=2)
MANY = np.exp(np.random.default_rng(1).normal(1.5, 1.0, 32)).round().clip(1, 40).astype(int)
WAYS = [(1, 0), (2, 1), (6, 2), (8, 1), (8, 9)]
"""Lanes and halvings; of 8 lanes 9 halvings are 3."""
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kwargs: COMPILED.append(event) if "backend_compile" in event else None
)


def play(experiment, num_lanes, taper, rounds=4, rounds_per_call=4):
    """The last state and all infos."""
    execution = ftx.Execution(num_lanes=num_lanes, taper=taper, rounds_per_call=rounds_per_call, mesh=None)
    round_fn = ftx.make_round(experiment, execution)
    state, infos = round_fn.init(), []
    while state.round < rounds:
        state, more = round_fn.run(state, min(round_fn.rounds_per_call, rounds - state.round))
        infos += more
    return state, infos


def make_experiment(make_algorithm=problems.make_fed_avg, **changes):
    settings = {"train": problems.ragged_clients(SIZES), "cohorts": ftx.data.fixed_cohorts(COHORTS), "local": LOCAL}
    return problems.experiment(make_algorithm, **{**settings, **changes})


def told(infos):
    return [(info.client_metrics, info.num_examples, info.num_steps, info.num_clients) for info in infos]


@pytest.fixture(scope="module")
def flat():
    """FedAvg on two lanes that never halve."""
    return play(make_experiment(), 2, 0)


@pytest.mark.parametrize(("num_lanes", "taper"), WAYS)
def test_training_on_halving_lanes_is_that_on_two_lanes(flat, num_lanes, taper):
    state, infos = play(make_experiment(), num_lanes, taper)
    assert_close(state.device, flat[0].device)
    assert_close(told(infos), told(flat[1]))


def test_32_clients_on_32_lanes_that_halve_five_times_train_as_on_one():
    cohorts = ftx.data.fixed_cohorts([range(32), range(0, 32, 3)])
    experiment = make_experiment(train=problems.ragged_clients(MANY), cohorts=cohorts)
    one, infos = play(experiment, 1, 0, 2, 2)
    many, tapered = play(experiment, 32, 5, 2, 2)
    assert_close(many.device, one.device)
    assert_close(told(tapered), told(infos))
    _, never = play(experiment, 32, 0, 2, 2)
    assert tapered[0].useful > 0.7 > 0.4 > never[0].useful


def recorded(aggregator):
    """Clients that write down each step's rows and random numbers, and send random integers."""
    return problems.one_pass(problems.recorder(20), aggregator)


def integers():
    def encode(update, weight, shared, client_state, client_key, round_key):
        return {"m": jax.random.bits(client_key, (5,), jnp.uint32).astype(jnp.int32)}, weight, client_state

    def decode(reduced, totals, state, key):
        return {"m": reduced["m"]}, state, {"sum": reduced["m"], "invited": totals.invited, "clients": totals.clients}

    return ftx.aggregation.nothing()._replace(encode=encode, decode=decode)


def test_every_step_is_made_once_with_its_rows_and_keys_and_integer_sums_are_bit_equal():
    experiment = make_experiment(recorded(integers()), hyper={})
    results = []
    for num_lanes, taper in ((1, 0), (6, 2), (8, 3)):
        _, infos = play(experiment, num_lanes, taper)
        results.append([(info.client_metrics, info.aggregation) for info in infos])
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])
    first, said = results[0][0]
    steps = sum(int(first[f"rows{number}"][0].astype(bool).sum()) for number in range(20))
    assert steps == sum(-(-size // 2) for size in SIZES)
    assert said["sum"].any() and (said["invited"], said["clients"]) == (8, 7)


def test_several_passes_with_client_states_do_not_depend_on_halvings():
    def make_algorithm(hyper):
        return ftx.algorithms.mime(problems.LOGISTIC, optax.sgd(0.1, momentum=0.9))

    experiment = make_experiment(make_algorithm, hyper={})
    one, infos = play(experiment, 2, 0)
    many, tapered = play(experiment, 8, 2)
    assert_close(many.device, one.device)
    assert_close(told(tapered), told(infos))


def test_stacked_rows_come_from_lanes_of_every_width():
    def rows(reduced, totals, state, key):
        summed = jax.tree.map(lambda leaf: leaf.sum(0), reduced.summands)
        return summed, state, {"rows": reduced.summands["delta"]["w"], "valid": reduced.valid}

    aggregator = ftx.aggregation.nothing()._replace(reduce=ftx.Stacked(), decode=rows)
    algorithm = ftx.algorithms.scaffold(problems.LOGISTIC, 0.1)
    one_pass = algorithm.passes[0]._replace(aggregator=aggregator, combine=lambda state, aggregate, key: (state, {}))
    experiment = make_experiment(algorithm._replace(passes=(one_pass,)), hyper={})
    (one, infos), (many, tapered) = play(experiment, 1, 0), play(experiment, 8, 3)
    assert_close(many.device.clients, one.device.clients)
    assert_close([info.aggregation for info in tapered], [info.aggregation for info in infos])
    assert infos[0].aggregation["valid"].tolist() == [size > 0 for size in SIZES]


def test_rounds_in_one_call_are_rounds_one_by_one_bit_for_bit(flat):
    experiment = make_experiment()
    assert_equal(play(experiment, 8, 3)[0].device, play(experiment, 8, 3, rounds_per_call=1)[0].device)


def test_another_cohort_with_other_widths_compiles_nothing():
    experiment = make_experiment()
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=8, taper=3, rounds_per_call=1, mesh=None))
    state = round_fn.init()
    schedules = round_fn.plan(state, 4).schedules[0]
    assert len({tuple(schedule.narrow) for schedule in schedules}) > 2
    state, _ = round_fn(state)
    COMPILED.clear()
    for _ in range(3):
        state, _ = round_fn(state)
    assert not COMPILED


def test_useful_share_counts_the_lanes_that_are_left_by_hand():
    # Steps: 3, 1 (without an example), 1, 5, 2, 4, 20, 1: 37, so one lane can't do it in 20 ticks, two can: 20 and 17.
    _, infos = play(make_experiment(), 8, 3)
    assert infos[0].useful == sum(SIZES) / (2 * (2 * 17 + 1 * 3))
    _, infos = play(make_experiment(), 8, 0)
    assert infos[0].useful == sum(SIZES) / (2 * 8 * 20)


def test_evaluation_does_not_depend_on_halvings():
    experiment = make_experiment()
    data = problems.ragged_clients((1, 40, 0, 2, 9, 3), seed=7)
    state = ftx.make_round(experiment, ftx.Execution(num_lanes=1, mesh=None)).init()
    scores = [ftx.make_evaluation(experiment, data, ftx.Execution(taper=taper, mesh=None))(state) for taper in (0, 2)]
    assert_close(*scores)
    assert scores[0]["loss"][1].tolist() == [1, 40, 0, 2, 9, 3]


def test_a_sweep_over_halving_lanes_is_its_single_runs():
    experiment, grid = make_experiment(), {"client_lr": [0.03, 0.1]}
    execution = ftx.Execution(num_lanes=8, taper=2, rounds_per_call=2, mesh=None)
    swept = ftx.sweep(experiment, rounds=2, grid=grid, execution=execution, settings_at_once=2)
    for rate, history in zip(grid["client_lr"], swept.history, strict=True):
        _, infos = play(make_experiment(hyper={"client_lr": rate}), 2, 0, 2)
        for record, info in zip(history, infos, strict=True):
            np.testing.assert_allclose(record["train/loss"], info.metrics["loss"], rtol=1e-4)


def test_a_run_goes_on_bit_for_bit_where_it_stopped_and_to_tolerance_with_other_halvings(tmp_path):
    def run(rounds, name, taper):
        execution = ftx.Execution(num_lanes=8, taper=taper, rounds_per_call=1, mesh=None)
        return ftx.run(make_experiment(), rounds, execution=execution, run_dir=tmp_path / name, progress=False)

    whole = run(4, "whole", 2)
    run(2, "same", 2)
    assert_equal(run(4, "same", 2).state.device, whole.state.device)
    run(2, "another", 0)
    assert_close(run(4, "another", 2).state.device, whole.state.device)


def test_debugging_runs_on_one_lane_whatever_the_halvings():
    round_fn = ftx.make_round(make_experiment(), ftx.Execution(debug=True, taper=3))
    assert (round_fn.num_lanes, round_fn.capacities[0].halvings) == (1, 0)


def test_by_default_lanes_halve_where_that_saves_slots_and_auto_measures_such_programs():
    long, halvings = make_experiment(local=ftx.data.LocalWork(batch_size=2, epochs=2)), {}
    for num_lanes in (2, 8):
        round_fn = ftx.make_round(long, ftx.Execution(num_lanes=num_lanes, mesh=None))
        halvings[num_lanes] = round_fn.capacities[0].halvings
    assert halvings == {2: 1, 8: 3}
    chosen = ftx.make_round(long, ftx.Execution(mesh=None))
    assert chosen.capacities[0].halvings == {1: 0, 2: 1, 4: 2, 8: 3}[chosen.num_lanes]
    # In the passes of half as many ticks, a halving would take longer to compile than it saves.
    short = ftx.make_round(make_experiment(), ftx.Execution(num_lanes=8, mesh=None))
    assert short.capacities[0].halvings == 0
