"""MOON: Li et al., "Model-Contrastive Federated Learning".

arXiv 2103.16257, Algorithm 1. A client draws what its model makes of an example, z, towards what the server's model makes of it,
z_glob, and away from what the client's own last model made of it, z_prev; with the cosine similarity sim,

    l_con = -log( exp(sim(z, z_glob) / tau) / (exp(sim(z, z_glob) / tau) + exp(sim(z, z_prev) / tau)) ),
    l = l_sup + mu l_con,

and the server averages as in federated averaging. mu = 0 is federated averaging; so is a client's first round if the server
still is where training began, since then z_glob = z_prev.

z are the task's ``features``, [batch, ..., width]. The paper takes them behind a projection head that it adds to the model; here
they are whatever the task says, with ``ftx.tasks.with_features`` what enters the model's head. Of more than one vector an
example (a text's positions), l_con is the mean. The server's model and the last one run without dropout. A client that never
took part has for its last model the parameters from the start of training.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import add_metrics, local_sgd, masked_mean, no_metrics
from fedjax_tx.types import Aggregator, ClientTrainer, FederatedAlgorithm, Metrics, Pass, PyTree, Task


def moon(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    mu: float | Array,
    temperature: float | Array = 0.5,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """MOON: federated averaging whose clients' features stay like the server's and leave their own last model's.

    Args:
      task: what is learned; its outputs have ``features`` (``ftx.tasks.with_features``). client_optimizer: starts anew at each
        client in each round.
      mu: >= 0, the weight of the contrast. temperature: tau > 0, by default the paper's.
      server_optimizer, aggregator: as of ``fed_avg``.

    A client's state is its last model. Client metrics: ``loss``, l_sup alone, and ``contrast``, l_con.

    Errors: ``ValueError`` if the task's outputs have no features, when the round is first traced.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.with_features(ftx.tasks.classification(ftx.models.mlp(4, 3, (8,))))
      >>> len(moon(task, optax.sgd(0.1), mu=1.0).passes)
      1
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("mu", mu, low=0)
    check.number("temperature", temperature, above=0)
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)
    trainer = _contrastive_sgd(task, client_optimizer, mu, temperature)
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer))
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))


class _Training(NamedTuple):
    params: PyTree
    optimizer: PyTree
    metrics: Metrics
    state: PyTree


def _contrastive_sgd(
    task: Task, optimizer: optax.GradientTransformation, mu: float | Array, temperature: float | Array
) -> ClientTrainer:
    """A client of MOON; its state is the model that it ended with."""
    plain = local_sgd(task, optimizer)

    def start(broadcast, info, state):
        outputs = jax.eval_shape(task.apply, broadcast.params, broadcast.frozen, info.batch.zeros(), None)
        if "features" not in outputs:
            check.fail_value("the task's outputs", "to have 'features' (ftx.tasks.with_features adds them)", sorted(outputs))
        metrics = no_metrics({"loss": None, "contrast": None})
        return _Training(broadcast.params, optimizer.init(broadcast.params), metrics, state)

    def step(broadcast, info, local, batch, mask, key):
        def features(params):
            return task.apply(params, broadcast.frozen, batch, None)["features"]

        received, last = features(broadcast.params), features(local.state)

        def loss(params):
            outputs = task.apply(params, broadcast.frozen, batch, key)
            value, weight = task.loss(outputs, batch)
            contrast = contrastive_loss(outputs["features"], received, last, temperature)
            told = {"loss": masked_mean(value, weight, mask), "contrast": masked_mean(contrast, weight, mask)}
            return told["loss"][0] + mu * told["contrast"][0], told

        gradient, told = jax.grad(loss, has_aux=True)(local.params)
        updates, optimizer_state = optimizer.update(gradient, local.optimizer, local.params)
        params = optax.apply_updates(local.params, updates)
        return _Training(params, optimizer_state, add_metrics(local.metrics, told), local.state)

    def finish(broadcast, info, local):
        return plain.finish(broadcast, info, local)._replace(state=local.params)

    return ClientTrainer(lambda broadcast, key: broadcast.params, start, step, finish)


def contrastive_loss(
    own: Float[Array, "batch ... width"],
    received: Float[Array, "batch ... width"],
    last: Float[Array, "batch ... width"],
    temperature: float | Array,
) -> Float[Array, " batch"]:
    """l_con of each example, in float32: log(1 + exp((sim(z, z_prev) - sim(z, z_glob)) / tau))."""
    own, received, last = (_unit(values.astype(jnp.float32)) for values in (own, received, last))
    nearer_last = (own * (last - received)).sum(-1)
    each = jax.nn.softplus(nearer_last / temperature)
    return each.mean(tuple(range(1, each.ndim)))


def _unit(values: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Vectors of length 1; that of zeros stays, and has a gradient."""
    return values * jax.lax.rsqrt(jnp.maximum(jnp.square(values).sum(-1, keepdims=True), 1e-16))
