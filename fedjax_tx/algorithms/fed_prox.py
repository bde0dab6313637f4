"""Clients held near the server: Li et al., "Federated Optimization in Heterogeneous Networks".

arXiv 1812.06127, Algorithm 2. From the server's parameters w_t a client minimises, as far as its steps take it,

    h_k(w; w_t) = F_k(w) + mu / 2 ||w - w_t||^2,

so each gradient gets mu (w - w_t) added; mu = 0 is federated averaging. Clients that make fewer steps than others (the paper's
inexact solutions) are ``LocalWork(batch_size, steps=array)``.

Where we deviate: the paper draws clients in proportion to their data and averages them alike, which is the aggregator
``mean(weighted=False)`` with ``weighted_cohorts(..., exact=True)``; by default clients count by their data.

The paper's experiments with a mu that adapts itself (section 5.3.2): with f the global training loss,

    mu <- mu + 0.1 where f(w_t) > f(w_{t-1}),        mu <- mu - 0.1 where f has fallen for 5 rounds in a row,

which starts at a bad value (1 for alike clients, 0 for others) and gets along. ``adaptive_fed_prox`` takes for f the loss over
the data of the round's cohort at the parameters that it receives, in a pass before the training: the paper's loss where all
clients take part, a sample of it elsewhere. mu never falls below 0; the count of rounds starts anew after a fall of mu.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd, start_loss, whole_data
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Pass, PyTree, ServerState, Task


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

    trainer = local_sgd(task, client_optimizer, change_gradient=partial(add_price, mu))
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer))
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))


def add_price(mu: float | Array, gradient: PyTree, params: PyTree, broadcast: PyTree) -> PyTree:
    """Returns the gradient of h_k: that of F_k and mu (w - w_t); with mu bound, the ``change_gradient`` of ``local_sgd``."""

    def add(slope, own, received):
        return (slope + mu * (own - received)).astype(slope.dtype)

    return jax.tree.map(add, gradient, params, broadcast.params)


class _Price(NamedTuple):
    """What the server remembers: mu, f of the last round, and for how many rounds in a row it has fallen."""

    mu: Float[Array, ""]
    last_loss: Float[Array, ""]
    falls: Int[Array, ""]


class PricedBroadcast(NamedTuple):
    """What the server of ``adaptive_fed_prox`` sends: its parameters and mu."""

    params: PyTree
    frozen: PyTree
    mu: Float[Array, ""]


def adaptive_fed_prox(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    mu: float | Array = 0.0,
    *,
    change: float | Array = 0.1,
    patience: int = 5,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedProx with a price that goes up when the training loss rises and down when it keeps falling.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      mu: >= 0, where the price begins. change: >= 0, by how much it moves. patience: falls in a row before it goes down.
      server_optimizer, aggregator: as of ``fed_avg``.

    Round info: ``mu`` of the round, and ``update_norm``. Client metric ``start_loss``: the losses that f is the mean of.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(adaptive_fed_prox(task, optax.sgd(0.1)).passes)
      2
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("mu", mu, low=0)
    check.number("change", change, low=0)
    check.integer("patience", patience, low=1)
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    init_model = init_server(task, server_optimizer)

    def init(key, init_params=None):
        # The first loss is less than the greatest number, but no fall: counting begins one lower.
        first = _Price(jnp.float32(mu), jnp.float32(jnp.finfo(jnp.float32).max), jnp.int32(-1))
        return init_model(key, init_params)._replace(extra=first)

    def adapt(state: ServerState, aggregate, key):
        price, loss = state.extra, aggregate["loss"]
        falls = jnp.where(loss < price.last_loss, price.falls + 1, 0)
        lower = falls >= patience
        step = change * (loss > price.last_loss) - change * lower
        price = _Price(jnp.maximum(price.mu + step, 0), loss, jnp.where(lower, 0, falls))
        return state._replace(extra=price), {"mu": price.mu}

    def broadcast(state: ServerState) -> PricedBroadcast:
        return PricedBroadcast(state.params, state.frozen, state.extra.mu)

    def priced(gradient, params, received):
        return add_price(received.mu, gradient, params, received)

    first = Pass(start_loss(task), mean(), broadcast_model, adapt, whole_data)
    trainer = local_sgd(task, client_optimizer, change_gradient=priced)
    training = Pass(trainer, aggregator, broadcast, optax_server(server_optimizer))
    return FederatedAlgorithm(init, (first, training), model_evaluation(task))
