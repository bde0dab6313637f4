"""DP-SGD at every client: Abadi et al., "Deep Learning with Differential Privacy".

arXiv 1607.00133, Algorithm 1, as the local training of federated averaging. In each local step a client clips the gradient of
every example of its batch to the norm C, adds noise to their sum, and hands that to its optimiser:

    g~ = 1 / L (sum_i g_i min(1, C / ||g_i||) + N(0, z^2 C^2 I)).

So what leaves a client has noise already, and the promise holds towards everybody, the server too: it is one for each single
example of a client, whatever the other clients do, and its epsilon is that of ``ftx.privacy.epsilon_of_examples`` for the
client's number of examples, its local work and the rounds in which it took part. A client as a whole is not hidden: that is what
noise behind the mean is for (``ftx.aggregation.gaussian_noise``), which may come on top.

Numbers of examples are no secret here: they weigh clients in the mean. The client metric ``loss`` has no noise, so it is not
covered.
"""

import optax
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd, private_gradient
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Pass, Task


def dp_sgd(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    clip_norm: float | Array,
    noise_multiplier: float | Array,
    denominator: float | Array,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Federated averaging whose clients train by DP-SGD, best on batches drawn by ``LocalWork(expected_batch=...)``.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      clip_norm: C > 0, of one example's gradient. noise_multiplier: z >= 0, standard deviation of the noise on the sum over C.
      denominator: L > 0, as a rule ``expected_batch``. A number of the batch itself, such as its size, would tell who came.
      server_optimizer, aggregator: as of ``fed_avg``.

    Raises:
      ModuleNotFoundError: if ``jax-privacy``, which clips, is not installed.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> local = ftx.data.LocalWork(batch_size=32, steps=20, expected_batch=8)
      >>> len(dp_sgd(task, optax.sgd(0.1), clip_norm=1.0, noise_multiplier=0.8, denominator=8).passes)
      1
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    gradient = private_gradient(clip_norm, noise_multiplier, denominator)
    trainer = local_sgd(task, client_optimizer, gradient=gradient)
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer))
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))
