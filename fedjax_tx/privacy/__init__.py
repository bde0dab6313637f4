"""What a run's noise promises: accounting of differential privacy."""

from fedjax_tx.privacy.accounting import calibrate_noise, epsilon, epsilon_of_fixed_cohorts

__all__ = ["calibrate_noise", "epsilon", "epsilon_of_fixed_cohorts"]
