"""Cohorts of clients that come and go: drawn from those that are there in a round, as a distribution or a trace says."""

import zlib

import numpy as np
from numpy.typing import ArrayLike

from fedjax_tx import check
from fedjax_tx.data.cohort import check_entries
from fedjax_tx.types import CohortSource


def available_cohorts(clients_per_round: int, availability: ArrayLike) -> CohortSource:
    """Draws clients uniformly from those that are available in the round; all of them where they are too few, or nobody.

    Args:
      clients_per_round: >= 1.
      availability: the chance that a client is available, 0 to 1 (or False and True): [client], the same in every round; or
        [round, client], whose rows are taken in turn and then again from the first: a trace of who was there, or chances that
        rise and fall over a day. Clients are available independently of each other, given their chances.

    Cohorts are no uniform sample of the clients: who is often there is often drawn.

    Errors: ``TypeError``, ``ValueError`` for chances that are none, and, when a run starts, for another number of clients.

    Example:
      >>> night_and_day = [[True, True, False], [False, False, True]]
      >>> source = available_cohorts(2, night_and_day)
      >>> state, cohorts = source.init(3), []
      >>> for number in range(2):
      ...     ids, state = source.select(state, np.random.default_rng(number), None)
      ...     cohorts.append(sorted(ids.tolist()))
      >>> cohorts
      [[0, 1], [2]]
    """
    check.integer("clients_per_round", clients_per_round, low=1)
    chances = np.asarray(availability)
    if chances.dtype.kind not in "biuf":
        check.fail_type("availability", "an array of numbers or booleans", availability)
    if chances.ndim not in (1, 2) or not len(chances):
        check.fail_value("availability", "to be of shape [client] or [round, client], with a round", chances.shape)
    for bad in chances[~((chances >= 0) & (chances <= 1))][:1].tolist():
        check.fail_value("availability", "to be 0 to 1", bad)
    rows = np.atleast_2d(chances.astype(np.float64))

    def init(num_clients):
        check_entries("availability", rows.shape[1], num_clients)
        return np.int64(0)

    def select(state, generator, last_client_metrics):
        there = np.flatnonzero(generator.random(rows.shape[1]) < rows[int(state) % len(rows)])
        return generator.choice(there, min(clients_per_round, there.size), replace=False), state + 1

    told = f"{len(rows)} rounds, checksum {zlib.crc32(rows.tobytes()):08x}"
    description = f"available_cohorts(clients_per_round={clients_per_round}, {told})"
    return CohortSource(init, select, lambda num_clients: min(clients_per_round, num_clients), description)
