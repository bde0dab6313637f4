"""FedSAM: Qu et al., "Generalized Federated Learning via Sharpness Aware Minimization".

arXiv 2206.02618, Algorithm 1. Clients look for flat minima: a step takes its gradient where the batch's loss is about highest
within a distance rho,

    w~ = w + rho g / ||g||,        g = grad F_k(w; batch),
    w <- w - eta_l grad F_k(w~; batch),

both on the same batch, and the server averages as in federated averaging. rho = 0 is federated averaging. A step costs two
gradients.

Where this deviates: any optimiser takes the second gradient in place of the step above; means are weighted by numbers of
examples. Where g = 0, w~ = w. The paper's MoFedSAM, with momentum at the clients, is left out.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fedjax_tx import check, tree
from fedjax_tx.aggregation import check_complete, mean
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import batch_gradient, local_sgd
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Pass, Task


def fed_sam(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    rho: float | Array,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedSAM: federated averaging whose clients minimise the worst loss near their parameters.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      rho: >= 0, how near, in units of the parameters; the paper's experiments take 0.5 and less.
      server_optimizer, aggregator: as of ``fed_avg``.

    The client metric ``loss`` is that at w, before the ascent.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(fed_sam(task, optax.sgd(0.1), rho=0.05).passes)
      1
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("rho", rho, low=0)
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)

    def gradient_uphill(task, params, frozen, batch, mask, key):
        loss, gradient = batch_gradient(task, params, frozen, batch, mask, key)
        length = tree.norm(gradient)
        scale = rho / jnp.where(length > 0, length, 1)
        uphill = jax.tree.map(lambda own, slope: (own + scale * slope).astype(own.dtype), params, gradient)
        # The same key: the dropout of a batch is part of its loss.
        return loss, batch_gradient(task, uphill, frozen, batch, mask, key)[1]

    trainer = local_sgd(task, client_optimizer, gradient=gradient_uphill)
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer))
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))
