"""What noise promises of which each client adds its share, as integers (``ftx.aggregation.skellam_mean`` and its sibling).

A round has m clients, always: that many shares of noise. Neighbours differ by one client replaced by another, so that two sums
are at most 2 D apart in the L2 norm, D the bound on one client's integers (``ftx.aggregation.rounded_norm``), and, since these
are integers, 2 min(sqrt(d) D, D^2) in the L1 norm. The noise of the sum has the variance V = (z D)^2. Rényi divergences of
order a:

* Skellam (arXiv 2110.04995): with the L2 distance A and the L1 distance B,
  a A^2 / (2 V) + min(((2 a - 1) A^2 + 6 B) / (4 V^2), 3 B / (2 V));
* discrete Gaussian (arXiv 2102.06387, proposition 14): the sum of m of them is not one, but nearly; with
  t = 10 sum_{k < m} exp(-2 pi^2 (V / m) k / (k + 1)) the least of a / 2 A^2 / V + t d,  a / 2 (A^2 / V + 2 t B / sqrt(V) + t^2 d)
  and a / 2 (A / sqrt(V) + t sqrt(d))^2. It wants shares of a deviation of at least 1/2.

Cohorts drawn without replacement amplify any mechanism (arXiv 1808.00087, theorem 9); of orders that this makes larger, the plain
one counts. All is turned into epsilon by dp-accounting. Against the server the promise wants a secure sum, and that all m clients
do their part: of an honest share s of them only, the noise multiplier is sqrt(s) times what is said.
"""

import math
from collections.abc import Callable

import numpy as np

from fedjax_tx import check
from fedjax_tx.aggregation import rounded_norm
from fedjax_tx.privacy.accounting import library

_ORDERS = np.arange(2, 257)

Divergence = Callable[[np.ndarray], np.ndarray]


def epsilon_of_skellam(
    noise_multiplier: float,
    max_norm: float,
    resolution: float,
    size: int,
    clients_per_round: int,
    population: int,
    rounds: int,
    delta: float,
) -> float:
    """Returns epsilon after some rounds of ``ftx.aggregation.skellam_mean``; infinite without noise, 0 before the first round.

    Args:
      noise_multiplier, resolution: as of the aggregator. max_norm: the bound on an update before it.
      size: how many coordinates a message has; behind ``rotate`` a power of two. clients_per_round: the aggregator's
        ``num_clients``, of ``population``, each set of so many as likely. rounds: >= 0. delta: between 0 and 1.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``dp-accounting`` is not installed.

    Example:
      >>> round(epsilon_of_skellam(2.0, 1.0, 1e-3, 1024, clients_per_round=10, population=1000, rounds=100, delta=1e-6), 1)
      1.8
    """

    def divergences(apart: float, apart_l1: float, variance: float) -> Divergence:
        def of_orders(orders: np.ndarray) -> np.ndarray:
            more = ((2 * orders - 1) * apart**2 + 6 * apart_l1) / (4 * variance**2)
            return orders * apart**2 / (2 * variance) + np.minimum(more, 3 * apart_l1 / (2 * variance))

        return of_orders

    given = (noise_multiplier, max_norm, resolution, size, clients_per_round, population, rounds, delta)
    return _epsilon(divergences, *given)


def epsilon_of_discrete_gaussian(
    noise_multiplier: float,
    max_norm: float,
    resolution: float,
    size: int,
    clients_per_round: int,
    population: int,
    rounds: int,
    delta: float,
) -> float:
    """Returns epsilon after some rounds of ``ftx.aggregation.discrete_gaussian_mean``; infinite for shares of little noise.

    Args:
      noise_multiplier, max_norm, resolution, size, clients_per_round, population, rounds, delta: as of ``epsilon_of_skellam``.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``dp-accounting`` is not installed.

    Example:
      >>> given = {"clients_per_round": 10, "population": 1000, "rounds": 100, "delta": 1e-6}
      >>> round(epsilon_of_discrete_gaussian(2.0, 1.0, 1e-3, 1024, **given), 1)
      1.8
    """

    def divergences(apart: float, apart_l1: float, variance: float) -> Divergence:
        share = variance / clients_per_round
        if share < 0.25:
            return lambda orders: np.full(orders.shape, math.inf)
        counts = np.arange(1, clients_per_round)
        away = 10 * np.exp(-2 * math.pi**2 * share * counts / (counts + 1)).sum()
        near, near_l1 = apart / math.sqrt(variance), apart_l1 / math.sqrt(variance)

        def of_orders(orders: np.ndarray) -> np.ndarray:
            first = orders / 2 * near**2 + away * size
            second = orders / 2 * (near**2 + 2 * near_l1 * away + away**2 * size)
            third = orders / 2 * (near + math.sqrt(size) * away) ** 2
            return np.minimum(np.minimum(first, second), third)

        return of_orders

    given = (noise_multiplier, max_norm, resolution, size, clients_per_round, population, rounds, delta)
    return _epsilon(divergences, *given)


def _epsilon(divergences, noise_multiplier, max_norm, resolution, size, clients_per_round, population, rounds, delta) -> float:
    check.number("noise_multiplier", noise_multiplier, low=0)
    check.number("max_norm", max_norm, above=0)
    check.number("resolution", resolution, above=0)
    size = check.integer("size", size, low=1)
    clients_per_round = check.integer("clients_per_round", clients_per_round, low=1)
    population = check.integer("population", population, low=clients_per_round)
    rounds = check.integer("rounds", rounds, low=0)
    check.number("delta", delta, above=0, below=1)
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    norm = float(rounded_norm(max_norm / resolution, size))
    plain = divergences(2 * norm, 2 * min(math.sqrt(size) * norm, norm**2), (noise_multiplier * norm) ** 2)
    spent = rounds * amplified(plain, clients_per_round / population)
    return float(library().rdp.compute_epsilon(_ORDERS, spent, delta)[0])


def amplified(plain: Divergence, fraction: float) -> np.ndarray:
    """Returns divergences of orders 2 to 256 of a mechanism on a ``fraction`` of all clients, drawn without replacement.

    exp((a - 1) e) <= 1 + binomial(a, 2) f^2 min(4 (exp(e2) - 1), 2 exp(e2)) + sum_{j=3}^a 2 binomial(a, j) f^j exp((j - 1) ej),
    with f the fraction and ej the divergence of order j without sampling; and never more than that.

    Example:
      >>> def plain(orders):
      ...     return orders / 2
      >>> bool((amplified(plain, 0.1) <= plain(np.arange(2, 257))).all()), float(amplified(plain, 1.0)[0])
      (True, 1.0)
    """
    alone = plain(_ORDERS)
    if fraction == 1 or not np.isfinite(alone).all():
        return alone
    log_factorials = np.cumsum(np.log(np.maximum(np.arange(_ORDERS[-1] + 1), 1)))
    second = alone[0] + np.log(np.minimum(4 * -np.expm1(-alone[0]), 2))
    heights = np.append(second, np.log(2) + (_ORDERS[1:] - 1) * alone[1:])
    heights += _ORDERS * math.log(fraction) - log_factorials[_ORDERS]

    def of_order(order: int) -> float:
        terms = heights[: order - 1] + log_factorials[order] - log_factorials[order - _ORDERS[: order - 1]]
        return float(np.logaddexp.reduce(np.append(0.0, terms))) / (order - 1)

    return np.minimum(alone, [of_order(int(order)) for order in _ORDERS])
