"""Body averaging: Oh et al., "FedBABU: Towards Enhanced Representation for Federated Image Classification".

arXiv 2106.06042, Algorithm 1. The head theta_cls stays as it was drawn, at the server and at every client; only the body is
trained and averaged,

    theta_ext <- sum_k n_k / n theta_{ext,k},        theta_{ext,k}: SGD_k on F_k(theta_ext, theta_cls) by theta_ext alone,

so training is ``fed_avg`` of the task with a frozen head. For a personal model the head is then fine-tuned at its client.

Evaluation does so: each client, trained before or not, fine-tunes the head on its first examples and is scored on the others
(``clients/tuned.py``). Where we deviate: the paper fine-tunes on a client's training examples for some epochs. That is a run of
``fine_tune`` of ``ftx.tasks.freeze(task, personal)`` from ``result.params``, and uses up no example of the evaluation.
"""

from collections.abc import Sequence

import optax

from fedjax_tx import check
from fedjax_tx.aggregation import nothing
from fedjax_tx.algorithms.fed_avg import fed_avg
from fedjax_tx.algorithms.fed_per import shared_travels
from fedjax_tx.algorithms.personal_part import split_task
from fedjax_tx.algorithms.server import broadcast_model
from fedjax_tx.clients import small_batches, tuned_evaluation
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Pass, Task


def fed_babu(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    personal: str | Sequence[str] = "head/*",
    *,
    tuning_optimizer: optax.GradientTransformation | None = None,
    tuning_steps: int = 5,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedBABU: the body is trained by federated averaging under a head that nobody trains; evaluation fine-tunes the head.

    Args:
      task: what is learned, its parameters nested dicts. client_optimizer: of the body; starts anew in each round.
      personal: patterns of the paths of the head's parameters, as in ``ftx.tasks.freeze``; by default the last layer.
      tuning_optimizer: of the head in evaluation, by default as of the body. tuning_steps: batches to fine-tune on, >= 0, at most
        half of a client's.
      server_optimizer, aggregator: as of ``fed_avg``; they see the body only.

    In evaluation ``loss`` and the task's metrics are those with the tuned head, and with the prefix ``global_`` those of the
    server's parameters, both on the examples that were not tuned on.

    Errors: ``ValueError`` if a pattern matches no parameter that the task trains, or if nothing is left to share.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> len(fed_babu(ftx.tasks.next_token(model), optax.sgd(0.1)).passes)
      1
    """
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    tuning_optimizer = client_optimizer if tuning_optimizer is None else tuning_optimizer
    check.instance("tuning_optimizer", tuning_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.integer("tuning_steps", tuning_steps, low=0)
    part = split_task(task, personal)
    averaging = fed_avg(part.shared, client_optimizer, server_optimizer, aggregator)

    def broadcast_head(state):
        broadcast = broadcast_model(state)
        return part.for_personal(broadcast, part.first(broadcast))

    tuning = tuned_evaluation(part.personal, tuning_optimizer, tuning_steps)
    evaluation = Pass(tuning, nothing(), broadcast_head, lambda state, aggregate, key: (state, {}), small_batches)
    training = averaging.passes[0]._replace(travels=shared_travels)
    return averaging._replace(passes=(training,), evaluation=evaluation)
