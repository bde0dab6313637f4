"""Fine-tuning: each client goes on from the server's parameters on its own data, and tells nobody.

The simplest personal model, and hard to beat: Yu et al., "Salvaging Federated Learning by Local Adaptation" (arXiv 2002.04758);
Cheng et al., "Fine-tuning is Fine in Federated Learning" (arXiv 2108.07313). With w the parameters that training begins at and
any optimiser, client k makes local steps on F_k from

    v_k = w,

and goes on in its next round where it was, its optimiser's state included. The server's parameters stay w. From w drawn anew
(``init_params=None``) this is local training alone: what a client has without the others.

Evaluation scores a client with v_k, as in ``ditto``; a client that is not among the training clients is scored with w.
"""

from typing import NamedTuple

import optax

from fedjax_tx import check
from fedjax_tx.aggregation import nothing
from fedjax_tx.algorithms.ditto import evaluate_both
from fedjax_tx.algorithms.server import broadcast_model, init_server
from fedjax_tx.clients import ModelBroadcast, client_weight, local_sgd
from fedjax_tx.types import ClientResult, ClientTrainer, FederatedAlgorithm, Pass, PyTree, Task


def fine_tune(task: Task, client_optimizer: optax.GradientTransformation) -> FederatedAlgorithm:
    """A model of its own for each client, trained on its data only, from the parameters given as ``init_params``.

    Args:
      task: what is learned. client_optimizer: of each client; its state is kept from round to round.

    Client metric in training: ``loss``. In evaluation ``loss`` and the task's metrics are those of the personal model, and
    with the prefix ``global_`` those of the parameters that it began at.

    Client state holds a model and an optimiser's state for each client of the data set.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> len(fine_tune(ftx.tasks.next_token(model), optax.adam(0.001)).passes)
      1
    """
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    trainer = train_own(task, client_optimizer)
    # Nothing travels: what a client begins at was sent before.
    training = Pass(trainer, nothing(), broadcast_model, _keep, travels=lambda broadcast, message: ((), ()))
    scores = evaluate_both(task, trainer.init_state, lambda broadcast, state: state.params)
    return FederatedAlgorithm(init_server(task, optax.identity()), (training,), Pass(scores, nothing(), broadcast_model, _keep))


class _Own(NamedTuple):
    params: PyTree
    optimizer: PyTree


def train_own(task: Task, optimizer: optax.GradientTransformation) -> ClientTrainer:
    """A client that trains a model of its own, its state, by ``local_sgd``; it has no update."""
    inner = local_sgd(task, optimizer)

    def init_state(broadcast, key):
        return _Own(broadcast.params, optimizer.init(broadcast.params))

    def start(broadcast, info, state):
        return inner.start(ModelBroadcast(state.params, broadcast.frozen), info, ())._replace(optimizer=state.optimizer)

    def finish(broadcast, info, local):
        return ClientResult({}, client_weight(info), _Own(local.params, local.optimizer), local.metrics)

    return ClientTrainer(init_state, start, inner.step, finish)


def _keep(state, aggregate, key):
    return state, {}
