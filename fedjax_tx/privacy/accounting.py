"""How private a run is: (epsilon, delta) of the Gaussian mechanism on sampled clients, by the library dp-accounting.

The mechanism of a round is DP-FedAvg's (arXiv 1710.06963): each client's update is clipped to the norm C, the sum over those who
came is given noise of standard deviation z C, z the *noise multiplier*. The promise is for a client as a whole: with or without
it (all of its examples), any set of outputs is at most e^epsilon times as likely, but for a chance of delta.

*Poisson* cohorts, each client with chance q on its own: ``epsilon``, in which neighbours differ by adding or removing a client.
Where a cohort has room for so many clients only (``max_clients`` of ``ftx.data.poisson_cohorts``), those who are turned away to
make room tell something of those who came (arXiv 2508.15089): then give ``population`` and ``max_clients``.
Cohorts of a *fixed size*, drawn without replacement: ``epsilon_of_fixed_cohorts``, in which neighbours differ by replacing a
client. One replaced can change a sum by 2 C, which is accounted for here: z stays relative to C.
``calibrate_noise`` and ``calibrate_noise_of_fixed_cohorts`` find z for an epsilon.
Noise that is *correlated* over rounds (DP-FTRL, arXiv 2103.00039): ``epsilon_of_correlated_noise``, in which neighbours differ by
a client that sends zeros instead, whatever the cohorts, so long as it takes part no more often than is said.

Accountants: ``"pld"``, privacy loss distributions (arXiv 2207.04380), nearly tight; ``"rdp"``, Rényi divergences (arXiv
1702.07476), a looser upper bound and quick. All rounds count, whoever came: an epsilon is of the process and not of what
happened in it. It covers what is released with noise, and nothing else: a client's training metrics, for instance, have none.
"""

import functools
import math
from collections.abc import Callable

from fedjax_tx import check
from fedjax_tx.types import Factorization, Participation

ACCOUNTANTS = ("pld", "rdp")
_LOSS_STEP = 1e-4
INSTALL = "pip install 'fedjax-tx[privacy]'"


def epsilon(
    noise_multiplier: float,
    sampling_rate: float,
    rounds: int,
    delta: float,
    accountant: str = "pld",
    *,
    population: int | None = None,
    max_clients: int | None = None,
) -> float:
    """Returns epsilon after some rounds on Poisson cohorts; infinite without noise, 0 before the first round.

    Args:
      noise_multiplier: z >= 0, standard deviation of the noise on the sum over the clipping norm.
      sampling_rate: q, 0 to 1, each client's chance of taking part in a round. rounds: >= 0.
      delta: between 0 and 1, well under one over the number of clients.
      accountant: ``"pld"`` or ``"rdp"``.
      population, max_clients: how many clients there are, and a cohort has room for, both or neither; by ``"pld"`` only.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``dp-accounting`` is not installed.

    Example:
      >>> round(epsilon(1.0, sampling_rate=0.01, rounds=100, delta=1e-6), 2)
      0.95
    """
    check.number("noise_multiplier", noise_multiplier, low=0)
    _check_run(sampling_rate, rounds, delta, accountant)
    _check_room(population, max_clients, accountant)
    if rounds == 0 or sampling_rate == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    return _spent(float(noise_multiplier), float(sampling_rate), population, max_clients, rounds, float(delta), accountant)


def epsilon_of_fixed_cohorts(
    noise_multiplier: float, clients_per_round: int, population: int, rounds: int, delta: float
) -> float:
    """Returns epsilon after some rounds on cohorts of a fixed size, by Rényi divergences (PLD knows no such sampling).

    Neighbours differ by one client replaced by another. The number is larger than ``epsilon``'s for the same noise, because
    its promise is another one: replacing is removing and adding.

    Args:
      noise_multiplier: z >= 0, standard deviation of the noise on the sum over the clipping norm.
      clients_per_round: of ``population``, each set of so many as likely. rounds: >= 0. delta: as of ``epsilon``.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``dp-accounting`` is not installed.

    Example:
      >>> round(epsilon_of_fixed_cohorts(2.0, clients_per_round=10, population=1000, rounds=100, delta=1e-6), 2)
      1.79
    """
    check.number("noise_multiplier", noise_multiplier, low=0)
    _check_fixed(clients_per_round, population, rounds, delta)
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    accounting = library()
    event = accounting.SampledWithoutReplacementDpEvent(
        population, clients_per_round, accounting.GaussianDpEvent(noise_multiplier / 2)
    )
    spent = accounting.rdp.RdpAccountant(neighboring_relation=accounting.NeighboringRelation.REPLACE_ONE)
    return float(spent.compose(accounting.SelfComposedDpEvent(event, rounds)).get_epsilon(delta))


def epsilon_of_correlated_noise(
    noise_multiplier: float,
    factorization: Factorization,
    rounds: int,
    delta: float,
    accountant: str = "pld",
    *,
    participation: Participation | None = None,
) -> float:
    """Returns epsilon after some rounds of ``ftx.aggregation.correlated_noise``: all of them are one Gaussian mechanism.

    After all rounds that the factorisation is made for it is that of the noise multiplier, so that
    ``calibrate_noise(target, sampling_rate=1.0, rounds=1, delta)`` finds the noise for a target; before, one client has changed
    less.

    Args:
      noise_multiplier: z >= 0. factorization: such as ``blt_factorization(rounds)``. rounds: >= 0, at most those of it.
      delta, accountant: as of ``epsilon``.
      participation: how often a client takes part at most; by default what the factorisation is made for.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``dp-accounting`` is not installed.

    Example:
      >>> from fedjax_tx.privacy import tree_factorization
      >>> tree = tree_factorization(rounds=1600, max_participations=1)
      >>> round(epsilon_of_correlated_noise(1.0, tree, rounds=1600, delta=1e-6, accountant="rdp"), 2)
      5.22
    """
    check.number("noise_multiplier", noise_multiplier, low=0)
    check.instance("factorization", factorization, Factorization, "a Factorization, such as blt_factorization(rounds=100)")
    _check_run(1.0, rounds, delta, accountant)
    check.instance("participation", participation, (Participation, type(None)), "a Participation")
    planned = factorization.participation
    spent = factorization.sensitivity(rounds, planned if participation is None else participation)
    if spent == 0:
        return 0.0
    whole = factorization.sensitivity(factorization.rounds, planned)
    return epsilon(noise_multiplier * whole / spent, 1.0, 1, delta, accountant)


def calibrate_noise(
    target_epsilon: float,
    sampling_rate: float,
    rounds: int,
    delta: float,
    accountant: str = "pld",
    *,
    population: int | None = None,
    max_clients: int | None = None,
) -> float:
    """Returns the least noise multiplier, to 0.001 above, by which ``epsilon`` of the same arguments is at most the target.

    Args:
      target_epsilon: > 0. Others: as of ``epsilon``; rounds and sampling_rate > 0.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range; if no noise up to 10,000 would do, which
        with ``max_clients`` means that a cohort is turned away too often.
      ModuleNotFoundError: if ``dp-accounting`` is not installed.

    Example:
      >>> calibrate_noise(2.0, sampling_rate=0.01, rounds=100, delta=1e-6, accountant="rdp")
      0.895
    """
    check.number("target_epsilon", target_epsilon, above=0)
    _check_run(sampling_rate, rounds, delta, accountant)
    _check_room(population, max_clients, accountant)
    check.number("sampling_rate", sampling_rate, above=0)
    check.integer("rounds", rounds, low=1)

    def spent(noise: float) -> float:
        return _spent(noise, float(sampling_rate), population, max_clients, rounds, float(delta), accountant)

    return _least_noise(spent, target_epsilon, f"delta={delta}{'' if max_clients is None else f' and max_clients={max_clients}'}")


def calibrate_noise_of_fixed_cohorts(
    target_epsilon: float, clients_per_round: int, population: int, rounds: int, delta: float
) -> float:
    """Returns the least noise multiplier, to 0.001 above, by which ``epsilon_of_fixed_cohorts`` is at most the target.

    Seconds, where a cohort is not the whole population.

    Args:
      target_epsilon: > 0. Others: as of ``epsilon_of_fixed_cohorts``; rounds > 0.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range; if no noise up to 10,000 would do.
      ModuleNotFoundError: if ``dp-accounting`` is not installed.

    Example:
      >>> calibrate_noise_of_fixed_cohorts(8.0, clients_per_round=10, population=10, rounds=5, delta=1e-2)
      2.014
    """
    check.number("target_epsilon", target_epsilon, above=0)
    _check_fixed(clients_per_round, population, rounds, delta)
    check.integer("rounds", rounds, low=1)

    def spent(noise: float) -> float:
        return epsilon_of_fixed_cohorts(noise, clients_per_round, population, rounds, delta)

    return _least_noise(spent, target_epsilon, f"delta={delta}")


def _least_noise(spent: Callable[[float], float], target_epsilon: float, given: str) -> float:
    """The least multiplier, in thousandths, by which no more than the target is spent; ``given`` says what it depends on."""

    def enough(thousandths: int) -> bool:
        return spent(thousandths / 1000) <= target_epsilon

    high = 500
    while not enough(high):
        high *= 2
        if high > 10_000_000:
            check.fail_value("target_epsilon", f"to be reached by some noise at {given}", target_epsilon)
    low = high // 2 if high > 500 else 0  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high / 1000


def _check_fixed(clients_per_round: int, population: int, rounds: int, delta: float) -> None:
    clients_per_round = check.integer("clients_per_round", clients_per_round, low=1)
    population = check.integer("population", population, low=clients_per_round)
    _check_run(clients_per_round / population, rounds, delta, "rdp")


def _check_run(sampling_rate: float, rounds: int, delta: float, accountant: str) -> None:
    check.number("sampling_rate", sampling_rate, low=0, high=1)
    check.integer("rounds", rounds, low=0)
    check.number("delta", delta, above=0, below=1)
    check.one_of("accountant", accountant, ACCOUNTANTS)


def _check_room(population: int | None, max_clients: int | None, accountant: str) -> None:
    if population is None and max_clients is None:
        return
    if population is None or max_clients is None:
        raise ValueError(f"expected population and max_clients together, got {population} and {max_clients}")
    check.integer("max_clients", max_clients, low=1, high=check.integer("population", population, low=1))
    if accountant != "pld":
        check.fail_value("accountant", "to be 'pld' where cohorts have limited room", accountant)


def library():
    """Returns dp-accounting, or says how to install it."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.pld.privacy_loss_distribution
        import dp_accounting.rdp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"expected dp-accounting, which does the accounting: {INSTALL}") from error
    return dp_accounting


@functools.lru_cache(maxsize=4096)  # a run asks again and again, and an answer may take seconds
def _spent(
    noise_multiplier: float,
    sampling_rate: float,
    population: int | None,
    max_clients: int | None,
    rounds: int,
    delta: float,
    accountant: str,
) -> float:
    accounting = library()
    if accountant == "pld":
        one = _loss_of_one_round(noise_multiplier, sampling_rate, population, max_clients)
        return float(one.self_compose(rounds).get_epsilon_for_delta(delta))
    event = accounting.PoissonSampledDpEvent(sampling_rate, accounting.GaussianDpEvent(noise_multiplier))
    return float(accounting.rdp.RdpAccountant().compose(accounting.SelfComposedDpEvent(event, rounds)).get_epsilon(delta))


@functools.lru_cache(maxsize=4)  # they take megabytes each; a run asks for other numbers of rounds of the same one
def _loss_of_one_round(noise_multiplier: float, sampling_rate: float, population: int | None, max_clients: int | None):
    """The distribution of one round's privacy loss, as the library's accountant makes it."""
    make = library().pld.privacy_loss_distribution
    if max_clients is not None and population is not None and max_clients < population:
        return make.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=population,
            sampling_probability=sampling_rate,
            truncated_batch_size=max_clients,
            noise_multiplier=noise_multiplier,
            value_discretization_interval=_LOSS_STEP,
        )
    return make.from_gaussian_mechanism(
        standard_deviation=noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=_LOSS_STEP
    )
