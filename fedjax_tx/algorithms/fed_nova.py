"""FedNova: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization".

arXiv 2007.07481. Where clients make unequal numbers of steps, those who make many pull federated averaging towards their own
optimum. A client's local change is a weighted sum of the gradients g_ij that it saw, w_t - w_{t+1}^i = eta sum_j a_ij g_ij;
FedNova averages what is left when the length ||a_i||_1 of that sum is divided out, and steps by the mean length:

    d_i = sum_j a_ij g_ij / ||a_i||_1,
    w_{t+1} = w_t - tau_eff sum_i p_i eta d_i,        tau_eff = sum_i p_i ||a_i||_1,

with p_i = n_i / n over the cohort. For plain SGD ||a_i||_1 is the number of steps; for SGD with momentum rho the paper gives
a_i = (1 - rho^tau_i, ..., 1 - rho) / (1 - rho).

Where this deviates: eta ||a_i||_1 is not taken from a formula. The client runs its optimiser once more on one number whose
gradient is always 1, which moves by just that; so any optimiser whose steps are sums of gradients will do, learning rate
schedules included. (One that scales its steps, such as Adam, is normalised by what it would make of equal gradients.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean, parts
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd
from fedjax_tx.types import Aggregator, ClientTrainer, FederatedAlgorithm, Pass, PyTree, Task


def fed_nova(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedNova: averages what clients do per step, so that one who makes more steps does not count for more.

    If all clients make equally many steps, this is federated averaging.

    Args:
      task: what is learned.
      client_optimizer: starts anew at each client in each round; as a rule SGD, with or without momentum.
      server_optimizer: takes the normalised mean of server - client for a gradient; by default ``optax.sgd(1.0)``.
      aggregator: of the normalised changes, as of ``fed_avg``; their lengths are averaged by weight.

    Round info: ``update_norm``; ``mean_length``, eta tau_eff.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> algorithm = fed_nova(task, optax.sgd(0.1, momentum=0.9))
      >>> algorithm.passes[0].aggregator.name
      'parts(delta=mean(), length=mean())'
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    step_server = optax_server(server_optimizer)

    def combine(state, aggregate, key):
        length = aggregate["length"]
        delta = jax.tree.map(lambda leaf: length * leaf, aggregate["delta"])
        state, info = step_server(state, {"delta": delta}, key)
        return state, {**info, "mean_length": length}

    trainer = _normalised_sgd(task, client_optimizer)
    training = Pass(trainer, parts(delta=aggregator, length=mean()), broadcast_model, combine)
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))


class _Training(NamedTuple):
    """``probe``: a number that the client's optimiser moves by gradients of 1, from 0."""

    inner: PyTree
    probe: Float[Array, ""]
    probe_optimizer: PyTree


def _normalised_sgd(task: Task, optimizer: optax.GradientTransformation) -> ClientTrainer:
    """Local training whose update is ``{"delta": (server - client) / length, "length": eta ||a_i||_1}``, both in float32."""
    plain = local_sgd(task, optimizer)

    def start(broadcast, info, state):
        return _Training(plain.start(broadcast, info, state), jnp.zeros(()), optimizer.init(jnp.zeros(())))

    def step(broadcast, info, local, batch, mask, key):
        inner = plain.step(broadcast, info, local.inner, batch, mask, key)
        moved, probe_optimizer = optimizer.update(jnp.ones(()), local.probe_optimizer, local.probe)
        return _Training(inner, local.probe + moved, probe_optimizer)

    def finish(broadcast, info, local):
        result = plain.finish(broadcast, info, local.inner)
        length = -local.probe
        scale = 1 / jnp.where(length > 0, length, 1)
        delta = jax.tree.map(lambda leaf: scale * leaf.astype(jnp.float32), result.update["delta"])
        return result._replace(update={"delta": delta, "length": length})

    return ClientTrainer(plain.init_state, start, step, finish)
