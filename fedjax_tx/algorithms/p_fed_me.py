"""Moreau envelopes: Dinh et al., "Personalized Federated Learning with Moreau Envelopes" (pFedMe).

arXiv 2006.08848, Algorithm 1. Around the w that it holds, client i's loss is the envelope

    F_i(w) = min_theta f_i(theta) + lambda / 2 ||theta - w||^2,        grad F_i(w) = lambda (w - theta_i(w)),

with theta_i(w) the minimum: its personal model. In a round it starts at w_i = w; on each batch it minimises, by K gradient steps,

    theta <- theta - rate (grad f_i(theta) + lambda (theta - w_i)),    and then steps    w_i <- w_i - eta lambda (w_i - theta).

The server takes w <- (1 - beta) w + beta mean_i w_i, which is the server optimiser ``optax.sgd(beta)``. As lambda grows, theta
follows w; with K = 1 this is federated averaging at the rate eta * lambda * rate.

Where we deviate: theta begins at w_i on each batch (the paper asks for the minimum, up to an accuracy; its authors' code goes on
from the theta of the batch before). The mean is weighted by numbers of examples; the paper's is
``aggregator=ftx.aggregation.mean(weighted=False)``. Only clients of the cohort train; in the paper all do, and the cohort's are
averaged.

Evaluation scores a client with the last theta of its last round. A training client that never took part still has the parameters
that training began at; one that is not among the training clients is scored with the global model.
"""

import jax
import optax
from jax import lax
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean, nothing
from fedjax_tx.algorithms.ditto import evaluate_both
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import add_metrics, batch_gradient, local_sgd
from fedjax_tx.types import Aggregator, ClientTrainer, FederatedAlgorithm, Pass, Task


def p_fed_me(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    personal_learning_rate: float | Array,
    proximal_strength: float | Array,
    *,
    personal_steps: int = 5,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """pFedMe: clients move the global model towards personal ones that are held near it.

    Args:
      task: what is learned. client_optimizer: takes lambda (w_i - theta) for a gradient, ``optax.sgd(eta)`` is the paper's;
        starts anew in each round.
      personal_learning_rate: > 0, of the steps to theta, which diverge once it times lambda is above 2. proximal_strength: lambda
        > 0. personal_steps: K >= 1 of them on each batch. server_optimizer, aggregator: as of ``fed_avg``.

    Client metric in training: ``loss``, at the w_i on the way. In evaluation ``loss`` and the task's metrics are those of the
    personal model, and with the prefix ``global_`` those of the global one.

    Client state holds one model for each client of the data set. A step costs K gradients.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> task = ftx.tasks.next_token(model)
      >>> len(p_fed_me(task, optax.sgd(0.01), personal_learning_rate=0.1, proximal_strength=15.0).passes)
      1
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("personal_learning_rate", personal_learning_rate, above=0)
    check.number("proximal_strength", proximal_strength, above=0)
    personal_steps = check.integer("personal_steps", personal_steps, low=1)
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    trainer = train_envelope(task, client_optimizer, personal_learning_rate, proximal_strength, personal_steps)
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer))
    evaluation = Pass(evaluate_both(task), nothing(), broadcast_model, lambda state, aggregate, key: (state, {}))
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), evaluation)


def train_envelope(
    task: Task,
    optimizer: optax.GradientTransformation,
    personal_learning_rate: float | Array,
    proximal_strength: float | Array,
    personal_steps: int,
) -> ClientTrainer:
    """A client that descends the Moreau envelope of its loss; its state is theta, its personal model."""
    inner = local_sgd(task, optimizer)

    def step(broadcast, info, local, batch, mask, key):
        def approach(theta, _):
            pair, gradient = batch_gradient(task, theta, broadcast.frozen, batch, mask, key)

            def move(own, slope, centre):
                return (own - personal_learning_rate * (slope + proximal_strength * (own - centre))).astype(own.dtype)

            return jax.tree.map(move, theta, gradient, local.params), pair

        theta, (losses, weights) = lax.scan(approach, local.params, length=personal_steps)
        slope = jax.tree.map(lambda w, own: (proximal_strength * (w - own)).astype(w.dtype), local.params, theta)
        updates, stepped = optimizer.update(slope, local.optimizer, local.params)
        return local._replace(
            params=optax.apply_updates(local.params, updates),
            optimizer=stepped,
            metrics=add_metrics(local.metrics, {"loss": (losses[0], weights[0])}),
            state=theta,
        )

    return inner._replace(init_state=lambda broadcast, key: broadcast.params, step=step)
