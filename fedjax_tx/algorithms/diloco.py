"""DiLoCo: Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models".

arXiv 2311.08105, Algorithm 1: federated averaging for few workers that each make many local steps (hundreds), as a rule of AdamW.
From theta^{t-1} worker i makes H steps of its inner optimiser, giving theta_i; with the outer gradient

    D = 1/k sum_i (theta^{t-1} - theta_i),

the outer optimiser is SGD with Nesterov momentum,

    u <- beta u + D,        theta^t = theta^{t-1} - eta (D + beta u).

A worker keeps the state of its inner optimiser (moments, step count) from round to round, though its parameters are replaced.

Where this deviates: workers are weighted by their numbers of examples, as in FedAvg; shards of one size are the equation above.
"""

import optax
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd
from fedjax_tx.types import Aggregator, ClientTrainer, FederatedAlgorithm, Pass, Task


def diloco(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_learning_rate: float | Array = 0.7,
    *,
    momentum: float | Array = 0.9,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """DiLoCo: few clients with long local training whose optimisers remember, and Nesterov momentum at the server.

    Args:
      task: what is learned. client_optimizer: the inner one, as a rule ``optax.adamw``; a schedule goes on over the rounds.
      server_learning_rate: eta > 0. momentum: beta, 0 to below 1; the defaults are the paper's.
      aggregator: as of ``fed_avg``.

    A client's state is that of its optimiser: with AdamW two models for each client of the data set.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> len(diloco(ftx.tasks.next_token(model), optax.adamw(0.001)).passes)
      1
    """
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("server_learning_rate", server_learning_rate, above=0)
    check.number("momentum", momentum, low=0, below=1)
    check_complete("aggregator", aggregator)
    server_optimizer = optax.sgd(server_learning_rate, momentum, nesterov=True)
    training = Pass(_remembering_sgd(task, client_optimizer), aggregator, broadcast_model, optax_server(server_optimizer))
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))


def _remembering_sgd(task: Task, optimizer: optax.GradientTransformation) -> ClientTrainer:
    """Local training that goes on with the optimiser's state of the client's last round."""
    plain = local_sgd(task, optimizer)

    def start(broadcast, info, state):
        return plain.start(broadcast, info, ())._replace(optimizer=state)

    def finish(broadcast, info, local):
        return plain.finish(broadcast, info, local)._replace(state=local.optimizer)

    return ClientTrainer(lambda broadcast, key: optimizer.init(broadcast.params), start, plain.step, finish)
