"""What a cohort source says of its sampling, by which privacy is accounted for, is what it does, and nothing else is."""

from itertools import combinations
from math import comb

import numpy as np
from scipy import stats

from fedjax_tx import prng
from fedjax_tx.data import all_clients, poisson_cohorts, uniform_cohorts, with_covariates

CLIENTS, ROUNDS = 6, 4000


def draw(source, rounds=ROUNDS):
    """Who came: bool [round, client]."""
    state, came = source.init(CLIENTS), np.zeros((rounds, CLIENTS), bool)
    for number in range(rounds):
        selected, state = source.select(state, prng.host_generator(7, "cohort", number), None)
        came[number, getattr(selected, "ids", selected)] = True
    return came


def is_poisson(came, rate) -> bool:
    """Whether the 2^6 sets of clients come as often as of clients who come alone by this chance: a chi-square test at 1e-6."""
    sizes = np.array([bin(number).count("1") for number in range(2**CLIENTS)])
    expected = len(came) * rate**sizes * (1 - rate) ** (CLIENTS - sizes)
    return _fits(np.bincount(came @ 2 ** np.arange(CLIENTS), minlength=2**CLIENTS), expected)


def is_of_size(came, size) -> bool:
    """Whether every set of so many clients comes as often, and no other set does."""
    if (came.sum(1) != size).any():
        return False
    sets = [sum(2**client for client in chosen) for chosen in combinations(range(CLIENTS), size)]
    observed = np.bincount(came @ 2 ** np.arange(CLIENTS), minlength=2**CLIENTS)[sets]
    return _fits(observed, np.full(len(sets), len(came) / comb(CLIENTS, size)))


def _fits(observed, expected) -> bool:
    often = expected >= 5
    rare = [observed[~often].sum(), expected[~often].sum()]
    statistic = np.square(observed - expected)[often] / expected[often]
    return stats.chi2.sf(statistic.sum(), often.sum()) > 1e-6 and stats.poisson.sf(rare[0] - 1, max(rare[1], 1e-9)) > 1e-6


def test_poisson_cohorts_are_of_the_rate_they_say_and_no_other():
    source = with_covariates(poisson_cohorts(0.4), number=np.arange(CLIENTS))
    came, rate = draw(source), source.sampling.rate
    assert [is_poisson(came, factor * rate) for factor in (1, 2 / 3, 3 / 2)] == [True, False, False]


def test_cohorts_of_a_fixed_size_are_every_set_of_it_as_often():
    source = uniform_cohorts(3)
    came = draw(source)
    assert is_of_size(came, source.sampling.size)
    assert not is_of_size(came, 2) and not is_of_size(came, 4)
    assert all_clients().sampling.rate == 1 and draw(all_clients(), rounds=3).all()


def test_samplers_of_the_same_frequencies_are_told_apart():
    uniform, poisson = draw(uniform_cohorts(3)), draw(poisson_cohorts(0.5))
    assert is_poisson(poisson, 0.5) and not is_poisson(uniform, 0.5) and not is_of_size(poisson, 3)
    # Neighbours on a ring: each client comes as often as it should, but most sets never do.
    first = np.random.default_rng(0).integers(CLIENTS, size=ROUNDS)
    ring = np.zeros((ROUNDS, CLIENTS), bool)
    ring[np.arange(ROUNDS)[:, None], (first[:, None] + np.arange(3)) % CLIENTS] = True
    np.testing.assert_allclose(ring.mean(0), 0.5, atol=0.04)
    assert not is_of_size(ring, 3)
