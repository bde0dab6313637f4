"""Power-of-choice: Cho, Wang, Joshi, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice
Selection Strategies" (arXiv 2010.01243).

Of d candidates, drawn without replacement in proportion to their shares p_k of the data, the m with the largest losses train:
training is faster, and its result leans towards clients that are hard to fit, the more the larger d is; d = m is
``weighted_cohorts``.

This is the paper's rpow-d, which asks candidates for nothing: the loss of a client is the mean of its training losses on the way
when it last took part, and infinite before it first did, so that everybody is heard once. The paper's pow-d and cpow-d, whose
candidates evaluate the current model on all or some of their data, are not here. Where this deviates: candidates are drawn one
after another, each in proportion to the shares of those that are left; of equal losses those count that were drawn first.
"""

import zlib

import numpy as np
from numpy.typing import ArrayLike

from fedjax_tx import check
from fedjax_tx.data.cohort import check_entries, shares_of
from fedjax_tx.types import CohortSource


def power_of_choice_cohorts(clients_per_round: int, candidates: int, weights: ArrayLike) -> CohortSource:
    """Draws candidates in proportion to ``weights`` and takes those whose loss was largest when they last took part.

    The paper's updates count alike: ``ftx.aggregation.mean(weighted=False)``. As cohorts depend on the metric ``loss`` that
    clients report, a call of the compiled program holds one round, and ``ftx.sweep`` refuses them.

    Args:
      clients_per_round: m >= 1. candidates: d >= m. weights: [client], finite and >= 0, as a rule ``train.client_sizes``; at
        least ``candidates`` of them > 0.

    Errors: ``TypeError``, ``ValueError`` for arguments that aren't such; when a run starts, for another number of clients.

    Example:
      >>> source = power_of_choice_cohorts(1, candidates=2, weights=[5, 3])
      >>> last = np.array([0, 1]), {"loss": (np.array([0.5, 2.0]), np.ones(2))}
      >>> ids, state = source.select(source.init(2), np.random.default_rng(0), last)
      >>> ids.tolist(), state.tolist()
      ([1], [0.5, 2.0])
    """
    check.integer("clients_per_round", clients_per_round, low=1)
    check.integer("candidates", candidates, low=1)
    if candidates < clients_per_round:
        check.fail_value("clients_per_round", f"<= {candidates}, the number of candidates", clients_per_round)
    shares = shares_of(weights, "candidates", candidates)

    def init(num_clients):
        check_entries("weights", shares.size, num_clients)
        return np.full(num_clients, np.inf)

    def select(state, generator, last_client_metrics):
        losses = _updated(state, last_client_metrics)
        drawn = generator.choice(shares.size, candidates, replace=False, p=shares)
        return drawn[np.argsort(-losses[drawn], kind="stable")[:clients_per_round]], losses

    told = f"clients_per_round={clients_per_round}, candidates={candidates}, checksum {zlib.crc32(shares.tobytes()):08x}"
    most = clients_per_round
    return CohortSource(init, select, lambda num_clients: most, f"power_of_choice_cohorts({told})", reads_metrics=True)


def _updated(losses: np.ndarray, last_client_metrics) -> np.ndarray:
    """The losses, with those of the last round's clients that have one."""
    if last_client_metrics is None:
        return losses
    ids, metrics = last_client_metrics
    if "loss" not in metrics:
        check.fail_value("the clients' metrics", "to hold 'loss', by which power_of_choice_cohorts() chooses", sorted(metrics))
    value, weight = metrics["loss"]
    heard = (weight > 0) & np.isfinite(value)
    losses = losses.copy()  # the state that a caller holds stays as it is
    losses[ids[heard]] = value[heard]
    return losses
