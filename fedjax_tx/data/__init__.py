"""Clients' data: federated data sets, cohorts, schedules, sources."""

from fedjax_tx.data.clock import async_cohorts
from fedjax_tx.data.cohort import all_clients, fixed_cohorts, poisson_cohorts, uniform_cohorts, weighted_cohorts
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.loading import load
from fedjax_tx.data.parts import gather_parts, take_part
from fedjax_tx.types import LocalWork

__all__ = [
    "FederatedDataset",
    "LocalWork",
    "all_clients",
    "async_cohorts",
    "fixed_cohorts",
    "gather_parts",
    "load",
    "poisson_cohorts",
    "take_part",
    "uniform_cohorts",
    "weighted_cohorts",
]
