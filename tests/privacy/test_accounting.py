"""Accounting against published values, closed forms, and the laws that any accountant keeps."""

import math

import dp_accounting.pld
import numpy as np
import pytest
from scipy import optimize, stats

from fedjax_tx import privacy
from fedjax_tx.privacy import accounting

MOMENTS = {"noise_multiplier": 1.0, "sampling_rate": 5000 / 763430, "rounds": 5000, "delta": 1e-9}
"""McMahan et al. (arXiv 1710.06963), Table 1: epsilon 4.634, by the conversion of that time."""


@pytest.mark.parametrize(("accountant", "published"), [("pld", 3.90), ("rdp", 4.18)])
def test_dp_fedavg_of_its_paper_by_the_accountants_of_today(accountant, published):
    assert privacy.epsilon(**MOMENTS, accountant=accountant) == pytest.approx(published, abs=0.005)


def test_the_published_number_itself_is_that_of_the_older_conversion():
    """epsilon = min over orders of divergence + log(1 / delta) / (order - 1), divergences by the integral's own sum.

    Of an integer order a: exp((a - 1) D_a) = sum over k of binomial(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) / (2 z^2)).
    """
    q, rounds, delta = (MOMENTS[name] for name in ("sampling_rate", "rounds", "delta"))

    def bound(order):
        counts = np.arange(order + 1)
        log_terms = stats.binom.logpmf(counts, order, q) + counts * (counts - 1) / 2
        return rounds * np.logaddexp.reduce(log_terms) / (order - 1) + math.log(1 / delta) / (order - 1)

    assert min(bound(order) for order in range(2, 64)) == pytest.approx(4.634, abs=0.005)


@pytest.mark.parametrize("room", [None, pytest.param(161, marks=pytest.mark.slow)])
def test_other_numbers_of_rounds_compose_what_was_made_once_and_are_the_librarys(room):
    limits = {} if room is None else {"population": 1000, "max_clients": room}
    event = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.25))
    if room is not None:
        event = dp_accounting.TruncatedSubsampledGaussianDpEvent(1000, 0.1, room, 1.25)
    made = accounting._loss_of_one_round.cache_info().misses
    for rounds in (3, 7):
        accountant = dp_accounting.pld.PLDAccountant().compose(dp_accounting.SelfComposedDpEvent(event, rounds))
        expected = accountant.get_epsilon(1e-6)
        assert privacy.epsilon(1.25, 0.1, rounds, 1e-6, **limits) == pytest.approx(expected, abs=1e-8)
    assert accounting._loss_of_one_round.cache_info().misses == made + 1


def test_a_population_of_phones():
    spent = privacy.epsilon(0.5, 100 / 342477, 1600, 1 / 342477)
    assert spent == pytest.approx(2.2046, abs=1e-3)


def test_everybody_in_one_round_is_the_gaussian_mechanism():
    """Its delta in closed form (arXiv 1805.06530): Phi(1 / 2z - eps z) - e^eps Phi(-1 / 2z - eps z)."""
    noise, delta = 0.8, 1e-5

    def excess(eps):
        near = stats.norm.cdf(1 / (2 * noise) - eps * noise)
        return near - math.exp(eps) * stats.norm.cdf(-1 / (2 * noise) - eps * noise) - delta

    exact = optimize.brentq(excess, 0.1, 20)
    assert privacy.epsilon(noise, 1.0, 1, delta) == pytest.approx(exact, rel=1e-3)
    # Rounds add up as one with less noise; replacing a client is a move twice as far.
    assert privacy.epsilon(2 * noise, 1.0, 4, delta) == pytest.approx(exact, rel=1e-3)
    replaced = privacy.epsilon_of_fixed_cohorts(2 * noise, 7, 7, 1, delta)
    assert exact < replaced < 1.15 * exact


def test_more_rounds_more_clients_and_less_noise_cost_more():
    base = {"noise_multiplier": 1.0, "sampling_rate": 0.01, "rounds": 100, "delta": 1e-6}
    spent = privacy.epsilon(**base, accountant="rdp")
    for change in ({"rounds": 200}, {"sampling_rate": 0.02}, {"noise_multiplier": 0.8}, {"delta": 1e-7}):
        assert privacy.epsilon(**{**base, **change}, accountant="rdp") > 1.01 * spent
    assert privacy.epsilon(**base) < spent


def test_nothing_is_spent_without_a_round_and_everything_without_noise():
    assert privacy.epsilon(1.0, 0.1, 0, 1e-6) == privacy.epsilon(0.0, 0.0, 10, 1e-6) == 0
    assert privacy.epsilon_of_fixed_cohorts(1.0, 2, 10, 0, 1e-6) == 0
    assert privacy.epsilon(0.0, 0.1, 1, 1e-6) == privacy.epsilon_of_fixed_cohorts(0.0, 2, 10, 1, 1e-6) == math.inf


def test_noise_is_calibrated_to_the_least_that_does():
    options = {"sampling_rate": 0.01, "rounds": 100, "delta": 1e-6, "accountant": "rdp"}
    for target in (0.3, 8.0):
        noise = privacy.calibrate_noise(target, **options)
        assert privacy.epsilon(noise, **options) <= target < privacy.epsilon(noise - 0.001, **options)


def test_noise_is_calibrated_on_cohorts_of_a_fixed_size_too():
    options = {"clients_per_round": 10, "population": 10, "rounds": 100, "delta": 1e-6}
    for target in (0.5, 6.0):
        noise = privacy.calibrate_noise_of_fixed_cohorts(target, **options)
        spent = privacy.epsilon_of_fixed_cohorts(noise, **options)
        assert spent <= target < privacy.epsilon_of_fixed_cohorts(noise - 0.001, **options)
    with pytest.raises(ValueError, match=r"expected target_epsilon to be reached by some noise at delta=1e-06, got 1e-07"):
        privacy.calibrate_noise_of_fixed_cohorts(1e-7, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("room", "published"), [(128, 10.34), (200, 1.989)])
def test_clients_turned_away_cost_what_only_a_large_room_makes_good(room, published):
    spent = privacy.epsilon(0.51, 100 / 342477, 1600, 1 / 342477, population=342477, max_clients=room)
    assert spent == pytest.approx(published, rel=1e-3)


@pytest.mark.slow
def test_a_room_that_is_too_small_costs_more():
    plain = privacy.epsilon(1.0, 0.3, 5, 1e-3)
    assert privacy.epsilon(1.0, 0.3, 5, 1e-3, population=20, max_clients=8) > plain


def test_room_for_all_is_no_limit():
    plain = privacy.epsilon(1.0, 0.3, 2, 1e-3)
    assert privacy.epsilon(1.0, 0.3, 2, 1e-3, population=20, max_clients=20) == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 10}, "expected population and max_clients together"),
        ({"population": 10, "max_clients": 11}, "max_clients"),
        ({"population": 10, "max_clients": 5, "accountant": "rdp"}, "where cohorts have limited room"),
        ({"accountant": "moments"}, "moments"),
        ({"delta": 1.0}, "delta"),
        ({"sampling_rate": 1.5}, "sampling_rate"),
    ],
)
def test_what_cannot_be_accounted_for_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        privacy.epsilon(**{"noise_multiplier": 1.0, "sampling_rate": 0.1, "rounds": 3, "delta": 1e-6, **options})
