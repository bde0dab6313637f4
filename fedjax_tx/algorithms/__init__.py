"""Federated methods, one file a paper."""

from fedjax_tx.algorithms.fed_avg import fed_avg
from fedjax_tx.algorithms.server import optax_server

__all__ = ["fed_avg", "optax_server"]
