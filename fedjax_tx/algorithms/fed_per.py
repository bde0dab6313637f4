"""Personal layers: Arivazhagan et al., "Federated Learning with Personalization Layers" (FedPer).

arXiv 1912.00818, Algorithms 1 and 2. The layers of a network are of two kinds: base layers W_B, which all clients share, and
personal ones W_{P_k}, which client k keeps and never sends. In a round it receives W_B, makes gradient steps on both together,

    (W_{B,k}, W_{P_k}) <- SGD_k(W_B, W_{P_k}),

and the server averages the base layers that come back, W_B <- sum_k n_k / n W_{B,k}.

Which parameters are personal is told by patterns of their paths, so other methods are this one with other patterns.
``personal="*norm*"`` is FedBN, Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization" (arXiv
2102.07623), for the layers that normalise here: clients keep their own scales and biases of them. ``personal="*lora*"`` gives
each client adapters of its own on a base that all train.

Where we deviate: in the paper all clients take part in every round; here those of the cohort do. The average is handed to a
server optimiser, as in ``fed_avg``. FedBN averages clients alike: ``aggregator=ftx.aggregation.mean(weighted=False)``.

Evaluation scores a client with the server's shared parameters and its own. A client that is not among the training clients, or
never took part, has none: it is scored with those that training began with, in a fresh head as good as chance. What it would do
with examples to train on is ``fine_tune`` of ``ftx.tasks.freeze(task, personal)`` on them, from ``result.params``.
"""

from collections.abc import Sequence

import optax

from fedjax_tx import check, tree
from fedjax_tx.aggregation import check_complete, mean, nothing
from fedjax_tx.algorithms.personal_part import PersonalPart, split_task
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_evaluation, local_sgd
from fedjax_tx.types import Aggregator, ClientTrainer, FederatedAlgorithm, Pass, PyTree, Task


def fed_per(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    personal: str | Sequence[str] = "head/*",
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedPer: clients share a body and keep a head, or whatever the patterns say; both are trained together.

    Args:
      task: what is learned, its parameters nested dicts. client_optimizer: of all parameters; starts anew in each round.
      personal: patterns of the paths of parameters that stay with a client, as in ``ftx.tasks.freeze``; by default the last
        layer.
      server_optimizer, aggregator: as of ``fed_avg``; they see the shared parameters only.

    A client's state is its personal parameters. ``result.params`` holds the first personal ones beside the shared.

    Errors: ``ValueError`` if a pattern matches no parameter that the task trains, or if nothing is left to share.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> algorithm = fed_per(ftx.tasks.next_token(model), optax.sgd(0.1), personal=["head/*", "final_norm/*"])
      >>> len(algorithm.passes)
      1
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    part = split_task(task, personal)
    trainer = train_together(part, client_optimizer)
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer), travels=shared_travels)
    return FederatedAlgorithm(init_server(part.shared, server_optimizer), (training,), evaluate_own(part))


def train_together(part: PersonalPart, optimizer: optax.GradientTransformation) -> ClientTrainer:
    """A client that trains the shared parameters and its own, its state, by ``local_sgd``."""
    inner = local_sgd(part.whole, optimizer)

    def received(broadcast):
        return part.for_whole(broadcast, part.first(broadcast))

    def start(broadcast, info, state):
        return inner.start(part.for_whole(broadcast, state), info, ())

    def step(broadcast, info, local, batch, mask, key):
        return inner.step(received(broadcast), info, local, batch, mask, key)

    def finish(broadcast, info, local):
        result = inner.finish(received(broadcast), info, local)
        own, _ = tree.partition(local.params, part.paths.__contains__)
        _, delta = tree.partition(result.update["delta"], part.paths.__contains__)
        return result._replace(update={"delta": delta}, state=own)

    return ClientTrainer(lambda broadcast, key: part.first(broadcast), start, step, finish)


def evaluate_own(part: PersonalPart) -> Pass:
    """Returns the pass that scores a client with the server's shared parameters and its own, its state."""
    scores = local_evaluation(part.whole, part.for_whole)
    return Pass(scores, nothing(), broadcast_model, lambda state, aggregate, key: (state, {}))


def shared_travels(broadcast, message) -> tuple[PyTree, PyTree]:
    """What is sent: the shared parameters both ways; what a client keeps or only reads it has."""
    return broadcast.params, message
