"""Federated learning of Transformers in JAX: all local updates of a round in one compiled program.

>>> import fedjax_tx as ftx
>>> sorted(name for name in ("data", "models", "tasks", "algorithms", "aggregation") if hasattr(ftx, name))
['aggregation', 'algorithms', 'data', 'models', 'tasks']
"""

from fedjax_tx import aggregation, algorithms, attacks, clients, data, devices, models, privacy, processes, report, tasks
from fedjax_tx.simulation import Experiment, make_evaluation, make_round, summarise
from fedjax_tx.training import Best, EarlyStop, RunResult, SavedRun, SweepResult, audit, load_run, run, sweep
from fedjax_tx.types import (
    Aggregator,
    ClientInfo,
    ClientResult,
    ClientTrainer,
    Cohort,
    CohortSource,
    Execution,
    FederatedAlgorithm,
    Linear,
    Model,
    Pass,
    Rows,
    ServerState,
    Stacked,
    Task,
    Totals,
)

__all__ = [
    "Aggregator",
    "Best",
    "ClientInfo",
    "ClientResult",
    "ClientTrainer",
    "Cohort",
    "CohortSource",
    "EarlyStop",
    "Execution",
    "Experiment",
    "FederatedAlgorithm",
    "Linear",
    "Model",
    "Pass",
    "Rows",
    "RunResult",
    "SavedRun",
    "ServerState",
    "Stacked",
    "SweepResult",
    "Task",
    "Totals",
    "aggregation",
    "algorithms",
    "attacks",
    "audit",
    "clients",
    "data",
    "devices",
    "load_run",
    "make_evaluation",
    "make_round",
    "models",
    "privacy",
    "processes",
    "report",
    "run",
    "summarise",
    "sweep",
    "tasks",
]
