"""How updates become one: reductions, and stages to chain before and behind them."""

from fedjax_tx.aggregation.adaptive_clip import adaptive_clip
from fedjax_tx.aggregation.apply import aggregate
from fedjax_tx.aggregation.center import centered_clip, geometric_median
from fedjax_tx.aggregation.chain import chain, check_complete, check_max_clients, stage
from fedjax_tx.aggregation.clip import clip_layers, clip_norm, zero_norm
from fedjax_tx.aggregation.compression import drive, top_k
from fedjax_tx.aggregation.coordinates import median, trimmed_mean
from fedjax_tx.aggregation.correlated import correlated_noise
from fedjax_tx.aggregation.integer_noise import discrete_gaussian_mean, rounded_norm, skellam_mean
from fedjax_tx.aggregation.integers import integer_mean
from fedjax_tx.aggregation.krum import bulyan, krum, multi_krum
from fedjax_tx.aggregation.linear import fixed_mean, mean, nothing, population_mean, total
from fedjax_tx.aggregation.local_noise import local_noise
from fedjax_tx.aggregation.mixing import nearest_neighbor_mixing
from fedjax_tx.aggregation.noise import gaussian_noise
from fedjax_tx.aggregation.parts import parts
from fedjax_tx.aggregation.quantization import quantize
from fedjax_tx.aggregation.rotation import rotate

__all__ = [
    "adaptive_clip",
    "aggregate",
    "bulyan",
    "centered_clip",
    "chain",
    "check_complete",
    "check_max_clients",
    "clip_layers",
    "clip_norm",
    "correlated_noise",
    "discrete_gaussian_mean",
    "drive",
    "fixed_mean",
    "gaussian_noise",
    "geometric_median",
    "integer_mean",
    "krum",
    "local_noise",
    "mean",
    "median",
    "multi_krum",
    "nearest_neighbor_mixing",
    "nothing",
    "parts",
    "population_mean",
    "quantize",
    "rotate",
    "rounded_norm",
    "skellam_mean",
    "stage",
    "top_k",
    "total",
    "trimmed_mean",
    "zero_norm",
]
