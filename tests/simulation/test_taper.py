"""Lanes that halve as they run dry never change what is computed; the loops after a halving do run, and no client is lost."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from test_lanes import assert_close, assert_equal

import fedjax_tx as ftx
from fedjax_tx.data.schedule import slots_by_device
from fedjax_tx.simulation import auto

SIZES = (5, 0, 1, 9, 3, 7, 40, 2)
COHORTS = [list(range(8)), [6, 1, 0], [5, 3, 0, 2, 7], []]
LOCAL = ftx.data.LocalWork(batch_size=2)
MANY = np.exp(np.random.default_rng(1).normal(1.5, 1.0, 32)).round().clip(1, 40).astype(int)
WAYS = [(2, 1), (6, 2), (8, 9)]
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


@pytest.mark.slow  # six bodies of a loop to compile
def test_32_clients_on_32_lanes_that_halve_five_times_train_as_on_one():
    cohorts = ftx.data.fixed_cohorts([range(32), range(0, 32, 3)])
    experiment = make_experiment(train=problems.ragged_clients(MANY), cohorts=cohorts)
    one, infos = play(experiment, 1, 0, 2, 2)
    many, tapered = play(experiment, 32, 5, 2, 2)
    assert_close(many.device, one.device)
    assert_close(told(tapered), told(infos))
    _, never = play(experiment, 32, 0, 2, 2)
    assert tapered[0].useful > 0.7 > 0.4 > never[0].useful


def recorder():
    """A client that keeps what each of its steps of the last round saw: the sum of row numbers, and a random number."""

    def start(broadcast, info, state):
        return {"rows": jnp.zeros(20, jnp.int32), "drawn": jnp.zeros(20), "at": jnp.int32(0)}

    def step(broadcast, info, local, batch, mask, key):
        at = local["at"]
        rows = local["rows"].at[at].set(jnp.where(mask, batch["row"] + 1, 0).sum())
        return {"rows": rows, "drawn": local["drawn"].at[at].set(jax.random.uniform(key)), "at": at + 1}

    def finish(broadcast, info, local):
        return ftx.ClientResult({}, ftx.clients.client_weight(info), local, {})

    return ftx.ClientTrainer(lambda broadcast, key: start(broadcast, None, None), start, step, finish)


def integers(reduce):
    """Random integers of each client, and what the server makes of them."""

    def encode(update, weight, shared, client_state, client_key, round_key):
        return {"m": jax.random.bits(client_key, (5,), jnp.uint32).astype(jnp.int32)}, weight, client_state

    def decode(reduced, totals, state, key):
        stacked = isinstance(reduce, ftx.Stacked)
        told = {"rows": reduced.summands["m"]} if stacked else {"sum": reduced["m"], "clients": totals.clients}
        return {"m": jnp.zeros(5, jnp.int32)}, state, told

    return ftx.aggregation.nothing()._replace(encode=encode, reduce=reduce, decode=decode)


@pytest.mark.slow
def test_every_step_of_two_passes_is_made_once_and_integer_sums_and_rows_are_bit_equal():
    """A pass in batches of 2 that adds, then one in batches of 3 that stacks; the second one's steps are what clients keep."""
    data = problems.ragged_clients(SIZES)
    algorithm = problems.one_pass(recorder(), integers(ftx.Linear()))
    stacked = algorithm.passes[0]._replace(
        aggregator=integers(ftx.Stacked()), work=ftx.data.LocalWork(batch_size=3, shuffle=False)
    )
    experiment = make_experiment(algorithm._replace(passes=(*algorithm.passes, stacked)), hyper={}, train=data)
    (one, infos), (many, tapered) = play(experiment, 1, 0), play(experiment, 6, 1)
    assert_equal(many.device, one.device)
    for name in ("sum", "clients", "rows"):
        np.testing.assert_array_equal(*[np.stack([info.aggregation[name] for info in some]) for some in (tapered, infos)])
    assert infos[0].aggregation["sum"].any() and (infos[0].aggregation["rows"] != 0).any(1).sum() == 8
    assert [int(info.aggregation["clients"]) for info in tapered] == [7, 2, 5, 0]
    kept = many.device.clients
    assert kept["at"].tolist() == [-(-size // 3) for size in SIZES]
    for client, rows in enumerate(kept["rows"].tolist()):
        own = data.client(client)["row"] + 1
        assert rows == [int(own[first : first + 3].sum()) for first in range(0, 60, 3)]


def test_rounds_in_one_call_are_rounds_one_by_one_bit_for_bit():
    experiment = make_experiment()
    assert_equal(play(experiment, 2, 1)[0].device, play(experiment, 2, 1, rounds_per_call=1)[0].device)


def test_other_cohorts_with_other_widths_compile_nothing():
    round_fn = ftx.make_round(make_experiment(), ftx.Execution(num_lanes=2, taper=1, rounds_per_call=1, mesh=None))
    state = round_fn.init()
    schedules = round_fn.plan(state, 4).schedules[0]
    assert [schedule.narrow.tolist() for schedule in schedules] == [[17], [4], [7], [0]]
    state, _ = round_fn(state)
    COMPILED.clear()
    for _ in range(3):
        state, _ = round_fn(state)
    assert not COMPILED


def test_useful_share_counts_the_lanes_that_are_left_by_hand(flat):
    # Steps: 3, 1 (without an example), 1, 5, 2, 4, 20, 1: one lane can't do them in 20 ticks, two can: 20 and 17.
    _, infos = play(make_experiment(), 8, 3)
    assert infos[0].useful == sum(SIZES) / (2 * (2 * 17 + 1 * 3))
    assert flat[1][0].useful == sum(SIZES) / (2 * 2 * 20)


def test_evaluation_does_not_depend_on_halvings():
    experiment = make_experiment()
    data = problems.ragged_clients((1, 40, 0, 2, 9, 3), seed=7)
    state = ftx.make_round(experiment, ftx.Execution(num_lanes=1, mesh=None)).init()
    scores = [ftx.make_evaluation(experiment, data, ftx.Execution(taper=taper, mesh=None))(state) for taper in (0, 1)]
    assert_close(*scores)
    assert scores[0]["loss"][1].tolist() == [1, 40, 0, 2, 9, 3]


@pytest.mark.slow
def test_a_sweep_over_halving_lanes_is_its_single_runs():
    experiment, grid = make_experiment(), {"client_lr": [0.03, 0.1]}
    execution = ftx.Execution(num_lanes=2, taper=1, rounds_per_call=2, mesh=None)
    swept = ftx.sweep(experiment, rounds=2, grid=grid, execution=execution, settings_at_once=2)
    for rate, history in zip(grid["client_lr"], swept.history, strict=True):
        _, infos = play(make_experiment(hyper={"client_lr": rate}), 2, 0, 2)
        for record, info in zip(history, infos, strict=True):
            np.testing.assert_allclose(record["train/loss"], info.metrics["loss"], rtol=1e-4)


def test_a_run_goes_on_bit_for_bit_where_it_stopped_and_to_tolerance_with_other_halvings(tmp_path):
    def run(rounds, name, taper):
        execution = ftx.Execution(num_lanes=2, taper=taper, rounds_per_call=1, mesh=None)
        return ftx.run(make_experiment(), rounds, execution=execution, run_dir=tmp_path / name, progress=False)

    whole = run(4, "whole", 1)
    run(2, "same", 1)
    assert_equal(run(4, "same", 1).state.device, whole.state.device)
    run(2, "another", 0)
    assert_close(run(4, "another", 1).state.device, whole.state.device)


def test_debugging_runs_on_one_lane_whatever_the_halvings():
    round_fn = ftx.make_round(make_experiment(), ftx.Execution(debug=True, taper=3))
    assert (round_fn.num_lanes, round_fn.capacities[0].halvings) == (1, 0)


def test_by_default_lanes_halve_where_that_saves_slots_and_auto_measures_such_programs(monkeypatch):
    long, halvings = make_experiment(local=ftx.data.LocalWork(batch_size=2, epochs=2)), {}
    for num_lanes in (2, 8):
        round_fn = ftx.make_round(long, ftx.Execution(num_lanes=num_lanes, mesh=None))
        halvings[num_lanes] = round_fn.capacities[0].halvings
    assert halvings == {2: 1, 8: 3}
    measured = []
    monkeypatch.setattr(auto, "fits", lambda round_fn: True)
    monkeypatch.setattr(auto, "probe", lambda round_fn: measured.append(round_fn.capacities[0].halvings) or 1 / len(measured))
    assert ftx.make_round(long, ftx.Execution(mesh=None)).capacities[0].halvings == 3
    assert measured == [0, 1, 2, 3]
    assert ftx.make_round(long, ftx.Execution(mesh=None, taper=0)).capacities[0].halvings == 0
    # In passes of half as many ticks, a halving would take longer to compile than it saves.
    assert ftx.make_round(make_experiment(), ftx.Execution(num_lanes=8, mesh=None)).capacities[0].halvings == 0


@pytest.mark.parametrize(("kind", "candidates"), [("cpu", [1, 2, 4, 8]), ("gpu", [1, 4])])
def test_an_accelerator_is_asked_about_every_second_power_of_two(kind, candidates, monkeypatch):
    asked = []

    def probe(round_fn):
        asked.append(round_fn.num_lanes)
        return 1.0 / round_fn.num_lanes

    monkeypatch.setattr(auto, "probe", probe)
    monkeypatch.setattr(auto, "fits", lambda round_fn: True)
    monkeypatch.setattr(jax, "default_backend", lambda: kind)
    assert ftx.make_round(make_experiment(), ftx.Execution(mesh=None)).num_lanes == candidates[-1]
    assert asked == candidates


@pytest.mark.parametrize(("num_lanes", "taper"), [(8, 0), (8, 3), (2, 1)])
def test_a_probe_of_a_few_ticks_tells_the_time_of_a_round_where_slots_cost_alike(monkeypatch, num_lanes, taper):
    """The program is one that sleeps a millisecond for each slot of its schedule; a round has 2000 slots, or 464."""
    sizes = (1000, 300, 200, 100, 100, 100, 50, 0)
    cohorts = ftx.data.all_clients()
    local = ftx.data.LocalWork(batch_size=4)
    experiment = make_experiment(train=problems.ragged_clients(sizes), cohorts=cohorts, local=local)
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=num_lanes, taper=taper, rounds_per_call=1, mesh=None))

    def sleep(*arguments):
        (schedule,) = arguments[8]
        time.sleep(1e-3 * int(slots_by_device(schedule)[0]))

    monkeypatch.setattr(auto, "run_rounds", sleep)
    (schedule,) = round_fn.plan(round_fn.init(), 1).schedules[0]
    want = 1e-3 * int(slots_by_device(schedule))
    np.testing.assert_allclose(auto.probe(round_fn), want, rtol=0.2)
