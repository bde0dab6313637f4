"""Data in host memory: the same results bit for bit, each call is sent its rows and no more, and what does not fit is refused."""

import jax
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx.data.cohort import as_cohort
from fedjax_tx.data.schedule import make_schedule, plan_capacity
from fedjax_tx.simulation import make_evaluation, placement

LOCAL = ftx.data.LocalWork(batch_size=2, epochs=2)


def make_mime(hyper):
    """Two passes over a cohort: a gradient over all its data in stored order, then shuffled local steps."""
    return ftx.algorithms.mime(problems.LOGISTIC, optax.sgd(hyper["client_lr"]))


def both(experiment, rounds, num_rounds, **settings):
    """(state, infos) of resident data and of data in host memory."""
    results = []
    for where in ("device", "host"):
        round_fn = ftx.make_round(experiment, ftx.Execution(**{"num_lanes": 2, "placement": where, **settings}))
        state, infos = round_fn.init(), []
        while state.round < rounds:
            state, more = round_fn.run(state, num_rounds)
            infos += more
        results.append((state, infos))
    return results


def assert_same(left, right):
    for ours, theirs in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("make_algorithm", "changes", "num_rounds"),
    [
        (problems.make_fed_avg, {}, 1),
        (problems.make_fed_avg, {"cohorts": ftx.data.uniform_cohorts(3)}, 2),
        (problems.make_fed_avg, {"cohorts": ftx.data.poisson_cohorts(0.2), "seed": 1}, 2),  # empty rounds among them
        (problems.make_fed_avg, {"local": ftx.data.LocalWork(batch_size=2, steps=5, shuffle=False)}, 1),
        (problems.make_fed_avg, {"cohorts": ftx.data.fixed_cohorts([[3, 3, 0], [4]])}, 2),
        (make_mime, {"cohorts": ftx.data.uniform_cohorts(3)}, 2),
    ],
)
def test_results_are_those_of_resident_data_bit_for_bit(make_algorithm, changes, num_rounds):
    experiment = problems.experiment(make_algorithm, **{"local": LOCAL, **changes})
    (resident, infos), (streamed, other_infos) = both(experiment, 4, num_rounds, rounds_per_call=2)
    assert_same(resident, streamed)
    assert_same([info[1:] for info in infos], [info[1:] for info in other_infos])
    assert not np.array_equal(
        resident.device.server.params["w"], ftx.make_round(experiment, EXECUTION).init().device.server.params["w"]
    )


EXECUTION = ftx.Execution(num_lanes=2, placement="host", rounds_per_call=2)


def test_a_memory_mapped_set_trains_as_the_one_that_was_saved(tmp_path):
    problems.ragged_clients().save(tmp_path / "clients")
    mapped = ftx.data.FederatedDataset.open(tmp_path / "clients")
    ours, theirs = (
        ftx.run(problems.experiment(train=train), 3, {"test": train}, execution=EXECUTION, evaluate_every=2, progress=False)
        for train in (mapped, problems.ragged_clients())
    )
    assert ours.history == theirs.history
    assert_same(ours.state, theirs.state)


def test_a_run_is_that_of_resident_data_and_resumes(tmp_path):
    def run(rounds, where, run_dir=None):
        experiment = problems.experiment(cohorts=ftx.data.uniform_cohorts(2))
        execution = ftx.Execution(num_lanes=2, rounds_per_call=2, placement=where)
        test = {"test": problems.ragged_clients(seed=7)}
        return ftx.run(experiment, rounds, test, execution=execution, run_dir=run_dir, evaluate_every=2, progress=False)

    want = run(5, "device")
    run(2, "host", tmp_path)
    have = run(5, "host", tmp_path)
    assert have.history == want.history
    assert_same(have.state, want.state)
    assert_same(have.client_metrics, want.client_metrics)


@pytest.mark.slow
def test_debugging_works_on_it():
    algorithm = problems.one_pass(problems.recorder(2))  # says which rows it saw, each as its number + 1
    experiment = problems.experiment(algorithm, cohorts=ftx.data.fixed_cohorts([[4]]), local=ftx.data.LocalWork(batch_size=2))
    round_fn = ftx.make_round(experiment, ftx.Execution(placement="host", debug=True))
    _, info = round_fn(round_fn.init())
    assert info.metrics["rows0"] + info.metrics["rows1"] == 16 + 17 + 18
    assert info.metrics["rows1"] in (16, 17, 18)


def test_the_number_of_lanes_may_be_measured():
    experiment = problems.experiment(cohorts=ftx.data.fixed_cohorts([[0, 3]]))
    round_fn = ftx.make_round(experiment, ftx.Execution(placement="host", rounds_per_call=1))
    state, info = round_fn(round_fn.init())
    assert info.num_clients == 2


# ---- what a call is sent


def planned(sizes, works, cohort, num_lanes=2, round_number=0):
    offsets = np.append(0, np.cumsum(sizes))
    capacities = [plan_capacity(np.array(sizes), work, len(cohort), num_lanes) for work in works]
    cohort = as_cohort(cohort, len(sizes), len(cohort))
    return [
        make_schedule(cohort, offsets, work, capacity, 0, round_number) for work, capacity in zip(works, capacities, strict=True)
    ]


def test_a_buffer_holds_each_row_once_and_schedules_count_in_it():
    sizes, works = (5, 0, 1, 9, 3), [LOCAL, ftx.data.LocalWork(batch_size=4, epochs=1, shuffle=False)]
    first, second = planned(sizes, works, [3, 1, 4]), planned(sizes, works, [4, 0], round_number=1)
    schedules = tuple([one, other] for one, other in zip(first, second, strict=True))
    columns = {"row": np.arange(18), "square": np.arange(18.0)[:, None] ** 2}
    buffers, numbered = placement.gather_rows(columns, schedules, 20)
    # Clients 0, 3 and 4: rows 0..4, 6..14 and 15..17.
    assert buffers["row"].tolist() == [*range(5), *range(6, 18), 0, 0, 0]
    np.testing.assert_array_equal(buffers["square"][:17, 0], buffers["row"][:17] ** 2)
    for old, new in zip(schedules, numbered, strict=True):
        for one, other in zip(old, new, strict=True):
            used = placement.rows_in_use(one)
            np.testing.assert_array_equal(buffers["row"][other.order[:used]], one.order[:used])
            for name in set(one._fields) - {"order"}:
                assert getattr(one, name) is getattr(other, name)


def test_only_rows_that_are_used_are_sent():
    work = ftx.data.LocalWork(batch_size=2, steps=2)
    (schedule,) = planned((1000, 3, 500), [work], [0, 2])
    buffers, _ = placement.gather_rows({"row": np.arange(1503)}, ([schedule],), 8)
    assert sorted(buffers["row"].tolist()) == sorted(schedule.order[:8].tolist())
    assert placement.rows_of_a_round(np.array([1000, 3, 500]), [work], 2) == 8
    assert placement.rows_of_a_round(np.array([1000, 3, 500]), [work, work], 2) == 16
    assert placement.rows_of_a_round(np.array([1000, 3, 500]), [LOCAL], 2) == 1500


def test_rows_beyond_32_bits_are_found():
    work, capacity = ftx.data.LocalWork(batch_size=2), plan_capacity(np.array([3]), ftx.data.LocalWork(batch_size=2), 1, 1)
    far = np.array([0, 2**33, 2**33 + 3])
    schedule = make_schedule(as_cohort([1], 2, 1), far, work, capacity, 0, 0)
    assert sorted(schedule.order.tolist()) == [2**33, 2**33 + 1, 2**33 + 2]
    column = np.broadcast_to(np.float32(7), (2**33 + 3,))  # takes no memory
    buffers, (numbered,) = placement.gather_rows({"x": column}, ([schedule],), 3)
    assert numbered[0].order.dtype == np.int32
    assert sorted(numbered[0].order.tolist()) == [0, 1, 2]
    assert buffers["x"].tolist() == [7, 7, 7]


def test_the_program_is_given_as_many_rows_as_a_call_can_use_and_compiles_once():
    from fedjax_tx.simulation.round import run_rounds

    experiment = problems.experiment(cohorts=ftx.data.uniform_cohorts(2), local=LOCAL)
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=1, rounds_per_call=1, placement="host"))
    assert round_fn.buffer_rows == 9 + 7  # the two largest of 5, 0, 1, 9, 3, 7
    assert all(isinstance(column, np.ndarray) for column in round_fn.columns.values())
    state = round_fn.init()
    arguments = round_fn.arguments(state, round_fn.plan(state, 1))
    assert {column.shape[0] for column in arguments[7].values()} == {16}
    state, _ = round_fn(state)
    programs = run_rounds.jitted._cache_size()
    for _ in range(3):
        state, _ = round_fn(state)
    assert run_rounds.jitted._cache_size() == programs
    several = ftx.make_round(experiment, EXECUTION)
    assert several.buffer_rows == 25  # never more than there are


def test_automatic_rounds_per_call_fit_the_buffer(monkeypatch):
    experiment = problems.experiment(cohorts=ftx.data.uniform_cohorts(1))
    row = 2 * 4 + 4 + 4
    for rows_that_fit, rounds in ((18, 2), (9, 1), (1, 1)):
        monkeypatch.setattr(placement, "BUFFER_BYTES", rows_that_fit * row)
        round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=1, placement="host"))
        assert (round_fn.rounds_per_call, round_fn.buffer_rows) == (rounds, 9 * rounds)


# ---- what does not fit


def test_data_that_no_device_holds_is_refused_with_both_numbers_and_the_way_out(monkeypatch):
    monkeypatch.setattr(placement, "free_bytes", lambda num_devices=1: 399)
    experiment = problems.experiment()
    message = 'expected data of 400 bytes to fit into the 399 bytes that are free on a device; with placement="host"'
    for make in (ftx.make_round, lambda experiment, execution: make_evaluation(experiment, experiment.train, execution)):
        with pytest.raises(ValueError, match=message):
            make(experiment, ftx.Execution(num_lanes=1))
    round_fn = ftx.make_round(
        problems.experiment(cohorts=ftx.data.uniform_cohorts(1)), ftx.Execution(num_lanes=1, rounds_per_call=1, placement="host")
    )
    round_fn(round_fn.init())
    with pytest.raises(ValueError, match="expected the rows of two calls, at most 800 bytes, to fit into the 399 bytes"):
        ftx.make_round(experiment, ftx.Execution(num_lanes=1, rounds_per_call=1, placement="host"))


def test_more_rows_than_a_device_can_number_are_refused():
    column = np.broadcast_to(np.int8(0), (2**31,))
    data = ftx.data.FederatedDataset({"x": column}, np.array([0, 2**31]), np.arange(1))
    with pytest.raises(ValueError, match="placement"):
        placement.place_columns(data, "device", None)
    assert placement.place_columns(data, "host", None)["x"] is column


def test_a_sweep_refuses_it_by_name():
    with pytest.raises(ValueError, match='placement="device"'):
        ftx.sweep(problems.experiment(), 1, {"client_lr": [0.1]}, execution=EXECUTION, progress=False)


# ---- evaluation


@pytest.mark.parametrize("rows_that_fit", [1000, 9, 4, 1])
def test_a_set_is_scored_in_pieces_as_it_is_at_once(monkeypatch, rows_that_fit):
    experiment = problems.experiment()
    state, _ = problems.play(experiment, 1)
    data = problems.ragged_clients((0, 3, 5, 0, 1, 2, 9, 0), seed=7)
    want = make_evaluation(experiment, data, ftx.Execution())(state)
    monkeypatch.setattr(placement, "BUFFER_BYTES", rows_that_fit * placement.row_bytes(data.columns))
    evaluate = make_evaluation(experiment, data, ftx.Execution(placement="host"))
    for _ in range(2):
        assert_same(evaluate(state), want)


def test_pieces_by_hand():
    from fedjax_tx.simulation.evaluate import _piece_bounds

    offsets = np.array([0, 0, 3, 8, 8, 9, 11, 20, 20])
    assert _piece_bounds(offsets, 9) == [(0, 5), (5, 6), (6, 8)]
    assert _piece_bounds(offsets, 4) == [(0, 2), (2, 3), (3, 6), (6, 7), (7, 8)]
    assert _piece_bounds(offsets, 20) == [(0, 8)]
