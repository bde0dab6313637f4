"""Shared local loops: train with any optax optimiser, and evaluate."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_tx import check, tree
from fedjax_tx.clients.objective import add_metrics, batch_gradient, batch_metrics, no_metrics
from fedjax_tx.types import ClientResult, ClientTrainer, LocalWork, Metrics, PyTree, Task


class ModelBroadcast(NamedTuple):
    """What a server sends where clients need its parameters only."""

    params: PyTree
    frozen: PyTree


class _Training(NamedTuple):
    params: PyTree
    optimizer: PyTree
    metrics: Metrics
    state: PyTree


def local_sgd(
    task: Task,
    optimizer: optax.GradientTransformation,
    change_gradient: Callable[[PyTree, PyTree, ModelBroadcast], PyTree] | None = None,
    gradient: Callable = batch_gradient,
) -> ClientTrainer:
    """A client that makes optax steps on its own batches from the server's parameters.

    The update is ``{"delta": server - client}``, its weight the client's number of examples (0 for a client that made no step).
    Metric: ``loss``, the mean of the training losses seen on the way.

    Args:
      task: what is learned. optimizer: any optax optimiser; its state starts anew for each client and round.
      change_gradient: ``change_gradient(gradient, params, broadcast) -> gradient``, before the optimiser sees it.
      gradient: takes a batch's loss and gradient, as ``batch_gradient`` does.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> trainer = local_sgd(ftx.tasks.next_token(model), optax.sgd(0.1))
      >>> trainer.init_state(None, None)
      ()
    """

    check.instance("task", task, Task, "a Task")
    check.instance("optimizer", optimizer, optax.GradientTransformation, "an optax optimiser")
    if change_gradient is not None:
        check.function("change_gradient", change_gradient)
    check.function("gradient", gradient)

    def start(broadcast, info, state):
        params = broadcast.params
        return _Training(params, optimizer.init(params), no_metrics({"loss": None}), state)

    def step(broadcast, info, local, batch, mask, key):
        (value, weight), slope = gradient(task, local.params, broadcast.frozen, batch, mask, key)
        if change_gradient is not None:
            slope = change_gradient(slope, local.params, broadcast)
        updates, optimizer_state = optimizer.update(slope, local.optimizer, local.params)
        metrics = add_metrics(local.metrics, {"loss": (value, weight)})
        return _Training(optax.apply_updates(local.params, updates), optimizer_state, metrics, local.state)

    def finish(broadcast, info, local):
        delta = tree.subtract(broadcast.params, local.params)
        return ClientResult({"delta": delta}, client_weight(info), local.state, local.metrics)

    return ClientTrainer(lambda broadcast, key: (), start, step, finish)


def client_weight(info) -> Float[Array, ""]:
    """Returns the usual weight of a client: its number of examples, 0 if it made no step."""
    return jnp.where(info.num_steps > 0, info.num_examples, 0).astype(jnp.float32)


def whole_data(local: LocalWork) -> LocalWork:
    """Returns the work of a pass that looks at each of a client's examples once, in batches of the local work's size.

    Example:
      >>> whole_data(LocalWork(batch_size=8, steps=3)).epochs
      1
    """
    check.instance("local", local, LocalWork, "a LocalWork")
    return LocalWork(batch_size=local.batch_size, epochs=1, shuffle=False)


def local_evaluation(
    task: Task, personal_model: Callable[[ModelBroadcast, PyTree], ModelBroadcast] = lambda broadcast, state: broadcast
) -> ClientTrainer:
    """A client that scores a model on its own examples: the task's metrics and its loss; no update.

    Args:
      task: what is learned. personal_model: ``personal_model(broadcast, state) -> ModelBroadcast``, the parameters to score, from
        what was sent and the client's state; by default those of the server.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> trainer = local_evaluation(ftx.tasks.next_token(model))
      >>> trainer.init_state(None, None)
      ()
    """
    check.instance("task", task, Task, "a Task")
    check.function("personal_model", personal_model)

    def scores(broadcast, state, batch, mask):
        return batch_metrics(task, *personal_model(broadcast, state), batch, mask)

    def start(broadcast, info, state):
        batch = info.batch.zeros()
        mask = jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)
        return no_metrics(jax.eval_shape(scores, broadcast, state, batch, mask)), state

    def step(broadcast, info, local, batch, mask, key):
        metrics, state = local
        return add_metrics(metrics, scores(broadcast, state, batch, mask)), state

    def finish(broadcast, info, local):
        metrics, state = local
        return ClientResult({}, client_weight(info), state, metrics)

    return ClientTrainer(lambda broadcast, key: (), start, step, finish, task)
