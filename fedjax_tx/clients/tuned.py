"""Evaluation of a model that each client first fine-tunes on a part of the very examples that it is evaluated on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from fedjax_tx import check, tree
from fedjax_tx.clients.local import client_weight
from fedjax_tx.clients.objective import add_metrics, batch_gradient, batch_metrics, no_metrics
from fedjax_tx.types import ClientResult, ClientTrainer, LocalWork, Metrics, PyTree, Task


class _Tuning(NamedTuple):
    params: PyTree
    optimizer: PyTree
    step: Int[Array, ""]
    metrics: Metrics
    state: PyTree


def tuned_evaluation(task: Task, optimizer: optax.GradientTransformation, steps: int) -> ClientTrainer:
    """A client that fine-tunes the server's parameters on its first batches and is scored on the others; no update.

    A batch is never both trained on and scored. At most half of a client's batches are trained on, so one that has a single batch
    is scored with the server's parameters. The task's metrics and its loss are those of the tuned parameters, and with the prefix
    ``global_`` those of the server's, on the same examples.

    Args:
      task: what is learned. optimizer: of the fine-tuning, any of optax. steps: how many batches to train on, >= 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> trainer = tuned_evaluation(ftx.tasks.next_token(model), optax.sgd(0.1), steps=1)
      >>> trainer.init_state(None, None)
      ()
    """
    check.instance("task", task, Task, "a Task")
    check.instance("optimizer", optimizer, optax.GradientTransformation, "an optax optimiser")
    steps = check.integer("steps", steps, low=0)

    def both(broadcast, tuned, batch, mask):
        own = batch_metrics(task, tuned, broadcast.frozen, batch, mask)
        shared = batch_metrics(task, broadcast.params, broadcast.frozen, batch, mask)
        return {**own, **{f"global_{name}": pair for name, pair in shared.items()}}

    def start(broadcast, info, state):
        batch = info.batch.zeros()
        mask = jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)
        names = jax.eval_shape(both, broadcast, broadcast.params, batch, mask)
        return _Tuning(broadcast.params, optimizer.init(broadcast.params), jnp.int32(0), no_metrics(names), state)

    def step(broadcast, info, local, batch, mask, key):
        tuning = local.step < jnp.minimum(steps, info.num_steps // 2)
        _, gradient = batch_gradient(task, local.params, broadcast.frozen, batch, mask, key)
        updates, stepped = optimizer.update(gradient, local.optimizer, local.params)
        moved = optax.apply_updates(local.params, updates), stepped
        params, kept = tree.where(tuning, moved, (local.params, local.optimizer))
        metrics = add_metrics(local.metrics, both(broadcast, local.params, batch, mask & ~tuning))
        return _Tuning(params, kept, local.step + 1, metrics, local.state)

    def finish(broadcast, info, local):
        return ClientResult({}, client_weight(info), local.state, local.metrics)

    return ClientTrainer(lambda broadcast, key: (), start, step, finish, task)


def small_batches(local: LocalWork) -> LocalWork:
    """Returns the work of an evaluation in batches of a quarter, so that a middling client has some to fine-tune on.

    Example:
      >>> small_batches(LocalWork(batch_size=8)).batch_size
      2
    """
    check.instance("local", local, LocalWork, "a LocalWork")
    return LocalWork(batch_size=max(1, local.batch_size // 4), epochs=1, shuffle=False)
