"""Whole runs: the host loop, early stopping, checkpoints, records, costs, progress, sweeps."""

from fedjax_tx.training.audit import audit
from fedjax_tx.training.load import SavedRun, load_run
from fedjax_tx.training.run import Best, RunResult, run
from fedjax_tx.training.stop import EarlyStop
from fedjax_tx.training.sweep import SweepResult, sweep

__all__ = ["Best", "EarlyStop", "RunResult", "SavedRun", "SweepResult", "audit", "load_run", "run", "sweep"]
