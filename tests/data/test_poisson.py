"""Poisson cohorts: how often each client comes, that they come independently, and where a draw is cut."""

import numpy as np
import pytest
from scipy import stats

from fedjax_tx import prng
from fedjax_tx.data import poisson_cohorts, uniform_cohorts
from fedjax_tx.data.cohort import least_capacity

CLIENTS, RATE, ROUNDS = 40, 0.3, 4000


def draw(source, num_clients: int = CLIENTS, rounds: int = ROUNDS, seed: int = 0) -> np.ndarray:
    """Who came: bool [round, client]."""
    state, came = source.init(num_clients), np.zeros((rounds, num_clients), bool)
    for number in range(rounds):
        ids, state = source.select(state, prng.host_generator(seed, "cohort", number), None)
        assert np.unique(ids).size == ids.size <= source.max_clients(num_clients)
        came[number, ids] = True
    return came


@pytest.fixture(scope="module")
def came():
    return draw(poisson_cohorts(RATE))


def test_every_client_comes_with_the_rate(came):
    # Each count is binomial(4000, 0.3), of standard deviation 29.
    np.testing.assert_allclose(came.sum(0), ROUNDS * RATE, atol=5 * 29)


def size_variance_is_binomial(sizes, tolerance: float = 0.15) -> bool:
    # The variance of 4,000 sizes errs by about sqrt(2 / 4000) = 2 % of itself.
    return abs(sizes.var() / (CLIENTS * RATE * (1 - RATE)) - 1) < tolerance


def test_sizes_vary_as_those_of_independent_clients_do_and_uniform_cohorts_are_told_apart(came):
    assert size_variance_is_binomial(came.sum(1))
    assert not size_variance_is_binomial(draw(uniform_cohorts(int(CLIENTS * RATE))).sum(1))
    # Clients that come in pairs have the right frequency and the wrong variance.
    pairs = np.repeat(draw(poisson_cohorts(RATE), CLIENTS // 2, 2000), 2, axis=1)
    np.testing.assert_allclose(pairs.mean(), RATE, atol=0.02)
    assert not size_variance_is_binomial(pairs.sum(1))


def test_the_sizes_are_binomial(came):
    observed = np.bincount(came.sum(1), minlength=CLIENTS + 1)
    expected = ROUNDS * stats.binom.pmf(np.arange(CLIENTS + 1), CLIENTS, RATE)
    often = expected > 10
    statistic = np.square(observed - expected)[often] / expected[often]
    assert stats.chi2.sf(statistic.sum(), often.sum() - 1) > 1e-3


def test_clients_and_rounds_are_uncorrelated(came):
    # A correlation of 4,000 pairs has a standard deviation of 0.016; the largest of 780 is within 5 of them.
    between = np.corrcoef(came.T)[np.triu_indices(CLIENTS, 1)]
    assert np.abs(between).max() < 5 / np.sqrt(ROUNDS)
    following = [np.corrcoef(came[:-1, client], came[1:, client])[0, 1] for client in range(CLIENTS)]
    assert np.abs(following).max() < 5 / np.sqrt(ROUNDS)


def test_the_generator_decides_and_rounds_differ():
    source = poisson_cohorts(0.5)
    first, again, other = draw(source, 50, 2), draw(source, 50, 2), draw(source, 50, 2, seed=1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first, other)


def test_a_round_may_be_empty_and_a_rate_of_one_takes_everybody():
    assert draw(poisson_cohorts(0.1), 5, 50).any(1).sum() in range(10, 35)  # 0.9^5 = 0.59 of 50 rounds are empty
    assert draw(poisson_cohorts(1.0), 7, 3).all()


@pytest.mark.parametrize("num_clients", [1, 2, 37, 1000, 100_000])
@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.3, 0.5, 0.999, 1.0])
def test_the_capacity_is_the_least_that_is_exceeded_once_in_a_billion_rounds(num_clients, rate):
    most = poisson_cohorts(rate).max_clients(num_clients)
    assert stats.binom.sf(most, num_clients, rate) <= 1e-9
    assert most == 1 or stats.binom.sf(most - 1, num_clients, rate) > 1e-9
    assert 1 <= most <= num_clients


def test_the_capacity_by_hand():
    # Of three fair coins P[3] = 1/8, P[more than 1] = 1/2.
    assert [least_capacity(3, 0.5, chance=chance) for chance in (0.124, 0.126, 0.49, 0.51)] == [3, 2, 2, 1]


def test_a_draw_above_the_cap_is_cut_to_a_uniform_part_of_that_size():
    came = draw(poisson_cohorts(0.5, max_clients=3), 8)
    drawn = draw(poisson_cohorts(0.5, max_clients=8), 8)
    assert np.array_equal(came.sum(1), np.minimum(drawn.sum(1), 3))
    assert not (came & ~drawn).any()
    assert np.array_equal(came[drawn.sum(1) <= 3], drawn[drawn.sum(1) <= 3])
    # No client is cut more often than another: each count is near 4000 x 2.8 / 8, standard deviation below 32.
    np.testing.assert_allclose(came.sum(0), came.sum() / 8, atol=5 * 32)


def test_the_cap_is_the_capacity_unless_there_are_fewer_clients():
    assert poisson_cohorts(0.5, max_clients=3).max_clients(8) == 3
    assert poisson_cohorts(0.5, max_clients=30).max_clients(8) == 8


def test_descriptions_tell_rates_and_caps_apart():
    sources = [poisson_cohorts(0.5), poisson_cohorts(0.25), poisson_cohorts(0.5, 7)]
    assert len({source.description for source in sources}) == 3


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "rate > 0, got 0.0", (0,)),
        (ValueError, "rate <= 1, got 1.5", (1.5,)),
        (ValueError, "rate to be finite", (float("nan"),)),
        (TypeError, "rate", ("often",)),
        (ValueError, "max_clients >= 1, got 0", (0.5, 0)),
        (TypeError, "max_clients", (0.5, 2.5)),
    ],
)
def test_wrong_arguments_are_named(error, message, arguments):
    with pytest.raises(error, match=message):
        poisson_cohorts(*arguments)
