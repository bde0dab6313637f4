"""FedAc: Yuan and Ma, "Federated Accelerated Stochastic Gradient Descent".

arXiv 2006.08950, Algorithm 1 with the first of its two choices of numbers (FedAc-I). A client carries two points, w and w_ag; all
clients start a round at the server's and make K steps

    w_md = w / beta + (1 - 1 / beta) w_ag,        g = grad F_k(w_md; batch),
    w_ag <- w_md - eta g,
    w <- (1 - 1 / alpha) w + w_md / alpha - gamma g;

then the server averages both. w moves by long steps, w_ag by short ones, and each helps the other on:

    gamma = max(sqrt(eta / (mu K)), eta),        alpha = 1 / (gamma mu),        beta = alpha + 1

for losses of strong convexity mu; elsewhere mu is a number to tune. mu = 1 / eta is federated averaging; the smaller mu, the
longer the steps of w. The model is w_ag.

Where this deviates: means are weighted by numbers of examples, as in FedAvg; clients may make other than K steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fedjax_tx import check, tree
from fedjax_tx.aggregation import check_complete, mean, parts
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import init_server, optax_server
from fedjax_tx.clients import add_metrics, batch_gradient, client_weight, no_metrics
from fedjax_tx.types import (
    Aggregator,
    ClientResult,
    ClientTrainer,
    FederatedAlgorithm,
    Metrics,
    Pass,
    PyTree,
    ServerState,
    Task,
)


class FedAcBroadcast(NamedTuple):
    """What FedAc's server sends: w_ag, its model, and w, the point that runs ahead."""

    params: PyTree
    frozen: PyTree
    ahead: PyTree


class _Training(NamedTuple):
    params: PyTree
    ahead: PyTree
    metrics: Metrics
    state: PyTree


def fed_ac(
    task: Task,
    client_learning_rate: float | Array,
    strong_convexity: float | Array,
    local_steps: int,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedAc: Nesterov's acceleration within the clients' local steps.

    Args:
      task: what is learned. client_learning_rate: eta > 0.
      strong_convexity: mu, 0 < mu <= 1 / eta. local_steps: K >= 1, of a typical client in a round.
      aggregator: of each of the two points on its own, as of ``fed_avg``.

    Round info: ``update_norm`` of the model.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> algorithm = fed_ac(task, 0.1, strong_convexity=0.5, local_steps=8)
      >>> algorithm.passes[0].aggregator.name
      'parts(delta=mean(), ahead=mean())'
    """
    check.instance("task", task, Task, "a Task")
    eta = check.number("client_learning_rate", client_learning_rate, above=0)
    known = not isinstance(eta, jax.core.Tracer)
    check.number("strong_convexity", strong_convexity, above=0, high=1 / float(eta) if known else None)
    check.integer("local_steps", local_steps, low=1)
    aggregator = check_complete("aggregator", mean() if aggregator is None else aggregator)
    server_optimizer = optax.sgd(1.0)
    init_model, step_model = init_server(task, server_optimizer), optax_server(server_optimizer)

    def init(key, init_params=None):
        state = init_model(key, init_params)
        return state._replace(extra=state.params)

    def broadcast(state: ServerState) -> FedAcBroadcast:
        return FedAcBroadcast(state.params, state.frozen, state.extra)

    def combine(state, aggregate, key):
        ahead = tree.subtract(state.extra, tree.cast(aggregate["ahead"], state.extra))
        state, info = step_model(state, aggregate, key)
        return state._replace(extra=ahead), info

    trainer = _accelerated_sgd(task, eta, strong_convexity, local_steps)
    training = Pass(trainer, parts(delta=aggregator, ahead=aggregator), broadcast, combine)
    return FederatedAlgorithm(init, (training,), model_evaluation(task))


def _accelerated_sgd(task: Task, eta: float | Array, strong_convexity: float | Array, local_steps: int) -> ClientTrainer:
    """A client of FedAc; its update says by how much it left the server's two points, ``delta`` and ``ahead``."""
    gamma = jnp.maximum(jnp.sqrt(eta / (strong_convexity * local_steps)), eta)
    alpha = 1 / (gamma * strong_convexity)
    beta = alpha + 1

    def start(broadcast, info, state):
        return _Training(broadcast.params, broadcast.ahead, no_metrics({"loss": None}), state)

    def step(broadcast, info, local, batch, mask, key):
        def between(ahead, own):
            return (ahead / beta + (1 - 1 / beta) * own).astype(own.dtype)

        def run_ahead(ahead, middle, slope):
            return ((1 - 1 / alpha) * ahead + middle / alpha - gamma * slope).astype(ahead.dtype)

        middle = jax.tree.map(between, local.ahead, local.params)
        pair, gradient = batch_gradient(task, middle, broadcast.frozen, batch, mask, key)
        params = jax.tree.map(lambda own, slope: (own - eta * slope).astype(own.dtype), middle, gradient)
        ahead = jax.tree.map(run_ahead, local.ahead, middle, gradient)
        return _Training(params, ahead, add_metrics(local.metrics, {"loss": pair}), local.state)

    def finish(broadcast, info, local):
        moved = tree.subtract((broadcast.params, broadcast.ahead), (local.params, local.ahead))
        update = dict(zip(("delta", "ahead"), moved, strict=True))
        return ClientResult(update, client_weight(info), local.state, local.metrics)

    return ClientTrainer(lambda broadcast, key: (), start, step, finish)
