"""Cohorts in which nobody comes too often: what noise that is correlated over rounds builds on (arXiv 2103.00039, 2306.08153)."""

import numpy as np

from fedjax_tx import check
from fedjax_tx.types import CohortSource, Participation


def separated_cohorts(clients_per_round: int, min_separation: int, max_participations: int | None = None) -> CohortSource:
    """Draws clients uniformly of those that have rested: none comes twice within ``min_separation`` rounds.

    Behind it stand ``ftx.aggregation.correlated_noise`` and its accounting, which reads the limits off this source. A client's
    times are counted by invitations, whether or not it then contributes. The promise is the usual one of such training, for
    neighbours by *zeroing out*: whether a client sent its updates or zeros, in the same cohorts. That others are drawn where a
    client is not there at all is not covered: keep cohorts secret.

    Args:
      clients_per_round: m >= 1. min_separation: b >= 1, rounds from one time of a client to its next; with b = N / m the same
        clients meet again and again, each once in b rounds.
      max_participations: times in all, >= 1; None: no limit. When too few clients have some left, cohorts become smaller, and
        in the end empty.

    Errors: ``ValueError`` when a run starts with fewer than m * b clients.

    Example:
      >>> source = separated_cohorts(2, min_separation=2)
      >>> first, state = source.select(source.init(4), np.random.default_rng(0), None)
      >>> second, state = source.select(state, np.random.default_rng(1), None)
      >>> sorted([*first.tolist(), *second.tolist()])
      [0, 1, 2, 3]
    """
    check.integer("clients_per_round", clients_per_round, low=1)
    check.integer("min_separation", min_separation, low=1)
    if max_participations is not None:
        check.integer("max_participations", max_participations, low=1)

    def init(num_clients):
        if clients_per_round * min_separation > num_clients:
            expected = f"<= {num_clients // min_separation}, so that of {num_clients} clients enough have rested"
            check.fail_value("clients_per_round", expected, clients_per_round)
        return {"round": np.int64(0), "rests_until": np.zeros(num_clients, np.int64), "times": np.zeros(num_clients, np.int64)}

    def select(state, generator, last_client_metrics):
        now, times = int(state["round"]), state["times"]
        ready = state["rests_until"] <= now
        if max_participations is not None:
            ready &= times < max_participations
        able = np.flatnonzero(ready)
        drawn = generator.choice(able, min(clients_per_round, able.size), replace=False)
        rests_until, times = state["rests_until"].copy(), times.copy()  # the state that a caller holds stays as it is
        rests_until[drawn] = now + min_separation
        times[drawn] += 1
        return drawn, {"round": np.int64(now + 1), "rests_until": rests_until, "times": times}

    told = f"clients_per_round={clients_per_round}, min_separation={min_separation}, max_participations={max_participations}"
    return CohortSource(
        init,
        select,
        lambda num_clients: clients_per_round,
        f"separated_cohorts({told})",
        participation=Participation(min_separation, max_participations),
    )
