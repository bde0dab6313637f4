"""The accounting of integer noise against exact divergences in one dimension, and Gaussian noise where it is nearly that."""

import math

import numpy as np
import pytest
from scipy import stats

from fedjax_tx import aggregation, privacy
from fedjax_tx.privacy import distributed

GIVEN = {"clients_per_round": 10, "population": 10, "rounds": 1, "delta": 1e-5}
KINDS = {"skellam": privacy.epsilon_of_skellam, "discrete gaussian": privacy.epsilon_of_discrete_gaussian}


def shares(stddev, number, most=400):
    """The chances of a sum of discrete Gaussian numbers, on -most .. most."""
    places = np.arange(-most, most + 1)
    one = np.exp(-(places**2) / (2 * stddev**2))
    chances = one = one / one.sum()
    for _ in range(number - 1):
        chances = np.convolve(chances, one, "same")
    return places, chances


def test_a_sum_of_discrete_gaussians_is_as_near_to_one_as_the_accounting_takes_it_to_be():
    for stddev in (0.5, 0.7, 0.9):
        places, chances = shares(stddev, 10)
        single = np.exp(-(places**2) / (20 * stddev**2))
        single /= single.sum()
        seen = chances > 1e-12  # below, convolving loses digits
        away = np.abs(np.log(chances[seen] / single[seen])).max()
        bound = 10 * sum(math.exp(-2 * math.pi**2 * stddev**2 * k / (k + 1)) for k in range(1, 10))
        assert away <= bound
        if stddev < 0.8:
            assert away > bound / 100  # and not by far


def exact_epsilon(chances, distance, orders, delta):
    """The least epsilon over orders by the divergences of a distribution from itself moved by a distance."""
    seen = np.minimum(chances[distance:], chances[:-distance]) > 1e-200
    ahead, behind = np.log(chances[distance:][seen]), np.log(chances[:-distance][seen])
    divergences = [np.logaddexp.reduce(order * ahead + (1 - order) * behind) / (order - 1) for order in orders]
    return min(
        d + math.log1p(-1 / order) - math.log(delta * order) / (order - 1) for d, order in zip(divergences, orders, strict=True)
    )


@pytest.mark.parametrize("noise_multiplier", [2.0, 4.0])
def test_in_one_dimension_it_is_above_the_exact_divergence_and_near(noise_multiplier):
    """Norm 5 in units of the resolution; two clients of the one coordinate are at most twice floor(D) apart."""
    norm = aggregation.rounded_norm(5.0, 1)
    stddev, apart, orders = noise_multiplier * norm, 2 * int(norm), range(2, 40)
    places = np.arange(-600, 601)
    exact = {
        "skellam": exact_epsilon(stats.skellam.pmf(places, stddev**2 / 2, stddev**2 / 2), apart, orders, 1e-5),
        "discrete gaussian": exact_epsilon(shares(stddev / 10**0.5, 10, 600)[1], apart, range(2, 12), 1e-5),
    }
    for kind, epsilon in KINDS.items():
        have = epsilon(noise_multiplier, 1.0, 0.2, 1, **GIVEN)
        assert exact[kind] <= have <= 1.3 * exact[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_of_fine_resolution_it_is_gaussian_noise_on_clients_who_are_replaced(kind):
    gaussian = privacy.epsilon(2.0, 1.0, 7, 1e-5, "rdp")  # 4 over twice the norm
    fine = KINDS[kind](4.0, 1.0, 1e-4, 64, **{**GIVEN, "rounds": 7})
    # A percent above, since only integer orders are looked at.
    assert gaussian <= fine + 1e-6 and fine == pytest.approx(gaussian, rel=1e-2)
    # Noise is in proportion to the bound on integers, so a coarse resolution costs only what Skellam is not Gaussian.
    coarse = KINDS[kind](4.0, 1.0, 0.3, 64, **{**GIVEN, "rounds": 7})
    assert coarse > 1.001 * fine if kind == "skellam" else coarse == pytest.approx(fine)


@pytest.mark.parametrize("kind", KINDS)
def test_more_rounds_and_less_noise_cost_more_and_nothing_costs_nothing(kind):
    def spent(noise_multiplier=2.0, **changes):
        return KINDS[kind](noise_multiplier, 1.0, 0.01, 64, **{**GIVEN, "population": 100, **changes})

    assert spent() < spent(rounds=3) < spent(rounds=3, noise_multiplier=1.0)
    assert spent() < spent(population=20) < spent(population=10)
    assert spent(rounds=0) == 0 and spent(0.0) == math.inf


def test_shares_of_too_little_discrete_gaussian_noise_promise_nothing():
    assert privacy.epsilon_of_discrete_gaussian(0.1, 1.0, 1.0, 1, **GIVEN) == math.inf


def test_amplification_by_drawing_without_replacement_in_a_sum_by_hand():
    # Order 2: 1 + f^2 min(4 (e^d - 1), 2 e^d). Order 3: 1 + 3 f^2 min(...) + 2 f^3 e^(2 d3).
    def plain(orders):
        return 0.1 * orders

    have, f = distributed.amplified(plain, 0.2), 0.2
    second = 4 * (math.exp(0.2) - 1)
    assert have[0] == pytest.approx(math.log(1 + f**2 * second))
    assert have[1] == pytest.approx(math.log(1 + 3 * f**2 * second + 2 * f**3 * math.exp(2 * 0.3)) / 2)
    assert (have <= plain(np.arange(2, 257)) + 1e-12).all()


@pytest.mark.slow
def test_amplification_is_that_of_gaussian_noise_where_noise_is_nearly_that():
    given = {"clients_per_round": 10, "population": 1000, "rounds": 100, "delta": 1e-6}
    gaussian = privacy.epsilon_of_fixed_cohorts(4.0, **given)  # which knows more of Gaussian noise
    assert gaussian <= privacy.epsilon_of_skellam(4.0, 1.0, 1e-3, 64, **given) <= 1.2 * gaussian
