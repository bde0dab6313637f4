"""Mixtures of a personal and the global model: Deng et al., "Adaptive Personalized Federated Learning" (APFL).

arXiv 2003.13461, Algorithm 1. Client i keeps a model v_i of its own and uses the mixture m_i = alpha_i v_i + (1 - alpha_i) w_i.
In a round it receives w, sets w_i = w, and makes steps of both on its own batches,

    w_i <- w_i - eta grad f_i(w_i),        v_i <- v_i - eta grad_v f_i(m_i) = v_i - eta alpha_i grad f_i(m_i);

the server averages the w_i, as in federated averaging. How much a client mixes may be learned, by a step in each round,

    alpha_i <- alpha_i - eta grad_alpha f_i(m_i) = alpha_i - eta <grad f_i(m_i), v_i - w_i>,        clipped to [0, 1].

At alpha = 0 the mixture is the global model; at alpha = 1, v_i is trained alone.

Where we deviate: alpha moves with the gradient of a round's first batch, as in its authors' code, but before the steps of that
batch (there behind them) and without their small price on alpha. v_i makes plain gradient steps at a rate of its own; w_i takes
any optimiser, and the mean is weighted by numbers of examples and handed to a server optimiser.

Evaluation scores a client with the mixture of its v_i and the server's present w. v_i starts as the parameters that training
begins at, so a training client that never took part mixes with those. A client that is not among the training clients has
v_i = w: it is scored with the global model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean, nothing
from fedjax_tx.algorithms.ditto import evaluate_both
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import add_metrics, batch_gradient, client_weight, local_sgd, no_metrics
from fedjax_tx.types import Aggregator, ClientTrainer, FederatedAlgorithm, Metrics, Pass, PyTree, Task


class Mixture(NamedTuple):
    """A client's state: its own model v_i, and alpha_i in [0, 1], how much of it it mixes in."""

    params: PyTree
    alpha: Float[Array, ""]


def apfl(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    personal_learning_rate: float | Array,
    alpha: float | Array = 0.5,
    *,
    alpha_learning_rate: float | Array = 0.0,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """APFL: federated averaging, and for each client a mixture of the global model with one of its own.

    Args:
      task: what is learned. client_optimizer: trains the global model at a client; starts anew in each round.
      personal_learning_rate: eta > 0 of the clients' own models. alpha: in [0, 1], the share of the own model at the start.
      alpha_learning_rate: >= 0, of that share; 0 keeps it. server_optimizer, aggregator: as of ``fed_avg``.

    Client metrics in training: ``loss`` of the global model, ``personal_loss`` of the mixture, and ``alpha`` after the round.
    In evaluation ``loss`` and the task's metrics are those of the mixture, and with the prefix ``global_`` those of the global
    model.

    Client state holds a model and a number for each client of the data set.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> len(apfl(ftx.tasks.next_token(model), optax.sgd(0.1), personal_learning_rate=0.1, alpha=0.25).passes)
      1
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("personal_learning_rate", personal_learning_rate, above=0)
    check.number("alpha", alpha, low=0, high=1)
    check.number("alpha_learning_rate", alpha_learning_rate, low=0)
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    trainer = train_mixture(task, client_optimizer, personal_learning_rate, alpha, alpha_learning_rate)
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer))
    scores = evaluate_both(task, trainer.init_state, lambda broadcast, state: mix(state, broadcast.params))
    evaluation = Pass(scores, nothing(), broadcast_model, lambda state, aggregate, key: (state, {}))
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), evaluation)


def mix(own: Mixture, shared: PyTree) -> PyTree:
    """Returns alpha v + (1 - alpha) w, leaf by leaf, in the dtypes of w = ``shared``."""
    return jax.tree.map(lambda v, w: (w + own.alpha * (v - w)).astype(w.dtype), own.params, shared)


class _Training(NamedTuple):
    shared: PyTree
    own: Mixture
    begun: Bool[Array, ""]
    metrics: Metrics


def train_mixture(
    task: Task,
    optimizer: optax.GradientTransformation,
    personal_learning_rate: float | Array,
    alpha: float | Array,
    alpha_learning_rate: float | Array,
) -> ClientTrainer:
    """A client that trains the global model by ``local_sgd``, and beside it what it mixes in: its state."""
    inner = local_sgd(task, optimizer)

    def init_state(broadcast, key):
        return Mixture(broadcast.params, jnp.asarray(alpha, jnp.float32))

    def start(broadcast, info, state):
        return _Training(inner.start(broadcast, info, ()), state, jnp.bool_(False), no_metrics({"personal_loss": None}))

    def step(broadcast, info, local, batch, mask, key):
        own, w = local.own, local.shared.params
        pair, slope = batch_gradient(task, mix(own, w), broadcast.frozen, batch, mask, key)

        def move(v, gradient):
            return (v - personal_learning_rate * own.alpha * gradient).astype(v.dtype)

        moved = jnp.clip(own.alpha - alpha_learning_rate * _along(slope, own.params, w), 0, 1)
        own = Mixture(jax.tree.map(move, own.params, slope), jnp.where(local.begun, own.alpha, moved))
        shared = inner.step(broadcast, info, local.shared, batch, mask, key)
        return _Training(shared, own, jnp.bool_(True), add_metrics(local.metrics, {"personal_loss": pair}))

    def finish(broadcast, info, local):
        result = inner.finish(broadcast, info, local.shared)
        told = {**local.metrics, "alpha": (local.own.alpha, client_weight(info))}
        return result._replace(state=local.own, metrics={**result.metrics, **told})

    return ClientTrainer(init_state, start, step, finish)


def _along(slope: PyTree, own: PyTree, shared: PyTree) -> Float[Array, ""]:
    """<slope, own - shared> over all leaves, in float32: how the mixture's loss changes with the share of ``own``."""
    products = jax.tree.map(lambda g, v, w: (g.astype(jnp.float32) * (v - w)).sum(), slope, own, shared)
    return jnp.stack(jax.tree.leaves(products)).sum()
