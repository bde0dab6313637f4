"""Cohorts from whoever is there: traces by hand, distributions by their frequencies."""

import numpy as np
import pytest

from fedjax_tx import prng
from fedjax_tx.data import available_cohorts


def draw(source, num_clients: int, rounds: int) -> list[list[int]]:
    state, drawn = source.init(num_clients), []
    for number in range(rounds):
        ids, state = source.select(state, prng.host_generator(0, "cohort", number), None)
        assert len(set(ids.tolist())) == ids.size <= source.max_clients(num_clients)
        drawn.append(sorted(ids.tolist()))
    return drawn


def test_a_trace_is_followed_and_starts_again():
    trace = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    assert draw(available_cohorts(2, trace), 4, 5) == [[0, 1], [3], [], [0, 1], [3]]


def test_of_many_that_are_there_each_is_as_likely():
    cohorts = draw(available_cohorts(2, [1.0, 1.0, 1.0, 0.0, 1.0]), 5, 2000)
    counts = np.bincount(np.concatenate(cohorts), minlength=5)
    # Each count is binomial(2000, 2/4): standard deviation 22.
    np.testing.assert_allclose(counts, [1000, 1000, 1000, 0, 1000], atol=5 * 22)
    assert {len(ids) for ids in cohorts} == {2}


def test_clients_are_there_with_their_chances():
    counts = np.bincount(np.concatenate(draw(available_cohorts(3, [0.1, 0.5, 1.0]), 3, 2000)).astype(int), minlength=3)
    np.testing.assert_allclose(counts, [200, 1000, 2000], atol=5 * 22)


def test_chances_may_change_from_round_to_round():
    cohorts = draw(available_cohorts(2, [[0.9, 0.1], [0.1, 0.9]]), 2, 2000)
    came = np.array([[client in ids for client in range(2)] for ids in cohorts])
    np.testing.assert_allclose(came[::2].sum(0), [900, 100], atol=5 * 10)
    np.testing.assert_allclose(came[1::2].sum(0), [100, 900], atol=5 * 10)


def test_another_number_of_clients_is_refused_when_a_run_starts():
    with pytest.raises(ValueError, match="expected availability to have 3 entries, one for each client, got '2 entries'"):
        available_cohorts(1, [[0.5, 0.5]]).init(3)


def test_descriptions_tell_traces_apart():
    sources = [available_cohorts(*rest) for rest in ((1, [0.5, 1.0]), (2, [0.5, 1.0]), (1, [1.0, 0.5]), (1, [[0.5, 1.0]] * 2))]
    assert len({source.description for source in sources}) == 4
    assert available_cohorts(1, [True, False]).description == available_cohorts(1, [1.0, 0.0]).description
