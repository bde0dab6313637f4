"""SCAFFOLD: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning".

arXiv 1910.06378, Algorithm 1 with option II. The server keeps a control variate c beside its parameters x, each of the N clients
its own c_i; all start at 0. A client of the cohort S starts at y_i = x, makes K steps on its own batches with gradients g_i,

    y_i <- y_i - eta_l (g_i(y_i) - c_i + c),

takes c_i^+ = c_i - c + (x - y_i) / (K eta_l), the mean of the gradients it saw, and sends y_i - x and c_i^+ - c_i. The server
moves

    x <- x + eta_g mean_{i in S} (y_i - x),        c <- c + 1/N sum_{i in S} (c_i^+ - c_i).

Where this deviates: the mean of the model's part is weighted by numbers of examples, as in FedAvg, and it is handed to an optax
optimiser as x - y_i (``optax.sgd(eta_g)`` is the line above). The control variates are not weighted, so that c stays the mean of
the c_i; so with unequal clients, the method rests at the optimum of the plain mean of the clients' losses. Control variates are
kept in float32. A client that makes no step changes nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fedjax_tx import check, tree
from fedjax_tx.aggregation import check_complete, mean, parts, population_mean
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


class ScaffoldBroadcast(NamedTuple):
    """What SCAFFOLD's server sends: its parameters and its control variate c."""

    params: PyTree
    frozen: PyTree
    control: PyTree


class _Training(NamedTuple):
    params: PyTree
    own_control: PyTree
    metrics: Metrics


def scaffold(
    task: Task,
    client_learning_rate: float | Array,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """SCAFFOLD, option II: clients make plain gradient steps, corrected by how the client's gradients differ from all clients'.

    Args:
      task: what is learned.
      client_learning_rate: eta_l > 0, also in the clients' control variates, so that clients take no other optimiser.
      server_optimizer: takes the mean of server - client for a gradient; by default ``optax.sgd(1.0)``.
      aggregator: of the model's part, as of ``fed_avg``; the control variates' changes are summed over N as they are.

    A client's state is its control variate, float32 of the parameters' shapes. Round info: ``update_norm`` and ``control_norm``.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> algorithm = scaffold(ftx.tasks.next_token(model), client_learning_rate=0.1)
      >>> algorithm.passes[0].aggregator.name
      'parts(delta=mean(), control=population_mean())'
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.number("client_learning_rate", client_learning_rate, above=0)
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    init_model, step_model = init_server(task, server_optimizer), optax_server(server_optimizer)

    def init(key, init_params=None):
        state = init_model(key, init_params)
        return state._replace(extra=tree.zero_sums(state.params))

    def broadcast(state: ServerState) -> ScaffoldBroadcast:
        return ScaffoldBroadcast(state.params, state.frozen, state.extra)

    def combine(state, aggregate, key):
        state, info = step_model(state, aggregate, key)
        control = jax.tree.map(jnp.add, state.extra, aggregate["control"])
        return state._replace(extra=control), {**info, "control_norm": tree.norm(control)}

    both = parts(delta=aggregator, control=population_mean())
    training = Pass(_controlled_sgd(task, client_learning_rate), both, broadcast, combine)
    return FederatedAlgorithm(init, (training,), model_evaluation(task))


def _controlled_sgd(task: Task, learning_rate: float | Array) -> ClientTrainer:
    """A client of SCAFFOLD; its state is c_i, its update ``{"delta": x - y_i, "control": c_i^+ - c_i}``."""

    def init_state(broadcast, key):
        return tree.zero_sums(broadcast.params)

    def start(broadcast, info, state):
        return _Training(broadcast.params, state, no_metrics({"loss": None}))

    def step(broadcast, info, local, batch, mask, key):
        (value, weight), gradient = batch_gradient(task, local.params, broadcast.frozen, batch, mask, key)

        def moved(param, slope, own, control):
            return (param - learning_rate * (slope - own + control)).astype(param.dtype)

        params = jax.tree.map(moved, local.params, gradient, local.own_control, broadcast.control)
        return _Training(params, local.own_control, add_metrics(local.metrics, {"loss": (value, weight)}))

    def finish(broadcast, info, local):
        delta = tree.subtract(broadcast.params, local.params)
        steps = jnp.maximum(info.num_steps, 1)

        def change(control, moved):  # c_i^+ - c_i = -c + (x - y_i) / (K eta_l)
            return jnp.where(info.num_steps > 0, moved.astype(control.dtype) / (steps * learning_rate) - control, 0)

        changes = jax.tree.map(change, broadcast.control, delta)
        own_control = jax.tree.map(jnp.add, local.own_control, changes)
        return ClientResult({"delta": delta, "control": changes}, client_weight(info), own_control, local.metrics)

    return ClientTrainer(init_state, start, step, finish)
