"""What a run's noise promises: accounting of differential privacy; and what it keeps of that: audits."""

from fedjax_tx.privacy.accounting import calibrate_noise, epsilon, epsilon_of_fixed_cohorts
from fedjax_tx.privacy.auditing import Audit, audit_aggregator, epsilon_lower_bound
from fedjax_tx.privacy.budget import Budget, affordable_rounds, spending

__all__ = [
    "Audit",
    "Budget",
    "affordable_rounds",
    "audit_aggregator",
    "calibrate_noise",
    "epsilon",
    "epsilon_lower_bound",
    "epsilon_of_fixed_cohorts",
    "spending",
]
