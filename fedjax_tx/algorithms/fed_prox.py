"""Clients held near the server: Li et al., "Federated Optimization in Heterogeneous Networks".

arXiv 1812.06127, Algorithm 2. From the server's parameters w_t a client minimises, as far as its steps take it,

    h_k(w; w_t) = F_k(w) + mu / 2 ||w - w_t||^2,

so each gradient gets mu (w - w_t) added; mu = 0 is federated averaging. Clients that make fewer steps than others (the paper's
inexact solutions) are ``LocalWork(batch_size, steps=array)``.

Where we deviate: the paper draws clients in proportion to their data and averages them alike, which is ``weighted_cohorts`` and
the aggregator ``mean(weighted=False)``; by default clients count by their data. mu is not adapted to the loss.
"""

import jax
import optax
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Pass, Task


def fed_prox(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    mu: float | Array,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedProx: federated averaging whose clients pay for the distance from where they started.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      mu: >= 0, the price. Plain gradient steps diverge once their rate times mu is above 2.
      server_optimizer, aggregator: as of ``fed_avg``.

    The client metric ``loss`` is F_k, without the price.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(fed_prox(task, optax.sgd(0.1), mu=0.01).passes)
      1
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("mu", mu, low=0)
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)

    def add_price(gradient, params, broadcast):
        def add(slope, own, received):
            return (slope + mu * (own - received)).astype(slope.dtype)

        return jax.tree.map(add, gradient, params, broadcast.params)

    trainer = local_sgd(task, client_optimizer, change_gradient=add_price)
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer))
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))
