"""FedExP: Jhunjhunwala et al., "FedExP: Speeding Up Federated Averaging via Extrapolation".

arXiv 2301.09604, Algorithm 1. The server goes beyond the clients' average, the farther the less their changes D_i = w - w_i
agree: with M clients in the round and D their mean,

    w <- w - eta_g D,        eta_g = max(1, sum_i ||D_i||^2 / (2 M (||D||^2 + epsilon))).

Clients that all move alike give eta_g = 1, which is federated averaging.

Where this deviates: both means, of the D_i and of their squared norms, are weighted by numbers of examples, as in FedAvg (clients
of one size are the paper's case); and what is evaluated are the last parameters, where the paper takes the mean of the last two,
since its iterates tend to swing about the optimum.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fedjax_tx import check, tree
from fedjax_tx.aggregation import mean, parts
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd
from fedjax_tx.types import ClientTrainer, FederatedAlgorithm, Pass, Task


def fed_exp(task: Task, client_optimizer: optax.GradientTransformation, epsilon: float | Array = 1e-3) -> FederatedAlgorithm:
    """FedExP: federated averaging whose server rate grows with the disagreement of the clients; never below 1.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      epsilon: >= 0, in squared units of the parameters: bounds the rate as the mean change gets small. The paper tunes it
        between 0.001 and 0.1.

    Round info: ``server_learning_rate``, eta_g; ``update_norm`` of the server's step.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(fed_exp(task, optax.sgd(0.1)).passes)
      1
    """
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("epsilon", epsilon, low=0)
    server_optimizer = optax.sgd(1.0)
    step_server = optax_server(server_optimizer)

    def combine(state, aggregate, key):
        twice = 2 * (tree.norm(aggregate["delta"]) ** 2 + epsilon)
        rate = jnp.maximum(1, aggregate["square"] / jnp.where(twice > 0, twice, 1))
        delta = jax.tree.map(lambda leaf: rate * leaf, aggregate["delta"])
        state, info = step_server(state, {"delta": delta}, key)
        return state, {**info, "server_learning_rate": rate}

    training = Pass(_measured_sgd(task, client_optimizer), parts(delta=mean(), square=mean()), broadcast_model, combine)
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))


def _measured_sgd(task: Task, optimizer: optax.GradientTransformation) -> ClientTrainer:
    """Local training whose update holds beside ``delta`` its squared norm, ``square``."""
    plain = local_sgd(task, optimizer)

    def finish(broadcast, info, local):
        result = plain.finish(broadcast, info, local)
        return result._replace(update={**result.update, "square": tree.norm(result.update["delta"]) ** 2})

    return plain._replace(finish=finish)
