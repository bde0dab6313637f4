"""A run that accounts for the privacy of its clients: how many rounds it can afford, and what it has spent."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from fedjax_tx import check
from fedjax_tx.privacy import Budget, affordable_rounds, spending, with_private_metrics
from fedjax_tx.simulation import Experiment, RoundState
from fedjax_tx.simulation.round import resolve
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Hyper, MakeAlgorithm


class Plan(NamedTuple):
    """What a run may do.

    rounds: as many as are wanted and can be afforded. told(rounds): epsilon and delta after so many, for the ledger; nothing
    where privacy is not accounted for. reason: why the run ends before what was wanted; None where it does not. note: what
    epsilon does not cover, for reports; None without one.
    """

    rounds: int
    told: Callable[[int], dict[str, float]]
    reason: str | None = None
    note: str | None = None


NOTE = (
    "epsilon covers the parameters and server/ numbers; {}aggregation/ numbers, counts of clients, examples and steps, "
    "scores on clients' data, and a stop that they decide, have no noise"
)


def note(budget: Budget) -> str:
    """Returns what epsilon covers, and what it does not."""
    if budget.private_metrics:
        return NOTE.format("train/ numbers, with noise of their own, are covered too; ")
    return NOTE.format("train/ and ")


@dataclass(frozen=True)
class _MakeWithPrivateMetrics:
    """An algorithm's maker, with its metrics private; equal to another of the same settings, so that they share a program."""

    make_algorithm: MakeAlgorithm
    expected_clients: float
    max_metric: float
    metrics_noise: float

    def __call__(self, hyper: Hyper) -> FederatedAlgorithm:
        algorithm = resolve(self.make_algorithm, hyper)
        options = {"max_metric": self.max_metric, "metrics_noise": self.metrics_noise}
        return with_private_metrics(algorithm, self.expected_clients, **options)


def keep_metrics_private(experiment: Experiment, budget: Budget | None) -> Experiment:
    """Returns the experiment that reports as the budget wants: the same, or with metrics that are told through noise only.

    How many clients a round is expected to have, the cohorts' source says; where it does not, the run is refused anyway.
    """
    cohorts, num_clients = experiment.cohorts, experiment.train.num_clients
    rate, size = (None, None) if cohorts.sampling is None else cohorts.sampling
    expected = size if rate is None else rate * num_clients
    if expected is None and cohorts.participation is not None:
        expected = cohorts.max_clients(num_clients)
    if budget is None or not budget.private_metrics or expected is None:
        return experiment
    maker = _MakeWithPrivateMetrics(experiment.make_algorithm, float(expected), budget.max_metric, budget.metrics_noise)
    return dataclasses.replace(experiment, make_algorithm=maker)


def described(experiment: Experiment, budget: Budget | None) -> dict[str, Any]:
    """Returns what decides what the rounds of a run cost, and of a budget what decides its records, by name.

    Rounds are paid for as they are found in a directory: with less noise they must not be taken for these.
    """
    algorithm = resolve(experiment.make_algorithm, experiment.hyper)
    told: dict[str, Any] = {"aggregators": [_describe(a_pass.aggregator) for a_pass in algorithm.passes]}
    if budget is not None and budget.private_metrics:
        told |= {"privacy.max_metric": budget.max_metric, "privacy.metrics_noise": budget.metrics_noise}
    return told


def _describe(aggregator: Aggregator) -> str:
    noise, correlated = aggregator.noise_multiplier, aggregator.factorization
    parts = [aggregator.name]
    parts += [] if noise is None else [f"noise multiplier {float(noise):g}"]
    parts += [] if correlated is None else [correlated.name]
    return ", ".join(parts)


def plan_rounds(experiment: Experiment, first: RoundState, rounds: int, budget: Budget | None) -> Plan:
    """Returns what can be done within the budget; ``first`` is the state before the first round.

    Raises:
      ValueError: if the experiment can't be accounted for, saying why, or not even one round can be afforded.
    """
    if budget is None:
        return Plan(rounds, lambda done: {})
    algorithm = resolve(experiment.make_algorithm, experiment.hyper)
    aggregators = [a_pass.aggregator for a_pass in algorithm.passes]
    spent = spending(budget, aggregators, experiment.cohorts, experiment.train.num_clients)
    if jax.tree.leaves((first.device.clients, first.device.encoders)):
        raise ValueError(
            "expected the clients of a private run to remember nothing from round to round, got a method with states"
        )

    spent(rounds)  # what can't be accounted for to the end is refused here

    def told(done: int) -> dict[str, float]:
        return {"epsilon": spent(done), "delta": budget.delta}

    if budget.epsilon is None:
        return Plan(rounds, told, note=note(budget))
    afforded = affordable_rounds(spent, budget.epsilon, rounds)
    if afforded == 0:
        check.fail_value("privacy.epsilon", f"to pay for a round, which costs {spent(1):.4g}", budget.epsilon)
    if afforded == rounds:
        return Plan(rounds, told, note=note(budget))
    total = math.floor(1e4 * spent(afforded)) / 1e4
    return Plan(afforded, told, f"privacy spent: epsilon {total:g} of {budget.epsilon:g} at delta {budget.delta:g}", note(budget))
