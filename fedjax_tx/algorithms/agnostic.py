"""Agnostic federated learning: Mohri et al., "Agnostic Federated Learning" (AFL).

arXiv 1902.00146, section 4: one model for the worst mixture of the clients' distributions,

    min_w max_{lambda in simplex} sum_k lambda_k F_k(w).

The server keeps lambda, at first 1 / N for each of N clients. In a round, at the same (w, lambda),

    w <- w - gamma_w sum_k lambda_k grad F_k(w),        lambda <- P(lambda + gamma_lambda (F_1(w), ..., F_N(w))),

with P the nearest point of the simplex. A round is two passes: the losses F_k(w) on all of a client's data, and the training.

Where we deviate: clients make local steps, so w - w_k stands for the gradient; in the paper all clients take part and make one.
Where only a cohort S of m clients takes part, its deltas are averaged by lambda_k / sum_{j in S} lambda_j and lambda moves by
N / m F_k for k in S, which is right in the mean (DRFA, arXiv 2102.12660; it also draws S by lambda: here the cohort source does,
without). A client counts by lambda alone, whatever its size; at gamma_lambda = 0 all count alike.

Evaluation scores the global model on all, trained before or not: what this is for stands under ``client_worst_decile``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_tx import check
from fedjax_tx.aggregation import nothing, total
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.q_fed_avg import keep_loss
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd, whole_data
from fedjax_tx.types import ClientTrainer, FederatedAlgorithm, Pass, PyTree, Task


class AgnosticBroadcast(NamedTuple):
    """What the server has for its clients: the parameters, and lambda, of which each is sent its own number."""

    params: PyTree
    frozen: PyTree
    mixture: Float[Array, " client"]


def agnostic(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    num_clients: int,
    mixture_learning_rate: float | Array,
    server_optimizer: optax.GradientTransformation | None = None,
) -> FederatedAlgorithm:
    """AFL: a model for the worst mixture of the clients, whose weights the server learns beside it.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      num_clients: N >= 1, of the training data; another number is refused when a run begins.
      mixture_learning_rate: gamma_lambda >= 0. server_optimizer: as of ``fed_avg``.

    A client's state is its loss at the start of its last round. Metrics: ``start_loss``, the F_k, and ``loss`` on the way. The
    server says ``largest_weight``, of lambda, and ``update_norm``; ``state.device.server.extra`` is lambda.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(agnostic(task, optax.sgd(0.1), num_clients=10, mixture_learning_rate=0.01).passes)
      2
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    num_clients = check.integer("num_clients", num_clients, low=1)
    check.number("mixture_learning_rate", mixture_learning_rate, low=0)
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    init_model, step_model = init_server(task, server_optimizer), optax_server(server_optimizer)

    def init(key, init_params=None):
        return init_model(key, init_params)._replace(extra=jnp.full(num_clients, 1 / num_clients))

    def combine(state, aggregate, key):
        mass, clients = aggregate["mass"], aggregate["clients"]
        share = jnp.where(mass > 0, mass, 1)
        state, info = step_model(state, {"delta": jax.tree.map(lambda leaf: leaf / share, aggregate["delta"])}, key)
        ascent = num_clients / jnp.maximum(clients, 1) * aggregate["losses"]
        mixture = project_to_simplex(state.extra + mixture_learning_rate * ascent)
        return state._replace(extra=mixture), {**info, "largest_weight": mixture.max()}

    losses = Pass(keep_loss(task), nothing(), broadcast_model, lambda state, aggregate, key: (state, {}), whole_data)
    training = Pass(_weighted_sgd(task, client_optimizer), total(), _broadcast, combine, travels=_travels)
    return FederatedAlgorithm(init, (losses, training), model_evaluation(task), num_clients=num_clients)


def _broadcast(state) -> AgnosticBroadcast:
    return AgnosticBroadcast(state.params, state.frozen, state.extra)


def _travels(broadcast, message):
    """The model is there since the first pass; its lambda_k comes, and the model and the loss go back."""
    return broadcast.mixture[0], (message["delta"], message["losses"][0])


def _weighted_sgd(task: Task, optimizer: optax.GradientTransformation) -> ClientTrainer:
    """Local training; the update holds lambda_k (w - w_k), lambda_k, F_k at the client's place, and 1."""
    plain = local_sgd(task, optimizer)

    def finish(broadcast, info, local):
        result = plain.finish(broadcast, info, local)
        weight = broadcast.mixture[info.id]
        update = {
            "delta": jax.tree.map(lambda leaf: weight * leaf.astype(jnp.float32), result.update["delta"]),
            "mass": weight,
            "losses": jnp.zeros_like(broadcast.mixture).at[info.id].set(result.state),
            "clients": jnp.float32(1),
        }
        return result._replace(update=update)

    return plain._replace(finish=finish)


def project_to_simplex(vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns the nearest point with entries >= 0 that sum to 1: max(v - t, 0) for the one t at which they do.

    Example:
      >>> project_to_simplex(jnp.array([1.0, 0.5, -1.0])).tolist()
      [0.75, 0.25, 0.0]
    """
    falling = -jnp.sort(-vector)
    thresholds = (jnp.cumsum(falling) - 1) / jnp.arange(1, vector.size + 1)
    last = (falling > thresholds).sum() - 1  # so many entries stay above 0
    return jnp.maximum(vector - thresholds[last], 0)
