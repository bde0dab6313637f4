"""Personal models: Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization".

arXiv 2012.04221, Algorithm 1. A global model w is trained by federated averaging, untouched by what follows. Beside it each
client k keeps a model of its own, v_k, which it trains on its data while holding it near the w that it received, batch by batch:

    v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w)).

lambda = 0 is local training alone; as lambda grows, v_k follows w. The steps diverge once eta * lambda > 2.

v_k starts as the server's parameters at the start of training, and changes only in rounds in which its client takes part. Both
models see the same batches and the same dropout keys. Where we deviate: the paper may give the personal model a number of local
steps of its own; here it makes those of the global one.

Evaluation scores a client with v_k. A client that is not among the training clients has none and is scored with the global
model, its first state; a training client that never took part still has the parameters from the start.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean, nothing
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import (
    ModelBroadcast,
    add_metrics,
    batch_loss,
    batch_metrics,
    client_weight,
    local_sgd,
    no_metrics,
)
from fedjax_tx.types import Aggregator, ClientResult, ClientTrainer, FederatedAlgorithm, Metrics, Pass, PyTree, Task


def ditto(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    personal_learning_rate: Any,
    proximal_strength: Any,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Federated averaging, with a model of its own for each client, held near the global one.

    Args:
      task: what is learned. client_optimizer: trains the global model at a client; starts anew in each round.
      personal_learning_rate: eta > 0. proximal_strength: lambda >= 0.
      server_optimizer, aggregator: as of ``fed_avg``; they see the global model only.

    Client metrics in training: ``loss`` of the global model, as FedAvg reports it, and ``personal_loss``. In evaluation ``loss``
    and the task's metrics are those of the personal model, and with the prefix ``global_`` those of the global one.

    Client state holds one model for each client of the data set.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> algorithm = ditto(ftx.tasks.next_token(model), optax.sgd(0.1), personal_learning_rate=0.1, proximal_strength=1.0)
      >>> len(algorithm.passes)
      1
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("personal_learning_rate", personal_learning_rate, above=0)
    check.number("proximal_strength", proximal_strength, low=0)
    check_complete("aggregator", aggregator)
    trainer = train_both(task, client_optimizer, personal_learning_rate, proximal_strength)
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer))
    evaluation = Pass(evaluate_both(task), nothing(), broadcast_model, lambda state, aggregate, key: (state, {}))
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), evaluation)


class _Both(NamedTuple):
    shared: PyTree
    personal: PyTree
    metrics: Metrics


def train_both(
    task: Task, optimizer: optax.GradientTransformation, personal_learning_rate: Any, proximal_strength: Any
) -> ClientTrainer:
    """A client that trains the global model by ``local_sgd`` and the personal one, its state, beside it."""
    inner = local_sgd(task, optimizer)

    def start(broadcast, info, state):
        return _Both(inner.start(broadcast, info, ()), state, no_metrics({"personal_loss": None}))

    def step(broadcast, info, local, batch, mask, key):
        def loss(params):
            return batch_loss(task, params, broadcast.frozen, batch, mask, key)

        def move(own, gradient, received):
            moved = own - personal_learning_rate * (gradient + proximal_strength * (own - received))
            return moved.astype(own.dtype)

        shared = inner.step(broadcast, info, local.shared, batch, mask, key)
        pair, gradient = jax.value_and_grad(loss, has_aux=True)(local.personal)
        personal = jax.tree.map(move, local.personal, gradient, broadcast.params)
        return _Both(shared, personal, add_metrics(local.metrics, {"personal_loss": pair}))

    def finish(broadcast, info, local):
        result = inner.finish(broadcast, info, local.shared)
        return result._replace(state=local.personal, metrics={**result.metrics, **local.metrics})

    return ClientTrainer(lambda broadcast, key: broadcast.params, start, step, finish)


class _Scores(NamedTuple):
    metrics: Metrics
    state: PyTree


def evaluate_both(
    task: Task,
    init_state: Callable[[PyTree, PyTree], PyTree] = lambda broadcast, key: broadcast.params,
    personal_model: Callable[[ModelBroadcast, PyTree], PyTree] = lambda broadcast, state: state,
) -> ClientTrainer:
    """A client that scores its personal model on its examples, and the global one under names that begin with ``global_``.

    ``personal_model(broadcast, state) -> params`` finds the model in a state, which ``init_state`` makes of the broadcast.
    """

    def both(broadcast, personal, batch, mask):
        own = batch_metrics(task, personal, broadcast.frozen, batch, mask)
        shared = batch_metrics(task, broadcast.params, broadcast.frozen, batch, mask)
        return {**own, **{f"global_{name}": pair for name, pair in shared.items()}}

    def start(broadcast, info, state):
        batch = info.batch.zeros()
        mask = jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)
        names = jax.eval_shape(partial(both, broadcast), personal_model(broadcast, state), batch, mask)
        return _Scores(no_metrics(names), state)

    def step(broadcast, info, local, batch, mask, key):
        scores = both(broadcast, personal_model(broadcast, local.state), batch, mask)
        return local._replace(metrics=add_metrics(local.metrics, scores))

    def finish(broadcast, info, local):
        return ClientResult({}, client_weight(info), local.state, local.metrics)

    return ClientTrainer(init_state, start, step, finish, task)
