"""Buffered asynchronous training: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff).

arXiv 2106.06639, Algorithm 1. Clients train all the time, each from the model that was current when it began. The server collects
what they send in a buffer; with every K-th update it makes a step. A client that began at w_{t - tau} sends

    delta_k = w_{t - tau} - (w_{t - tau} after local steps),

and the step is that of a server optimiser along the mean of the buffer, stale updates counting for less:

    w_{t+1} = w_t - eta_g * sum_k n_k s(tau_k) delta_k / sum_k n_k,        s(tau) = 1 / sqrt(1 + tau).

The weights s are not in the denominator, as in the paper: a buffer of stale updates moves the server less. Where we deviate:
clients are weighted by their numbers of examples, as in FedAvg (the paper writes a plain mean, 1 / K); data of equal sizes is the
paper's case.

Who arrives when is a matter of the cohort source: ``ftx.data.async_cohorts`` runs a virtual clock, and each of its cohorts is
one full buffer, with tau as ``version``. The server keeps its last ``max_staleness`` + 1 parameters in a ring, newest first, and
sends the ring; a client takes its own row when it starts, so that lanes do not hold copies of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_tx import check, tree
from fedjax_tx.aggregation import check_complete, mean
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import init_server, optax_server
from fedjax_tx.clients import ModelBroadcast, local_sgd
from fedjax_tx.types import Aggregator, ClientTrainer, FederatedAlgorithm, Pass, PyTree, Task


def fed_buff(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    max_staleness: int,
    server_optimizer: optax.GradientTransformation | None = None,
    staleness_weight: Callable[[jax.Array], jax.Array] = lambda staleness: (1 + staleness) ** -0.5,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Asynchronous training with a buffer of updates; use it with ``ftx.data.async_cohorts``.

    With synchronous cohorts every version is 0 and this is federated averaging.

    Args:
      task: what is learned. client_optimizer: starts anew at each client.
      max_staleness: the oldest start that the server can serve, in server steps, >= 0: it keeps as many parameters, and one more.
        A cohort source whose ``max_staleness`` is greater is refused before anything compiles.
      server_optimizer: takes the buffer's mean for a gradient; by default ``optax.sgd(1.0)``.
      staleness_weight: s(tau), a JAX function of a float scalar. aggregator: as of ``fed_avg``; it sees what s has scaled.

    Client metrics: ``loss``; ``staleness``; and each number that the cohort source tells of a client (its covariates), all
    clients counting alike: with ``async_cohorts`` the time of the server's step reaches the history as ``train/virtual_time``.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> algorithm = fed_buff(ftx.tasks.next_token(model), optax.sgd(0.1), max_staleness=4)
      >>> algorithm.max_version
      4
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    max_staleness = check.integer("max_staleness", max_staleness, low=0)
    check.function("staleness_weight", staleness_weight)
    trainer = train_from_ring(local_sgd(task, client_optimizer), staleness_weight)
    return asynchronous(task, trainer, server_optimizer, max_staleness, aggregator)


def asynchronous(
    task: Task,
    trainer: ClientTrainer,
    server_optimizer: optax.GradientTransformation,
    max_staleness: int,
    aggregator: Aggregator | None,
) -> FederatedAlgorithm:
    """The method whose server keeps a ring of ``max_staleness`` + 1 models and steps along the mean of each buffer's updates."""
    aggregator = check_complete("aggregator", mean() if aggregator is None else aggregator)
    init_model, step_server = init_server(task, server_optimizer), optax_server(server_optimizer)

    def init(key, init_params=None):
        state = init_model(key, init_params)
        ring = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (max_staleness + 1, *leaf.shape)), state.params)
        return state._replace(extra=ring)

    def combine(state, aggregate, key):
        stepped, info = step_server(state, aggregate, key)
        # The clock counts a buffer of clients without examples as a step too: the ring moves, the parameters stay.
        params, optimizer = tree.where(
            aggregate["released"], (stepped.params, stepped.optimizer), (state.params, state.optimizer)
        )
        ring = jax.tree.map(lambda new, old: jnp.concatenate([new[None], old[:-1]]), params, state.extra)
        return state._replace(params=params, optimizer=optimizer, extra=ring), info

    training = Pass(trainer, _every_buffer(aggregator), broadcast_ring, combine, travels=_one_model)
    return FederatedAlgorithm(init, (training,), model_evaluation(task), max_version=max_staleness)


def _every_buffer(aggregator: Aggregator) -> Aggregator:
    """The aggregator in whose every round the server does something; ``released`` says whether it has an aggregate."""

    def decode(reduced, totals, state, key):
        aggregate, new, info = aggregator.decode(reduced, totals, state, key)
        released = (totals.weight > 0) | aggregator.releases_empty
        return {**aggregate, "released": released}, tree.where(released, new, state), info

    return aggregator._replace(decode=decode, releases_empty=True)


class RingBroadcast(NamedTuple):
    """The server's last parameters, [version, ...], row 0 the current ones; and what is frozen."""

    ring: PyTree
    frozen: PyTree


def broadcast_ring(state) -> RingBroadcast:
    """Returns what clients receive: the ring that the server keeps."""
    return RingBroadcast(state.extra, state.frozen)


def _one_model(broadcast, message):
    """The ring is how past models are at hand in a simulation; a client receives one of them and sends one."""
    return (tree.take(broadcast.ring, 0), broadcast.frozen), message


def train_from_ring(inner: ClientTrainer, staleness_weight: Callable, from_now: bool = False) -> ClientTrainer:
    """A client that trains from the parameters of its version; its update is scaled by the weight of its staleness.

    ``from_now``: whether the update is how far the server's current parameters are from the client's, in place of those it began
    with.
    """

    def received(broadcast, info):
        return ModelBroadcast(tree.take(broadcast.ring, info.version), broadcast.frozen)

    def start(broadcast, info, state):
        return inner.start(received(broadcast, info), info, state)

    def step(broadcast, info, local, batch, mask, key):
        return inner.step(received(broadcast, info), info, local, batch, mask, key)

    def finish(broadcast, info, local):
        began = received(broadcast, info)
        result = inner.finish(began, info, local)
        staleness, once = info.version.astype(jnp.float32), jnp.ones(())
        scale, delta = staleness_weight(staleness), result.update["delta"]
        if from_now:
            moved = tree.subtract(tree.take(broadcast.ring, 0), began.params)
            delta = jax.tree.map(jnp.add, delta, moved)
        delta = jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), delta)
        told = {name: (value.astype(jnp.float32), once) for name, value in info.covariates.items() if value.ndim == 0}
        metrics = {**told, **result.metrics, "staleness": (staleness, once)}
        return result._replace(update={"delta": delta}, metrics=metrics)

    return ClientTrainer(inner.init_state, start, step, finish)
