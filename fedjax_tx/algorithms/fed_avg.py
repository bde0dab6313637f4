"""Federated averaging: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data".

arXiv 1602.05629, Algorithm 1. In round t each client k of the cohort S_t starts at w_t and trains on its own examples, giving
w_{t+1}^k; then

    w_{t+1} = sum_{k in S_t} n_k / n * w_{t+1}^k,        n = sum_{k in S_t} n_k.

Written with differences, as in arXiv 2003.00295, Algorithm 2: delta_k = w_t - w_{t+1}^k is averaged and handed to a server
optimiser as if it were a gradient; server SGD at rate 1 is the equation above. Any optax optimiser will do on either side.
"""

import optax

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean, nothing
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_evaluation, local_sgd
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Pass, Task


def fed_avg(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Federated averaging with any optax optimiser on both sides.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      server_optimizer: takes the mean of server - client for a gradient; by default ``optax.sgd(1.0)``, the original method.
      aggregator: how updates become one; by default the mean weighted by numbers of examples.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> algorithm = fed_avg(ftx.tasks.next_token(model), client_optimizer=optax.sgd(0.1))
      >>> len(algorithm.passes)
      1
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    combine = optax_server(server_optimizer)
    training = Pass(local_sgd(task, client_optimizer), aggregator, broadcast_model, combine)
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))


def model_evaluation(task: Task) -> Pass:
    """Returns the pass that scores the server's parameters on each client's own examples."""

    def combine(state, aggregate, key):
        return state, {}

    return Pass(local_evaluation(task), nothing(), broadcast_model, combine)
