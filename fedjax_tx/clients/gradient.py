"""Gradient and loss of a client's whole data at the server's parameters: a first pass of methods that correct or weigh by it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_tx import check, tree
from fedjax_tx.clients.local import client_weight
from fedjax_tx.clients.objective import add_metrics, batch_gradient, batch_loss, no_metrics
from fedjax_tx.types import ClientResult, ClientTrainer, Metrics, PyTree, Task


class _Sums(NamedTuple):
    gradient: PyTree
    metrics: Metrics
    state: PyTree


def full_gradient(task: Task) -> ClientTrainer:
    """A client that takes the mean gradient over its data at the server's parameters; it makes no step.

    The update is ``{"gradient": mean over its examples}`` in float32 and the weight its number of examples, so that a weighted
    mean is the gradient over the cohort's data; over one epoch each example counts once. The client's state stays. Dropout is on,
    as in the training that the gradient stands for. Metric: ``start_loss``, the loss there.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> trainer = full_gradient(ftx.tasks.next_token(model))
      >>> trainer.init_state(None, None)
      ()
    """

    check.instance("task", task, Task, "a Task")

    def start(broadcast, info, state):
        return _Sums(tree.zero_sums(broadcast.params), no_metrics({"start_loss": None}), state)

    def step(broadcast, info, local, batch, mask, key):
        (value, weight), gradient = batch_gradient(task, broadcast.params, broadcast.frozen, batch, mask, key)
        summed = jax.tree.map(lambda total, leaf: total + weight * leaf.astype(total.dtype), local.gradient, gradient)
        return _Sums(summed, add_metrics(local.metrics, {"start_loss": (value, weight)}), local.state)

    def finish(broadcast, info, local):
        _, weight = local.metrics["start_loss"]
        mean = jax.tree.map(lambda total: total / jnp.where(weight > 0, weight, 1), local.gradient)
        return ClientResult({"gradient": mean}, client_weight(info), local.state, local.metrics)

    return ClientTrainer(lambda broadcast, key: (), start, step, finish)


class _Losses(NamedTuple):
    metrics: Metrics
    state: PyTree


def start_loss(task: Task) -> ClientTrainer:
    """A client that takes its mean loss at the server's parameters, without dropout; it makes no step.

    The update is ``{"loss": mean over its examples}`` and the weight its number of examples, so that a weighted mean is the loss
    over the cohort's data. The client's state stays. Metric: ``start_loss``, the same.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> trainer = start_loss(ftx.tasks.next_token(model))
      >>> trainer.init_state(None, None)
      ()
    """
    check.instance("task", task, Task, "a Task")

    def start(broadcast, info, state):
        return _Losses(no_metrics({"start_loss": None}), state)

    def step(broadcast, info, local, batch, mask, key):
        pair = batch_loss(task, broadcast.params, broadcast.frozen, batch, mask, None)
        return local._replace(metrics=add_metrics(local.metrics, {"start_loss": pair}))

    def finish(broadcast, info, local):
        loss, _ = local.metrics["start_loss"]
        return ClientResult({"loss": loss}, client_weight(info), local.state, local.metrics)

    return ClientTrainer(lambda broadcast, key: (), start, step, finish)
