"""How updates become one."""

from fedjax_tx.aggregation.apply import aggregate
from fedjax_tx.aggregation.linear import mean, nothing

__all__ = ["aggregate", "mean", "nothing"]
