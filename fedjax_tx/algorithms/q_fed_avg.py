"""q-FedAvg: Li et al., "Fair Resource Allocation in Federated Learning".

arXiv 1905.10497, Algorithm 2, for the objective sum_k p_k F_k^{q+1} / (q + 1): the larger q, the more clients of high loss F_k
count. A client of the cohort trains from w to w_k, and with F_k = F_k(w), its mean loss over all its data at the start,

    delta_k = F_k^q L (w - w_k),        h_k = q F_k^{q-1} ||L (w - w_k)||^2 + L F_k^q;

the server takes w <- w - sum_k delta_k / sum_k h_k. L stands for the gradients' Lipschitz constant; the paper sets it to 1 over
the clients' learning rate. One round is two passes: the losses, which clients keep, and the training.

Where this deviates: clients of a cohort count alike, whatever their size; the paper gets the p_k = n_k / n by drawing clients in
that proportion (``weighted_cohorts(..., exact=True)``), and with uniform cohorts the objective's p_k are equal. Losses are taken
for at least 1e-10, so that F^{q-1} is finite for q < 1; the task's loss must not be negative.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fedjax_tx import check, tree
from fedjax_tx.aggregation import nothing, total
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd, start_loss, whole_data
from fedjax_tx.types import ClientTrainer, FederatedAlgorithm, Pass, Task

_SMALLEST_LOSS = 1e-10


def q_fed_avg(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    q: float | Array,
    lipschitz: float | Array,
) -> FederatedAlgorithm:
    """q-FedAvg: averages that lean to the clients of high loss.

    Args:
      task: what is learned, by a loss >= 0. client_optimizer: any optax optimiser; starts anew at each client in each round.
      q: >= 0; at 0 all clients count alike, so with clients of one size this is federated averaging.
      lipschitz: L > 0, as a rule 1 over the clients' learning rate.

    A client's state is its loss at the start of its last round. Round info: ``update_norm``; metric ``start_loss``: the F_k.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> algorithm = q_fed_avg(ftx.tasks.next_token(model), optax.sgd(0.1), q=1.0, lipschitz=10.0)
      >>> len(algorithm.passes)
      2
    """
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("q", q, low=0)
    check.number("lipschitz", lipschitz, above=0)
    server_optimizer = optax.sgd(1.0)
    step_model = optax_server(server_optimizer)

    def keep(state, aggregate, key):
        return state, {}

    def combine(state, aggregate, key):
        curvature = aggregate["curvature"]
        scale = 1 / jnp.where(curvature > 0, curvature, 1)
        return step_model(state, {"delta": jax.tree.map(lambda leaf: leaf * scale, aggregate["delta"])}, key)

    first = Pass(keep_loss(task), nothing(), broadcast_model, keep, whole_data)
    training = Pass(_fair_sgd(task, client_optimizer, q, lipschitz), total(), broadcast_model, combine)
    return FederatedAlgorithm(init_server(task, server_optimizer), (first, training), model_evaluation(task))


def keep_loss(task: Task) -> ClientTrainer:
    """A client that takes its mean loss at the server's parameters and keeps it as its state."""
    plain = start_loss(task)

    def finish(broadcast, info, local):
        result = plain.finish(broadcast, info, local)
        return result._replace(update={}, state=result.update["loss"])

    return plain._replace(init_state=lambda broadcast, key: jnp.zeros(()), finish=finish)


def _fair_sgd(task: Task, optimizer: optax.GradientTransformation, q: float | Array, lipschitz: float | Array) -> ClientTrainer:
    """Local training; the update holds the paper's delta_k as ``delta`` and h_k as ``curvature``, both in float32."""
    plain = local_sgd(task, optimizer)

    def finish(broadcast, info, local):
        result = plain.finish(broadcast, info, local)
        loss = jnp.maximum(result.state, _SMALLEST_LOSS)
        moved = jax.tree.map(lambda leaf: lipschitz * leaf.astype(jnp.float32), result.update["delta"])
        curvature = q * loss ** (q - 1) * tree.norm(moved) ** 2 + lipschitz * loss**q
        delta = jax.tree.map(lambda leaf: loss**q * leaf, moved)
        return result._replace(update={"delta": delta, "curvature": curvature})

    return plain._replace(finish=finish)
