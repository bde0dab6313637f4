"""What a run's noise promises: accounting of differential privacy, noise correlated over rounds; and what it keeps: audits."""

from fedjax_tx.privacy.accounting import (
    calibrate_noise,
    calibrate_noise_of_fixed_cohorts,
    epsilon,
    epsilon_of_correlated_noise,
    epsilon_of_fixed_cohorts,
)
from fedjax_tx.privacy.auditing import Audit, audit_aggregator, epsilon_lower_bound
from fedjax_tx.privacy.budget import Budget, affordable_rounds, spending
from fedjax_tx.privacy.distributed import epsilon_of_discrete_gaussian, epsilon_of_skellam
from fedjax_tx.privacy.examples import epsilon_of_examples
from fedjax_tx.privacy.factorization import banded_factorization, blt_factorization, tree_factorization
from fedjax_tx.privacy.messages import epsilon_of_messages
from fedjax_tx.privacy.metrics import with_private_metrics

__all__ = [
    "Audit",
    "Budget",
    "affordable_rounds",
    "audit_aggregator",
    "banded_factorization",
    "blt_factorization",
    "calibrate_noise",
    "calibrate_noise_of_fixed_cohorts",
    "epsilon",
    "epsilon_lower_bound",
    "epsilon_of_correlated_noise",
    "epsilon_of_discrete_gaussian",
    "epsilon_of_examples",
    "epsilon_of_fixed_cohorts",
    "epsilon_of_messages",
    "epsilon_of_skellam",
    "spending",
    "tree_factorization",
    "with_private_metrics",
]
