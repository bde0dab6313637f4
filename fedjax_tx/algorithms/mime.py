"""Mime and MimeLite: Karimireddy et al., "Breaking the Centralized Barrier for Cross-Device Federated Learning".

arXiv 2008.03606, Algorithm 1. A base optimiser is split into a step y <- U(y, g, s) that uses statistics s (momentum, second
moments) and their upkeep s <- V(g, s). Clients of the cohort S use the server's s without changing it. From y_i = x, with
c = mean_{i in S} grad f_i(x) over their whole data, a client steps on its batches zeta,

    Mime:      y_i <- U(y_i, grad f_i(y_i; zeta) - grad f_i(x; zeta) + c, s)
    MimeLite:  y_i <- U(y_i, grad f_i(y_i; zeta), s),

and the server takes x <- mean_{i in S} y_i and s <- V(c, s).

One round is two passes: c first, then the training. From an optax optimiser, U is ``update`` with the statistics of the server,
of which the new state is thrown away, and V is the state after ``update`` by c; the learning rate is the optimiser's. Where this
deviates: means are weighted by numbers of examples, as in FedAvg; and an optax optimiser that takes a gradient into its
statistics before it uses them does so within U, for that step only. For momentum that is the paper's U; for Adam the
second moments of a step then hold a share 1 - beta_2 of that step's own gradient, which the paper leaves out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_tx import check, tree
from fedjax_tx.aggregation import mean
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server
from fedjax_tx.clients import add_metrics, batch_gradient, client_weight, full_gradient, no_metrics, whole_data
from fedjax_tx.types import ClientResult, ClientTrainer, FederatedAlgorithm, Metrics, Pass, PyTree, Task


class MimeBroadcast(NamedTuple):
    """What the server sends for training: its parameters, the base optimiser's statistics, and the cohort's gradient c."""

    params: PyTree
    frozen: PyTree
    statistics: PyTree
    gradient: PyTree


class _Training(NamedTuple):
    params: PyTree
    metrics: Metrics
    state: PyTree


def mime(task: Task, base_optimizer: optax.GradientTransformation) -> FederatedAlgorithm:
    """Mime: clients step as the central optimiser would, its statistics held fixed and their gradients corrected towards c.

    Args:
      task: what is learned. base_optimizer: the central optimiser that is mimicked, learning rate included.

    Round info: ``gradient_norm`` (of c) and ``update_norm``; the metric ``start_loss`` is the loss at the server's parameters.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> algorithm = mime(ftx.tasks.next_token(model), base_optimizer=optax.sgd(0.1, momentum=0.9))
      >>> len(algorithm.passes)
      2
    """
    return _two_passes(task, base_optimizer, corrected=True)


def mime_lite(task: Task, base_optimizer: optax.GradientTransformation) -> FederatedAlgorithm:
    """MimeLite: Mime without the correction of gradients; with plain SGD it is federated averaging.

    Arguments and info are those of ``mime``.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> algorithm = mime_lite(ftx.tasks.next_token(model), base_optimizer=optax.adam(0.01))
      >>> algorithm.passes[0].work(ftx.data.LocalWork(batch_size=8, steps=2)).epochs
      1
    """
    return _two_passes(task, base_optimizer, corrected=False)


def _two_passes(task, base_optimizer, corrected: bool) -> FederatedAlgorithm:
    check.instance("task", task, Task, "a Task")
    check.instance("base_optimizer", base_optimizer, optax.GradientTransformation, "an optax optimiser")
    init_model = init_server(task, base_optimizer)

    def init(key, init_params=None):
        state = init_model(key, init_params)
        return state._replace(extra=jax.tree.map(jnp.zeros_like, state.params))

    def keep_gradient(state, aggregate, key):
        gradient = tree.cast(aggregate["gradient"], state.params)
        return state._replace(extra=gradient), {"gradient_norm": tree.norm(gradient)}

    def broadcast(state):
        return MimeBroadcast(state.params, state.frozen, state.optimizer, state.extra)

    def move(state, aggregate, key):
        delta = tree.cast(aggregate["delta"], state.params)
        _, statistics = base_optimizer.update(state.extra, state.optimizer, state.params)
        state = state._replace(params=tree.subtract(state.params, delta), optimizer=statistics)
        return state, {"update_norm": tree.norm(delta)}

    first = Pass(full_gradient(task), mean(), broadcast_model, keep_gradient, whole_data)
    training = Pass(_mimicking_sgd(task, base_optimizer, corrected), mean(), broadcast, move)
    return FederatedAlgorithm(init, (first, training), model_evaluation(task))


def _mimicking_sgd(task: Task, base_optimizer: optax.GradientTransformation, corrected: bool) -> ClientTrainer:
    """A client that steps with the server's statistics; ``corrected`` tells Mime from MimeLite."""

    def start(broadcast, info, state):
        return _Training(broadcast.params, no_metrics({"loss": None}), state)

    def step(broadcast, info, local, batch, mask, key):
        (value, weight), gradient = batch_gradient(task, local.params, broadcast.frozen, batch, mask, key)
        if corrected:  # the same key: the dropout of a batch is part of zeta
            _, before = batch_gradient(task, broadcast.params, broadcast.frozen, batch, mask, key)
            gradient = jax.tree.map(lambda g, b, c: g - b + c, gradient, before, broadcast.gradient)
        updates, _ = base_optimizer.update(gradient, broadcast.statistics, local.params)
        metrics = add_metrics(local.metrics, {"loss": (value, weight)})
        return _Training(optax.apply_updates(local.params, updates), metrics, local.state)

    def finish(broadcast, info, local):
        delta = tree.subtract(broadcast.params, local.params)
        return ClientResult({"delta": delta}, client_weight(info), local.state, local.metrics)

    return ClientTrainer(lambda broadcast, key: (), start, step, finish)
