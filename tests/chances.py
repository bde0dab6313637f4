"""Statistical tests that several tests share; each errs about once in a million times."""

import numpy as np
from scipy import stats


def has_scale(noise, stddev) -> bool:
    """A chi-square test of centred noise: its sum of squares is size times the variance, give or take sqrt(2 size)."""
    noise = np.asarray(noise, np.float64)
    return abs(np.square(noise / stddev).sum() - noise.size) < 4.9 * np.sqrt(2 * noise.size)


def is_gaussian(noise, stddev) -> bool:
    """Whether independent draws are of N(0, stddev^2) in all of their distribution: Kolmogorov and Smirnov's test."""
    return stats.kstest(np.asarray(noise, np.float64).ravel() / stddev, "norm").pvalue > 1e-6
