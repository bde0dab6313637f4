"""A run that accounts for the privacy of its clients: how many rounds it can afford, and what it has spent."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_tx import check
from fedjax_tx.privacy import Budget, affordable_rounds, spending
from fedjax_tx.simulation import Experiment, RoundState
from fedjax_tx.simulation.round import resolve


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


NOTE = "epsilon covers the parameters; train/, server/ and aggregation/ numbers and scores on clients' data have no noise"


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
        return Plan(rounds, told, note=NOTE)
    afforded = affordable_rounds(spent, budget.epsilon, rounds)
    if afforded == 0:
        check.fail_value("privacy.epsilon", f"to pay for a round, which costs {spent(1):.4g}", budget.epsilon)
    if afforded == rounds:
        return Plan(rounds, told, note=NOTE)
    total = math.floor(1e4 * spent(afforded)) / 1e4
    return Plan(afforded, told, f"privacy spent: epsilon {total:g} of {budget.epsilon:g} at delta {budget.delta:g}", NOTE)
