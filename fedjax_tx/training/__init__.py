"""Whole runs: the host loop, early stopping, checkpoints, records, costs, progress."""

from fedjax_tx.training.run import RunResult, run
from fedjax_tx.training.stop import EarlyStop

__all__ = ["EarlyStop", "RunResult", "run"]
