"""Reptile: Nichol et al., "On First-Order Meta-Learning Algorithms".

arXiv 1803.02999, Algorithm 2 (batched). Looked for are parameters phi from which few local steps fit any one client. From phi
each of the n clients of a round makes local steps, giving W_i, and

    phi <- phi + epsilon 1/n sum_i (W_i - phi).

With epsilon = 1 this is federated averaging in which clients count alike. The paper lets epsilon fall linearly to 0, and its
clients use Adam with beta_1 = 0.

Where this deviates: a client's optimiser starts anew in each round. Evaluation scores phi itself; what a client makes of it is
``fine_tune`` from these parameters.
"""

from collections.abc import Callable

import optax
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation import mean
from fedjax_tx.algorithms.fed_avg import fed_avg
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Task


def reptile(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_learning_rate: float | Array | Callable[[Array], Array],
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Reptile: parameters that a client makes its own in few steps.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      server_learning_rate: epsilon > 0, or a schedule of optax over rounds, such as ``optax.linear_schedule(1.0, 0.0, 500)``.
      aggregator: as of ``fed_avg``; by default the mean in which clients count alike.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> algorithm = reptile(task, optax.sgd(0.1), optax.linear_schedule(1.0, 0.0, 500))
      >>> algorithm.passes[0].aggregator.name
      'mean(weighted=False)'
    """
    if not callable(server_learning_rate):
        check.number("server_learning_rate", server_learning_rate, above=0)
    aggregator = mean(weighted=False) if aggregator is None else aggregator
    return fed_avg(task, client_optimizer, optax.sgd(server_learning_rate), aggregator)
