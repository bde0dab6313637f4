"""Separated cohorts: nobody comes too often, and those who may are drawn alike."""

import numpy as np
import pytest

from fedjax_tx import prng
from fedjax_tx.data import separated_cohorts, with_covariates
from fedjax_tx.types import Participation


def draw(source, num_clients: int, rounds: int, seed: int = 0) -> list[np.ndarray]:
    state, drawn = source.init(num_clients), []
    for number in range(rounds):
        ids, state = source.select(state, prng.host_generator(seed, "cohort", number), None)
        drawn.append(ids)
    return drawn


def rounds_of(drawn: list[np.ndarray], client: int) -> np.ndarray:
    return np.array([number for number, ids in enumerate(drawn) if client in ids])


@pytest.mark.parametrize(("clients_per_round", "min_separation", "most"), [(3, 4, None), (5, 1, 3), (2, 5, 2), (1, 15, 1)])
def test_nobody_comes_sooner_or_oftener_than_is_said(clients_per_round, min_separation, most):
    source = separated_cohorts(clients_per_round, min_separation, most)
    drawn = draw(source, 15, 40)
    assert source.participation == Participation(min_separation, most)
    gaps, times = [], []
    for client in range(15):
        came = rounds_of(drawn, client)
        gaps += np.diff(came).tolist()
        times.append(came.size)
    assert min(gaps, default=min_separation) >= min_separation
    assert max(times) <= (most or 40)
    assert all(np.unique(ids).size == ids.size for ids in drawn)
    if most is None:
        assert {ids.size for ids in drawn} == {clients_per_round}
        assert min(gaps) == min_separation  # it does happen
    else:  # all have come as often as they may, and nobody is left
        assert times == [most] * 15 and drawn[-1].size == 0


def test_with_as_many_groups_as_rounds_apart_the_same_clients_meet_again_and_again():
    drawn = draw(separated_cohorts(3, 4), 12, 12)
    for number in range(4):
        assert set(drawn[number]) == set(drawn[number + 4]) == set(drawn[number + 8])
    assert sorted(np.concatenate(drawn[:4])) == list(range(12))


def test_those_who_have_rested_are_drawn_alike():
    source, counts = separated_cohorts(2, 2), np.zeros(6)
    for seed in range(3000):
        first, second = draw(source, 6, 2, seed)
        assert not set(first) & set(second)
        counts[second] += 1
    # Each count is binomial(3000, 1/3): standard deviation 26.
    np.testing.assert_allclose(counts, 1000, atol=5 * 26)


def test_a_state_that_was_handed_out_stays_as_it_is():
    source = separated_cohorts(2, 2, 3)
    state = source.init(4)
    once, later = source.select(state, np.random.default_rng(0), None)
    again, _ = source.select(state, np.random.default_rng(0), None)
    assert once.tolist() == again.tolist() and state["times"].sum() == 0 and later["times"].sum() == 2


def test_what_stands_around_it_keeps_its_limits():
    assert with_covariates(separated_cohorts(1, 2), size=[1, 2]).participation == Participation(2, None)


def test_too_few_clients_to_rest_are_refused_when_the_run_starts():
    separated_cohorts(2, 3).init(6)
    with pytest.raises(ValueError, match=r"expected clients_per_round <= 1, so that of 5 clients enough have rested, got 2"):
        separated_cohorts(2, 3).init(5)
