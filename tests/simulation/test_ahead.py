"""Planning ahead: it overlaps, it never changes a result, and whatever goes wrong surfaces in its own round."""

import threading

import jax
import numpy as np
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx.simulation import rounds as rounds_module

EXECUTION = ftx.Execution(num_lanes=2, rounds_per_call=3)


def watched_source(select_more=lambda number: None):
    """Two clients a round, drawn; the source counts its rounds in its state and writes down when it was asked."""
    asked = []

    def select(state, generator, last):
        asked.append(int(state))
        select_more(int(state))
        return np.sort(generator.choice(6, 2, replace=False)), state + 1

    return asked, ftx.data.uniform_cohorts(2)._replace(init=lambda num_clients: np.int64(0), select=select)


def watched_round(select_more=lambda number: None, **changes):
    asked, source = watched_source(select_more)
    return asked, ftx.make_round(problems.experiment(cohorts=source, **changes), EXECUTION)


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left.device, right.device)
    assert left[2:4] == right[2:4]


def play(round_fn, calls, state=None, **options):
    state, cohorts = round_fn.init() if state is None else state, []
    for num_rounds in calls:
        state, infos = round_fn.run(state, num_rounds, **options)
        cohorts += [info.client_ids.tolist() for info in infos]
    return state, cohorts


@pytest.fixture(scope="module")
def plain():
    """Six rounds, nothing planned ahead."""
    asked, round_fn = watched_round()
    state, cohorts = play(round_fn, [1, 2, 3], then=0)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert not round_fn.ahead
    return state, cohorts


def test_a_call_plans_the_next_one_before_it_reads_its_own_results(monkeypatch):
    events = []
    asked, round_fn = watched_round(lambda number: events.append(f"plan {number}"))
    state, read = round_fn.init(), rounds_module.read_infos
    monkeypatch.setattr(rounds_module, "read_infos", lambda *given: (events.append("read"), read(*given))[1])
    for _ in range(2):
        state, _ = round_fn(state)
    assert events == ["plan 0", "plan 1", "read", "plan 2", "read"]


def test_each_round_is_planned_once_and_results_are_those_without(plain):
    asked, round_fn = watched_round()
    state, cohorts = play(round_fn, [1] * 6)
    assert asked == [0, 1, 2, 3, 4, 5, 6]
    same(state, plain[0])
    assert cohorts == plain[1]


@pytest.mark.parametrize("calls", [[3, 1, 2], [1, 3, 2], [2, 2, 2]])
def test_another_number_of_rounds_than_was_foreseen_is_planned_anew(plain, calls):
    state, cohorts = play(watched_round()[1], calls)
    same(state, plain[0])
    assert cohorts == plain[1]


def test_the_number_of_rounds_to_come_may_be_told():
    asked, round_fn = watched_round()
    state, _ = round_fn.run(round_fn.init(), 1, then=3)
    assert asked == [0, 1, 2, 3]
    state, _ = round_fn.run(state, 3, then=0)
    assert asked == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="expected then <= 3, got 4"):
        round_fn.run(state, 1, then=4)
    with pytest.raises(TypeError, match="then"):
        round_fn.run(state, 1, then=0.5)


def test_a_plan_serves_only_the_state_that_it_was_made_for(plain):
    _, round_fn = watched_round()
    first, _ = round_fn(round_fn.init())
    round_fn(first)  # what is planned now is round 2
    other, cohorts = play(round_fn, [1, 1], round_fn.init(seed=8))
    want, want_cohorts = play(watched_round()[1], [1, 1], round_fn.init(seed=8), then=0)
    same(other, want)
    assert cohorts == want_cohorts != plain[1][:2]
    again, cohorts = play(round_fn, [2, 3], first)
    same(again, plain[0])
    assert cohorts == plain[1][1:]
    # The same round and seed with another state of the source, as a user may make one.
    elsewhere, _ = round_fn(first)
    moved = elsewhere._replace(cohorts=elsewhere.cohorts + 40)
    round_fn(moved)
    assert round_fn.ahead[0].key.source_state == 43


def test_a_source_that_reads_metrics_is_not_asked_ahead():
    asked, source = watched_source()
    round_fn = ftx.make_round(problems.experiment(cohorts=source._replace(reads_metrics=True)), EXECUTION)
    play(round_fn, [1, 1])
    assert asked == [0, 1]


def fail_in(failing):
    def select_more(number):
        if number == failing:
            raise OSError(f"no cohort {number}")

    return select_more


def test_an_error_of_a_source_surfaces_in_its_own_round():
    asked, round_fn = watched_round(fail_in(2))
    state, cohorts = play(round_fn, [1, 1])
    assert len(cohorts) == 2
    for _ in range(2):  # the second time it is asked again
        with pytest.raises(OSError, match="no cohort 2"):
            round_fn(state)
    assert asked == [0, 1, 2, 2]
    round_fn(round_fn.init())  # the round function itself is none the worse


def test_a_cohort_that_is_refused_is_refused_in_its_own_round():
    source = ftx.data.fixed_cohorts([[0, 1], [3, 3]])._replace(repeats=False)
    round_fn = ftx.make_round(problems.experiment(cohorts=source), EXECUTION)
    state, _ = round_fn(round_fn.init())
    with pytest.raises(ValueError, match=r"expected the cohort to hold each client once.*got \[3\]"):
        round_fn(state)


def test_ctrl_c_while_planning_ahead_ends_at_once_and_leaves_no_plan_and_no_thread():
    def interrupt(number):
        if number == 1:
            raise KeyboardInterrupt

    asked, round_fn = watched_round(interrupt)
    threads = threading.active_count()
    state = round_fn.init()
    with pytest.raises(KeyboardInterrupt):
        round_fn(state)
    assert not round_fn.ahead
    assert threading.active_count() == threads
    round_fn.run(state, 1, then=0)


def test_a_run_plans_each_round_once_and_nothing_beyond_its_last():
    asked, source = watched_source()
    experiment = problems.experiment(cohorts=source)
    result = ftx.run(experiment, 7, execution=EXECUTION, evaluate_every=3, progress=False)
    assert asked == list(range(7))
    assert len(result.history) == 7


def test_a_run_fails_in_the_round_of_the_error_with_the_rounds_before_it_kept(tmp_path):
    asked, source = watched_source(fail_in(4))
    experiment = problems.experiment(cohorts=source)
    with pytest.raises(OSError, match="no cohort 4"):
        ftx.run(experiment, 7, execution=ftx.Execution(num_lanes=2, rounds_per_call=1), run_dir=tmp_path, progress=False)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
