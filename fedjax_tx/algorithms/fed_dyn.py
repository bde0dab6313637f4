"""FedDyn: Acar et al., "Federated Learning Based on Dynamic Regularization".

arXiv 2111.04263, Algorithm 1. Of m clients each keeps the gradient of its loss at its own last model, g_k; all start at 0. A
client of the cohort P_t minimises from the server's parameters theta^{t-1}, and then renews its gradient,

    theta_k = argmin_theta L_k(theta) - <g_k, theta> + alpha / 2 ||theta - theta^{t-1}||^2,
    g_k <- g_k - alpha (theta_k - theta^{t-1});

the server keeps h, the mean of all g_k, there or not, and moves

    h <- h - alpha / m sum_{k in P_t} (theta_k - theta^{t-1}),        theta^t = 1 / |P_t| sum_{k in P_t} theta_k - h / alpha.

It rests where every theta_k is theta^t and h = 0: at the optimum of the plain mean of the clients' losses. Clients count alike,
as in the paper, whatever their size.

Where this deviates: the argmin is a client's local steps by any optimiser; the renewal above is exact at the minimum only, but
the resting point is the same. The g_k and h are kept in float32. A client that makes no step changes nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fedjax_tx import check, tree
from fedjax_tx.aggregation import mean, parts, population_mean
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd
from fedjax_tx.types import ClientTrainer, FederatedAlgorithm, Pass, PyTree, Task


def fed_dyn(task: Task, client_optimizer: optax.GradientTransformation, alpha: float | Array) -> FederatedAlgorithm:
    """FedDyn: clients are held near the server, and pushed along the gradient of their own last model.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      alpha: > 0, how strongly a client is held. Plain gradient steps diverge once their rate times alpha is above 2; the
        smaller alpha, the farther h / alpha moves the server.

    A client's state is its gradient, float32 of the parameters' shapes. Client metric ``loss`` is L_k alone. Round info:
    ``update_norm``, and ``gradient_norm`` of h.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(fed_dyn(task, optax.sgd(0.1), alpha=0.1).passes)
      1
    """
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("alpha", alpha, above=0)
    server_optimizer = optax.sgd(1.0)
    init_model, step_server = init_server(task, server_optimizer), optax_server(server_optimizer)

    def init(key, init_params=None):
        state = init_model(key, init_params)
        return state._replace(extra=tree.zero_sums(state.params))

    def combine(state, aggregate, key):
        gradient = jax.tree.map(jnp.add, state.extra, aggregate["gradient"])
        delta = jax.tree.map(lambda moved, mean: moved + mean / alpha, aggregate["delta"], gradient)
        state, info = step_server(state, {"delta": delta}, key)
        return state._replace(extra=gradient), {**info, "gradient_norm": tree.norm(gradient)}

    # The gradient's change is alpha times the other part: it need not be sent.
    training = Pass(
        _regularised_sgd(task, client_optimizer, alpha),
        parts(delta=mean(weighted=False), gradient=population_mean()),
        broadcast_model,
        combine,
        travels=lambda broadcast, message: (broadcast, message.parts["delta"]),
    )
    return FederatedAlgorithm(init, (training,), model_evaluation(task))


class _Received(NamedTuple):
    """The broadcast, and beside it what the client remembers."""

    params: PyTree
    frozen: PyTree
    own_gradient: PyTree


def _regularised_sgd(task: Task, optimizer: optax.GradientTransformation, alpha: float | Array) -> ClientTrainer:
    """A client of FedDyn; its state is g_k, its update holds as ``gradient`` by how much that changed."""

    def regularise(gradient, params, received):
        def change(slope, own_gradient, own, start):
            return (slope - own_gradient + alpha * (own - start)).astype(slope.dtype)

        return jax.tree.map(change, gradient, received.own_gradient, params, received.params)

    plain = local_sgd(task, optimizer, change_gradient=regularise)

    def step(broadcast, info, local, batch, mask, key):
        received = _Received(broadcast.params, broadcast.frozen, local.state)
        return plain.step(received, info, local, batch, mask, key)

    def finish(broadcast, info, local):
        result = plain.finish(broadcast, info, local)
        change = jax.tree.map(lambda leaf: alpha * leaf.astype(jnp.float32), result.update["delta"])
        own_gradient = jax.tree.map(jnp.add, local.state, change)
        return result._replace(update={**result.update, "gradient": change}, state=own_gradient)

    return ClientTrainer(lambda broadcast, key: tree.zero_sums(broadcast.params), plain.start, step, finish)
