"""The privacy that a run spends, read off what it does: its aggregators' noise and how its cohorts are drawn.

Nothing is said twice: the noise multiplier is that of the chain that aggregates, the sampling that of the cohort source, the
limit of a cohort that of its capacity; where noise is correlated over rounds, a client takes part as often as its source allows.
What can't be accounted for is refused with the reason: an aggregate without noise, more than one aggregate a round, cohorts of
unknown sampling, clients who remember something (what they send then depends on when they came before, which accountants of
sampling do not look at) or collude (it depends on what others send). Stages and sources of one's own are taken at their word:
whether ``sensitivity``, ``noise_multiplier``, ``sampling`` and ``participation`` say what they do, an audit can test.

**Covered** are the parameters after each round, and what is computed from them and from nothing else of the clients: ``server/``
numbers. With ``Budget(private_metrics=True)`` also the means of the clients' metrics, ``train/private_loss`` and the like, which
then take a part of the noise and are all that is told of the metrics (``metrics.py``).

**Not covered** is everything that is told without noise: ``train/`` numbers otherwise, ``aggregation/`` numbers, how many
clients, examples and steps there were, who was left out, an evaluation on clients' data, and the choice among several runs.
Publish the parameters only, or account for the rest by yourself. What the noise itself promises, ``aggregation/noise.py`` says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedjax_tx import check
from fedjax_tx.privacy.accounting import ACCOUNTANTS, epsilon, epsilon_of_correlated_noise, epsilon_of_fixed_cohorts
from fedjax_tx.types import Aggregator, CohortSource, Factorization


@dataclass(frozen=True)
class Budget:
    """How a run's privacy is accounted for, and what it may spend: ``ftx.run(..., privacy=Budget(delta=1e-6, epsilon=8.0))``.

    Args:
      delta: between 0 and 1, well under one over the number of clients.
      epsilon: the run ends before the round that would exceed it; None: it is only accounted for.
      accountant: ``"pld"`` or ``"rdp"``; cohorts of a fixed size behind noise that is new in each round always by RDP.
      private_metrics: whether clients report their training metrics through noise only; the run then has ``train/private_loss``
        in place of ``train/loss``, and epsilon covers it. max_metric, metrics_noise: > 0, as of ``with_private_metrics``.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.

    Example:
      >>> Budget(delta=1e-6, epsilon=8.0).accountant
      'pld'
    """

    delta: float
    epsilon: float | None = None
    accountant: str = "pld"
    private_metrics: bool = False
    max_metric: float = 10.0
    metrics_noise: float = 5.0

    def __post_init__(self):
        check.number("delta", self.delta, above=0, below=1)
        if self.epsilon is not None:
            check.number("epsilon", self.epsilon, above=0)
        check.one_of("accountant", self.accountant, ACCOUNTANTS)
        check.boolean("private_metrics", self.private_metrics)
        check.number("max_metric", self.max_metric, above=0)
        check.number("metrics_noise", self.metrics_noise, above=0)


def spending(
    budget: Budget, aggregators: Sequence[Aggregator], cohorts: CohortSource, num_clients: int
) -> Callable[[int], float]:
    """Returns ``spent(rounds) -> epsilon`` at the budget's delta.

    Args:
      budget: delta and accountant. aggregators: of the passes of a round. cohorts: who takes part. num_clients: of the data.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: saying why this can't be accounted for.

    Example:
      >>> import fedjax_tx as ftx
      >>> private = ftx.aggregation.chain(
      ...     ftx.aggregation.clip_norm(1.0), ftx.aggregation.fixed_mean(10), ftx.aggregation.gaussian_noise(2.0))
      >>> spent = spending(Budget(delta=1e-6), [private], ftx.data.uniform_cohorts(10), num_clients=1000)
      >>> round(spent(100), 2)
      1.79
    """
    check.instance("budget", budget, Budget, "a Budget")
    check.instance("cohorts", cohorts, CohortSource, "a CohortSource")
    num_clients = check.integer("num_clients", num_clients, low=1)
    if len(aggregators) != 1:
        check.fail_value("aggregators", "to be one, of the single pass of a private round", [one.name for one in aggregators])
    noise = aggregators[0].noise_multiplier
    if noise is None:
        expected = (
            "to have noise on its result, such as chain(clip_norm(1.0), fixed_mean(100), gaussian_noise(1.0)), and no clients "
            "who collude: what they send depends on the updates of the honest, so one client moves more than noise is scaled "
            "to (noise of the clients' own is accounted for by epsilon_of_messages, epsilon_of_skellam and their like)"
        )
        check.fail_value("aggregators[0] of a private run", expected, aggregators[0].name)
    noise = float(noise)
    if aggregators[0].factorization is not None:
        return _spending_correlated(budget, noise, aggregators[0].factorization, cohorts)
    rate, size = (None, None) if cohorts.sampling is None else cohorts.sampling
    if size is not None:
        return lambda rounds: epsilon_of_fixed_cohorts(noise, size, num_clients, rounds, budget.delta)
    if rate is None:
        expected = "to be drawn as poisson_cohorts, uniform_cohorts or all_clients draw them"
        check.fail_value("the cohorts of a private run", expected, cohorts.description)
    room = cohorts.max_clients(num_clients)
    limits = {"population": num_clients, "max_clients": room} if room < num_clients else {}
    return lambda rounds: epsilon(noise, rate, rounds, budget.delta, budget.accountant, **limits)


def _spending_correlated(
    budget: Budget, noise: float, factorization: Factorization, cohorts: CohortSource
) -> Callable[[int], float]:
    """Noise that is correlated over rounds: what counts is how often a client comes at most, as the source itself sees to."""
    if cohorts.participation is None:
        expected = "to bound how often a client takes part, as separated_cohorts does"
        check.fail_value(f"the cohorts of a private run by {factorization.name}", expected, cohorts.description)
    more = {"participation": cohorts.participation}
    return lambda rounds: epsilon_of_correlated_noise(noise, factorization, rounds, budget.delta, budget.accountant, **more)


def affordable_rounds(spent: Callable[[int], float], target: float, rounds: int) -> int:
    """Returns the most rounds up to ``rounds`` after which no more than ``target`` is spent, 0 if even the first costs more.

    Example:
      >>> affordable_rounds(lambda rounds: 0.5 * rounds, target=3.2, rounds=100)
      6
    """
    check.function("spent", spent)
    check.number("target", target, above=0)
    rounds = check.integer("rounds", rounds, low=0)
    if spent(rounds) <= target:
        return rounds
    low, high = 0, rounds  # affordable, not affordable
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) <= target else (low, middle)
    return low
