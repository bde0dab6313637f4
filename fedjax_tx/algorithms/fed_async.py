"""Fully asynchronous training: Xie, Koyejo, Gupta, "Asynchronous Federated Optimization" (FedAsync, arXiv 1903.03934).

Algorithm 1. A client that receives w_tau minimises its loss plus mu / 2 ||w - w_tau||^2, as far as its local steps take it, and
sends what it got, w_new. The server mixes each such model into its own as it arrives, stale ones less:

    w_{t+1} = (1 - alpha_t) w_t + alpha_t w_new,        alpha_t = alpha s(t - tau).

The paper's s are constant, s(x) = 1; polynomial, s(x) = (1 + x)^-a; and hinge, s(x) = 1 where x <= b, else 1 / (a (x - b) + 1).
FedBuff adds what a client moved by from w_tau; here the server is drawn back towards w_tau as well.

Where we deviate: x counts the server's steps since the client began, so that it is 0 for a client that no other came before (the
paper's t - tau is 1 then). Of a cohort of more than one client, which the paper has not, the server takes the mean of where each
would have moved it, weighted by numbers of examples; with fresh models and alpha = 1 that is federated averaging. Our mu is the
paper's rho.

The paper's case is ``ftx.data.async_cohorts(..., buffer_size=1)``.
"""

from collections.abc import Callable
from functools import partial

import jax
import optax
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.algorithms.fed_buff import asynchronous, train_from_ring
from fedjax_tx.algorithms.fed_prox import add_price
from fedjax_tx.clients import local_sgd
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Task


def fed_async(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    max_staleness: int,
    server_learning_rate: float | Array = 0.6,
    staleness_weight: Callable[[jax.Array], jax.Array] = lambda staleness: (1 + staleness) ** -0.5,
    mu: float | Array = 0.0,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Mixes each client's model into the server's when it arrives; use it with ``ftx.data.async_cohorts`` of ``buffer_size=1``.

    Args:
      task: what is learned. client_optimizer: starts anew at each client.
      max_staleness: the oldest start that the server can serve, in server steps, >= 0: it keeps as many parameters, and one more.
        A cohort source whose ``max_staleness`` is greater is refused before anything compiles.
      server_learning_rate: alpha, 0 < alpha <= 1. staleness_weight: s, a JAX function of a float scalar.
      mu: >= 0, the price of the distance from where a client started. aggregator: as of ``fed_buff``.

    Client metrics: as of ``fed_buff``.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> hinge = lambda staleness: 1 / (1 + 10 * jax.numpy.maximum(staleness - 4, 0))
      >>> fed_async(task, optax.sgd(0.1), max_staleness=16, staleness_weight=hinge).max_version
      16
    """
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    max_staleness = check.integer("max_staleness", max_staleness, low=0)
    check.number("server_learning_rate", server_learning_rate, above=0, high=1)
    check.function("staleness_weight", staleness_weight)
    check.number("mu", mu, low=0)

    inner = local_sgd(task, client_optimizer, change_gradient=partial(add_price, mu))
    trainer = train_from_ring(inner, staleness_weight, from_now=True)
    return asynchronous(task, trainer, optax.sgd(server_learning_rate), max_staleness, aggregator)
