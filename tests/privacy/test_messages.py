"""The price of a client's own noise, in closed form."""

import math

import pytest
from scipy import optimize, stats

from fedjax_tx import privacy


@pytest.mark.parametrize(("noise", "rounds"), [(4.0, 1), (8.0, 4)])
def test_rounds_of_messages_are_one_gaussian_mechanism_whose_clients_are_two_bounds_apart(noise, rounds):
    """delta = Phi(d / 2 - eps / d) - e^eps Phi(-d / 2 - eps / d) (arXiv 1805.06530), d = 2 sqrt(rounds) / noise."""
    apart = 2 * math.sqrt(rounds) / noise

    def excess(eps):
        near, far = apart / 2 - eps / apart, -apart / 2 - eps / apart
        return stats.norm.cdf(near) - math.exp(eps) * stats.norm.cdf(far) - 1e-5

    exact = optimize.brentq(excess, 0.01, 20)
    assert privacy.epsilon_of_messages(noise, rounds, 1e-5) == pytest.approx(exact, rel=1e-3)


def test_without_noise_everything_is_spent_and_without_rounds_nothing():
    assert privacy.epsilon_of_messages(0.0, 1, 1e-5) == math.inf
    assert privacy.epsilon_of_messages(0.0, 0, 1e-5) == 0
