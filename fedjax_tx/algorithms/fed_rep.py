"""A shared representation: Collins et al., "Exploiting Shared Representations for Personalized Federated Learning" (FedRep).

arXiv 2102.07078, Algorithm 1. Client i has a head h_i of its own on a representation phi that all share. In a round it receives
phi, first fits its head to it by tau steps, then the representation to its head,

    h_i <- h_i - alpha grad_h f_i(h_i, phi)  (tau times),        phi_i <- phi - alpha grad_phi f_i(h_i, phi),

and the server averages the representations, phi <- mean_i phi_i. A round is two passes, so head and body have each their own
local work: the paper fits heads for many epochs and the body for few.

Where we deviate: the mean is weighted by numbers of examples, as in FedAvg (the paper's is
``aggregator=ftx.aggregation.mean(weighted=False)``), and handed to a server optimiser. The body may make more than one step.

Evaluation scores a client with the server's representation and its own head. A client that is not among the training clients, or
never took part, is scored with the head that training began with; see ``fed_per``.
"""

from collections.abc import Sequence

import optax

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean, nothing
from fedjax_tx.algorithms.fed_per import evaluate_own
from fedjax_tx.algorithms.personal_part import PersonalPart, split_task
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd
from fedjax_tx.types import Aggregator, ClientResult, ClientTrainer, FederatedAlgorithm, LocalWork, Pass, Task


def fed_rep(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    personal: str | Sequence[str] = "head/*",
    *,
    personal_optimizer: optax.GradientTransformation | None = None,
    personal_work: LocalWork | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedRep: a client first fits its own head to the shared body, then the body to its head.

    Args:
      task: what is learned, its parameters nested dicts. client_optimizer: of the body; starts anew in each round.
      personal: patterns of the paths of the head's parameters, as in ``ftx.tasks.freeze``; by default the last layer.
      personal_optimizer, personal_work: of the head, by default as of the body.
      server_optimizer, aggregator: as of ``fed_avg``; they see the body only.

    A client's state is its head. Client metrics: ``personal_loss`` on the way of the head, ``loss`` on that of the body.

    Errors: ``ValueError`` if a pattern matches no parameter that the task trains, or if nothing is left to share.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> work = ftx.data.LocalWork(batch_size=4, epochs=10)
      >>> len(fed_rep(ftx.tasks.next_token(model), optax.sgd(0.1), personal_work=work).passes)
      2
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    personal_optimizer = client_optimizer if personal_optimizer is None else personal_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.instance("personal_optimizer", personal_optimizer, optax.GradientTransformation, "an optax optimiser")
    if personal_work is not None:
        check.instance("personal_work", personal_work, LocalWork, "a LocalWork")
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    part = split_task(task, personal)

    def keep(state, aggregate, key):
        return state, {}

    # The body is sent once; it goes back when it is trained.
    head, body = train_head(part, personal_optimizer), train_body(part, client_optimizer)
    heads = Pass(head, nothing(), broadcast_model, keep, personal_work, lambda sent, message: (sent.params, ()))
    step_body = optax_server(server_optimizer)
    bodies = Pass(body, aggregator, broadcast_model, step_body, travels=lambda sent, message: ((), message))
    return FederatedAlgorithm(init_server(part.shared, server_optimizer), (heads, bodies), evaluate_own(part))


def train_head(part: PersonalPart, optimizer: optax.GradientTransformation) -> ClientTrainer:
    """A client that trains its own parameters, its state, beside the shared ones; it has no update."""
    inner = local_sgd(part.personal, optimizer)

    def start(broadcast, info, state):
        return inner.start(part.for_personal(broadcast, state), info, ())

    def step(broadcast, info, local, batch, mask, key):
        return inner.step(part.for_personal(broadcast, local.params), info, local, batch, mask, key)

    def finish(broadcast, info, local):
        result = inner.finish(part.for_personal(broadcast, local.params), info, local)
        return ClientResult({}, result.weight, local.params, {"personal_loss": result.metrics["loss"]})

    return ClientTrainer(lambda broadcast, key: part.first(broadcast), start, step, finish)


def train_body(part: PersonalPart, optimizer: optax.GradientTransformation) -> ClientTrainer:
    """A client that trains the shared parameters beside its own, its state, which stay as they are."""
    inner = local_sgd(part.shared, optimizer)

    def step(broadcast, info, local, batch, mask, key):
        return inner.step(part.for_shared(broadcast, local.state), info, local, batch, mask, key)

    return inner._replace(step=step)
