"""What a run's noise promises: accounting of differential privacy."""

from fedjax_tx.privacy.accounting import calibrate_noise, epsilon, epsilon_of_fixed_cohorts
from fedjax_tx.privacy.budget import Budget, affordable_rounds, spending

__all__ = ["Budget", "affordable_rounds", "calibrate_noise", "epsilon", "epsilon_of_fixed_cohorts", "spending"]
