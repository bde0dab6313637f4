"""The virtual clock: who arrives when and how stale, on paper and by law; its state, and what it refuses."""

import jax
import numpy as np
import pytest

from fedjax_tx import prng
from fedjax_tx.data import async_cohorts


def play(source, num_clients: int, rounds: int, state=None, first_round: int = 0, seed: int = 0):
    """Runs the clock for some rounds: (cohorts, state)."""
    state, cohorts = source.init(num_clients) if state is None else state, []
    for number in range(first_round, first_round + rounds):
        cohort, state = source.select(state, prng.host_generator(seed, "cohort", number), None)
        cohorts.append(cohort)
    return cohorts, state


def tell(cohorts):
    """[(time of the server's step, [(client, version), ...]), ...]"""
    return [(float(c.covariates["virtual_time"][0]), list(zip(c.ids.tolist(), c.version.tolist(), strict=True))) for c in cohorts]


# ---- on paper


def test_three_clients_that_train_for_1_2_and_5_in_full_asynchrony():
    # Everybody trains all the time; the server steps with each update. A, B and C begin from model 0 at time 0 (which of them
    # "started earlier" there is drawn, but no tie depends on it: B began before A did where they arrive together).
    # t=1  A arrives (began at model 0, server at 0): age 0 -> model 1; A begins at model 1.
    # t=2  B arrives (began at 0, server at 1): age 1 -> model 2; A (began at 1, server at 2): age 1 -> model 3; both begin at 3.
    # t=3  A (3, server 3): age 0 -> 4; begins at 4.
    # t=4  B (3, server 4): age 1 -> 5; A (4, server 5): age 1 -> 6; both begin at 6.
    # t=5  C (0, server 6): age 6 -> 7; A (6, server 7): age 1 -> 8; both begin at 8. C began at time 0, before A did at 4.
    # t=6  B (6, server 8): age 2 -> 9; A (8, server 9): age 1 -> 10.
    a, b, c = 0, 1, 2
    cohorts, state = play(async_cohorts([1, 2, 5], concurrency=3, buffer_size=1, max_staleness=6), 3, 10)
    assert tell(cohorts) == [
        (1.0, [(a, 0)]),
        (2.0, [(b, 1)]),
        (2.0, [(a, 1)]),
        (3.0, [(a, 0)]),
        (4.0, [(b, 1)]),
        (4.0, [(a, 1)]),
        (5.0, [(c, 6)]),
        (5.0, [(a, 1)]),
        (6.0, [(b, 2)]),
        (6.0, [(a, 1)]),
    ]
    assert (state.now, state.steps) == (6.0, 10)


def test_three_clients_that_train_for_1_2_and_5_with_a_buffer_of_two():
    # One whose update waits in the buffer is not drawn again, so its place stays empty until the server steps.
    # t=1  A into the buffer; nobody is free.         t=2  B: step with A (age 0), B (age 0) -> model 1; both begin at 1.
    # t=3  A waits.                                   t=4  B: step with A (1, server 1) age 0, B age 0 -> 2; both begin at 2.
    # t=5  C and A arrive, C began earlier: step with C (0, server 2) age 2 and A (2, server 2) age 0 -> 3; both begin at 3.
    # t=6  B (2, server 3), age 1, and A (3), age 0, arrive, B began at 4 and A at 5: step -> 4.
    a, b, c = 0, 1, 2
    cohorts, _ = play(async_cohorts([1, 2, 5], concurrency=3, buffer_size=2, max_staleness=2), 3, 4)
    assert tell(cohorts) == [
        (2.0, [(a, 0), (b, 0)]),
        (4.0, [(a, 0), (b, 0)]),
        (5.0, [(c, 2), (a, 0)]),
        (6.0, [(b, 1), (a, 0)]),
    ]
    assert [cohort.covariates["arrival_time"].tolist() for cohort in cohorts] == [[1, 2], [3, 4], [5, 5], [6, 6]]


def test_updates_older_than_max_staleness_are_thrown_away_and_counted():
    # As in the first case with one server step an update, but C's update of age 6 is too old at 5, the limit being 5: of what
    # arrives then only A's counts, and so do all ages after it, one step earlier than there.
    a, b = 0, 1
    cohorts, _ = play(async_cohorts([1, 2, 5], concurrency=3, buffer_size=1, max_staleness=5), 3, 9)
    assert tell(cohorts)[5:] == [(4.0, [(a, 1)]), (5.0, [(a, 0)]), (6.0, [(b, 1)]), (6.0, [(a, 1)])]
    assert [int(cohort.covariates["dropped_updates"][0]) for cohort in cohorts] == [0] * 6 + [1, 0, 0]


def test_the_synchronous_run_waits_for_the_slowest():
    # Buffer, concurrency and population are equal: nobody is free until all have arrived.
    cohorts, _ = play(async_cohorts([1, 2, 5], concurrency=3, buffer_size=3, max_staleness=0), 3, 3)
    assert tell(cohorts) == [(5.0 * n, [(0, 0), (1, 0), (2, 0)]) for n in (1, 2, 3)]


# ---- laws


@pytest.mark.parametrize("concurrency", [1, 4])
def test_clients_of_equal_speed_are_never_stale_where_the_buffer_is_as_large_as_the_concurrency(concurrency):
    cohorts, _ = play(async_cohorts(np.full(9, 0.3), concurrency, concurrency, 0), 9, 50)
    assert all(cohort.version.tolist() == [0] * concurrency for cohort in cohorts)
    times = [cohort.covariates["virtual_time"][0] for cohort in cohorts]
    np.testing.assert_allclose(times, 0.3 * np.arange(1, 51), rtol=1e-12)
    counts = np.bincount(np.concatenate([cohort.ids for cohort in cohorts]), minlength=9)
    assert (counts > 0).all()


def test_a_buffer_larger_than_the_concurrency_fills_over_time():
    cohorts, _ = play(async_cohorts(np.ones(7), concurrency=2, buffer_size=5, max_staleness=3), 7, 6)
    # Two arrive at each moment: after 5 of them (at 3, one left over), 10 (at 5), 15 (at 8) ... the server steps.
    assert [time for time, _ in tell(cohorts)] == [3.0, 5.0, 8.0, 10.0, 13.0, 15.0]
    assert all(np.unique(cohort.ids).size == 5 for cohort in cohorts)


def log_normal(generator, ids):
    return generator.lognormal(0.1 * ids, 1.0)


def test_what_a_clock_can_never_do():
    source = async_cohorts(log_normal, concurrency=5, buffer_size=3, max_staleness=2)
    cohorts, _ = play(source, 12, 300)
    last, dropped = 0.0, 0
    for cohort in cohorts:
        arrival, step = cohort.covariates["arrival_time"], cohort.covariates["virtual_time"]
        assert np.unique(cohort.ids).size == 3
        assert 0 <= cohort.version.min() <= cohort.version.max() <= 2
        assert (np.diff(arrival) >= 0).all()
        assert last <= arrival[0]
        assert (step == arrival[-1]).all()
        last, dropped = step[0], dropped + int(cohort.covariates["dropped_updates"][0])
    assert dropped > 0
    assert max(cohort.version.max() for cohort in cohorts) == 2


def test_exactly_the_concurrency_trains_after_every_start():
    source = async_cohorts(log_normal, concurrency=5, buffer_size=3, max_staleness=9)
    state = source.init(12)
    for number in range(40):
        started = state.started
        cohort, state = source.select(state, prng.host_generator(0, "cohort", number), None)
        training = state.client[state.client >= 0]
        # All but the one whose arrival filled the buffer, and it is the only one at this moment.
        assert training.size == 4 == np.unique(training).size
        assert np.isfinite(state.finish).sum() == 4
        assert not set(training.tolist()) & set(cohort.ids.tolist())
        arrived = 3 + int(cohort.covariates["dropped_updates"][0])
        assert state.started - started == arrived + (4 if number == 0 else 0)


def test_fast_clients_come_as_much_more_often_as_they_are_faster():
    cohorts, state = play(async_cohorts([1.0, 1.0, 2.0, 4.0], concurrency=4, buffer_size=1, max_staleness=40), 4, 1100)
    counts = np.bincount(np.concatenate([cohort.ids for cohort in cohorts]), minlength=4)
    # Each trains without a break: 400 time units hold 400, 400, 200 and 100 updates.
    assert counts.tolist() == [400, 400, 200, 100]
    assert state.now == 400.0


def test_who_starts_is_drawn_uniformly():
    cohorts, _ = play(async_cohorts(np.ones(5), concurrency=2, buffer_size=2, max_staleness=0), 5, 2000)
    counts = np.bincount(np.concatenate([cohort.ids for cohort in cohorts]), minlength=5)
    # Each count is binomial(2000, 2/5): standard deviation 22.
    np.testing.assert_allclose(counts, 800, atol=5 * 22)


# ---- state


def test_the_same_generators_give_the_same_cohorts_and_others_give_others():
    source = async_cohorts(log_normal, concurrency=4, buffer_size=2, max_staleness=5)
    one, same, other = (tell(play(source, 9, 20, seed=seed)[0]) for seed in (1, 1, 2))
    assert one == same != other


def test_a_clock_that_goes_on_from_saved_arrays_is_one_that_never_stopped():
    source = async_cohorts(log_normal, concurrency=4, buffer_size=2, max_staleness=5)
    whole, _ = play(source, 9, 12)
    _, state = play(source, 9, 7)
    leaves, structure = jax.tree.flatten(state)
    first = jax.tree.leaves(source.init(9))
    assert [(leaf.shape, leaf.dtype) for leaf in leaves] == [(leaf.shape, leaf.dtype) for leaf in first]
    saved = [np.frombuffer(leaf.tobytes(), leaf.dtype).reshape(leaf.shape)[()] for leaf in leaves]
    rest, _ = play(source, 9, 5, jax.tree.unflatten(structure, saved), first_round=7)
    assert tell(rest) == tell(whole[7:])


def test_selecting_leaves_the_state_that_it_was_given():
    source = async_cohorts(log_normal, concurrency=4, buffer_size=2, max_staleness=5)
    _, state = play(source, 9, 3)
    before = jax.tree.map(np.copy, state)
    again = [tell(play(source, 9, 4, state, 3)[0]) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert again[0] == again[1]


def test_descriptions_tell_clocks_apart():
    clocks = [async_cohorts(durations, 2, 2, 1) for durations in ([1.0, 2.0], [2.0, 1.0], log_normal)]
    clocks += [async_cohorts([1.0, 2.0], *counts) for counts in ((1, 2, 1), (2, 1, 1), (2, 2, 0))]
    assert len({clock.description for clock in clocks}) == 6
    assert async_cohorts(np.array([1, 2]), 2, 2, 1).description == clocks[0].description
    assert "test_clock.log_normal" in clocks[2].description


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "num_clients", "message"),
    [
        ({"concurrency": 4}, 3, "expected concurrency <= 3, the number of clients, got 4"),
        ({"buffer_size": 4}, 3, "expected buffer_size <= 3, the number of clients, got 4"),
        ({}, 4, "expected durations to have 4 entries, one for each client, got '3 entries'"),
    ],
)
def test_a_clock_that_does_not_fit_the_clients_is_refused_when_a_run_starts(changes, num_clients, message):
    source = async_cohorts(**{"durations": [1.0, 2.0, 5.0], "concurrency": 2, "buffer_size": 2, "max_staleness": 1, **changes})
    with pytest.raises(ValueError, match=message):
        source.init(num_clients)


@pytest.mark.parametrize(
    ("error", "durations", "message"),
    [
        (ValueError, [1.0, 0.0], "expected durations to be finite and > 0, got 0.0"),
        (ValueError, [1.0, np.inf], "expected durations to be finite and > 0, got inf"),
        (ValueError, [np.nan], "expected durations to be finite and > 0, got nan"),
        (ValueError, [[1.0]], r"expected durations of shape \[client\], got \(1, 1\)"),
        (TypeError, [True], "expected durations to be an array of numbers, or a function"),
        (TypeError, "fast", "expected durations to be an array of numbers, or a function"),
    ],
)
def test_durations_that_are_none_are_refused(error, durations, message):
    with pytest.raises(error, match=message):
        async_cohorts(durations, 1, 1, 1)


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (lambda generator, ids: np.ones(1), r"the durations that were drawn to have 2 entries, .*got 'an array of shape \(1,\)'"),
        (lambda generator, ids: -np.ones(2), "the durations that were drawn to be finite and > 0, got -1.0"),
    ],
)
def test_drawn_durations_that_are_none_are_refused(drawn, message):
    source = async_cohorts(drawn, 2, 1, 1)
    with pytest.raises(ValueError, match=message):
        play(source, 3, 1)


@pytest.mark.parametrize(("name", "low"), [("concurrency", 1), ("buffer_size", 1), ("max_staleness", 0)])
def test_counts_below_their_least_are_refused_by_name(name, low):
    counts = {"concurrency": 1, "buffer_size": 1, "max_staleness": 1, name: low - 1}
    with pytest.raises(ValueError, match=f"expected {name} >= {low}, got {low - 1}"):
        async_cohorts([1.0], **counts)
