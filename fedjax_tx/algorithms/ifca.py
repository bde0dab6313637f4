"""Clustered training: Ghosh et al., "An Efficient Framework for Clustered Federated Learning" (IFCA).

arXiv 2006.04088, Algorithm 1 with model averaging; HypCluster of arXiv 2002.10619 is the same method. The server holds K models
theta_1 ... theta_K and sends them all. Client i takes the one that fits its own data best and trains it,

    j_i = argmin_j F_i(theta_j),        theta_i' = local steps on F_i from theta_{j_i},

and each model is averaged over the clients that took it, those of S_j = {i in S: j_i = j}:

    theta_j <- theta_j - sum_{i in S_j} n_i (theta_j - theta_i') / sum_{i in S_j} n_i.

A model that nobody took stays as it is. With K = 1 this is federated averaging. Where we deviate: clients are weighted by their
numbers of examples, as in FedAvg (the paper writes a plain mean), and the average is handed to a server optimiser, one for each
model, as in ``fed_avg``.

A round has two passes. The first measures the K losses on all of a client's examples, without dropout, and stores the choice as
the client's state; the second trains.

Evaluation never lets the data that it scores choose the model. A client is scored with the model that it chose at its last
training round, on its training data. One that never took part has no choice; it gets what a server would hand to a stranger, the
model that most clients took in the last round (the first model before any round). The metric ``cluster_known`` tells the share of
examples of clients with a choice of their own, and ``cluster`` of each client says which model scored it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_tx import check, prng, tree
from fedjax_tx.aggregation import mean, nothing
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import (
    ModelBroadcast,
    add_metrics,
    batch_loss,
    client_weight,
    local_evaluation,
    local_sgd,
    whole_data,
)
from fedjax_tx.types import ClientResult, ClientTrainer, FederatedAlgorithm, Metrics, Pass, PyTree, Task

_NO_CHOICE = -1


def ifca(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    num_clusters: int,
    server_optimizer: optax.GradientTransformation | None = None,
) -> FederatedAlgorithm:
    """Trains K models, each on the clients whose data it fits best.

    Parameters have a leading axis: ``[num_clusters, ...]``, also those of ``init_params`` and of ``result.params``. The first
    models are drawn from the task with different keys; a task that starts at fixed parameters (a pretrained model) gives K equal
    models that never part, so give it ``init_params`` that differ.

    Args:
      task: what is learned. client_optimizer: starts anew at each client in each round.
      num_clusters: K >= 1. server_optimizer: keeps a state for each model; by default ``optax.sgd(1.0)``.

    Client metrics: ``cluster``, the model taken; ``chosen_loss``, its loss before training; ``loss`` on the way. The server says
    ``cluster_clients`` [num_clusters]: how many clients took each.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> algorithm = ifca(ftx.tasks.next_token(model), client_optimizer=optax.sgd(0.1), num_clusters=3)
      >>> len(algorithm.passes)
      2
    """
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    num_clusters = check.integer("num_clusters", num_clusters, low=1)
    for_each = optax.GradientTransformation(jax.vmap(server_optimizer.init), jax.vmap(server_optimizer.update))

    def init_models(key):
        keys = [key] + [prng.fold(key, "cluster", number) for number in range(1, num_clusters)]
        models = [task.init(one)[0] for one in keys]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models), task.init(key)[1]

    def init(key, init_params=None):
        server = init_server(task._replace(init=init_models), for_each)(key, init_params)
        return server._replace(extra=jnp.zeros(num_clusters))

    def keep_counts(state, aggregate, key):
        return state._replace(extra=aggregate["clients"]), {"cluster_clients": aggregate["clients"]}

    choosing = Pass(choose_cluster(task, num_clusters), nothing(), broadcast_model, keep_counts, whole_data, _all_models)
    training = Pass(train_chosen(task, client_optimizer), mean(), broadcast_model, step_chosen(for_each), travels=_chosen_model)
    evaluation = Pass(evaluate_chosen(task), nothing(), _broadcast_popular, lambda state, aggregate, key: (state, {}))
    return FederatedAlgorithm(init, (choosing, training), evaluation)


def _all_models(broadcast, message):
    """A client receives all models, and says its choice with what it has trained."""
    return broadcast, ()


def _chosen_model(broadcast, message):
    """The models are there already; the model trained and its number go back."""
    return (), (tree.take(message["delta"], 0), jnp.int32(0))


class _Choosing(NamedTuple):
    losses: Metrics
    choice: jax.Array


def choose_cluster(task: Task, num_clusters: int) -> ClientTrainer:
    """A client that finds the model of least loss on its examples; its state is the choice. A tie goes to the first.

    A client without an example keeps the choice that it had. The update counts: ``{"clients": one-hot [num_clusters]}``.
    """

    def start(broadcast, info, state):
        losses = {"loss": (jnp.zeros(num_clusters), jnp.zeros(num_clusters))}
        return _Choosing(losses, state)

    def step(broadcast, info, local, batch, mask, key):
        def loss(params):
            return batch_loss(task, params, broadcast.frozen, batch, mask, None)

        # One model after another: K copies of a Transformer's activations would cost more than they save.
        losses = jax.lax.map(loss, broadcast.params)
        return local._replace(losses=add_metrics(local.losses, {"loss": losses}))

    def finish(broadcast, info, local):
        losses, _ = local.losses["loss"]
        best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses)).astype(jnp.int32)  # argmin takes nan for the least
        choice = jnp.where(info.num_steps > 0, best, local.choice)
        weight = client_weight(info)
        metrics = {
            "cluster": (choice.astype(jnp.float32), (weight > 0).astype(jnp.float32)),
            "chosen_loss": (losses[best], weight),
        }
        return ClientResult({"clients": jax.nn.one_hot(choice, num_clusters)}, weight, choice, metrics)

    return ClientTrainer(lambda broadcast, key: jnp.int32(_NO_CHOICE), start, step, finish)


def train_chosen(task: Task, optimizer: optax.GradientTransformation) -> ClientTrainer:
    """A client that trains the model which its state names.

    The update is ``{"delta": [num_clusters, ...], "mass": [num_clusters]}``, 0 but for that model, whose mass is 1.
    """
    inner = local_sgd(task, optimizer)

    def chosen(broadcast, choice):
        return ModelBroadcast(tree.take(broadcast.params, choice), broadcast.frozen)

    def start(broadcast, info, state):
        return inner.start(chosen(broadcast, state), info, state)

    def finish(broadcast, info, local):
        choice = local.state
        result = inner.finish(chosen(broadcast, choice), info, local)
        delta = tree.put(jax.tree.map(jnp.zeros_like, broadcast.params), choice, result.update["delta"])
        num_clusters = jax.tree.leaves(broadcast.params)[0].shape[0]
        return result._replace(update={"delta": delta, "mass": jax.nn.one_hot(choice, num_clusters)})

    return ClientTrainer(lambda broadcast, key: jnp.int32(_NO_CHOICE), start, inner.step, finish)


def step_chosen(for_each: optax.GradientTransformation):
    """Returns ``combine``: an optimiser step of each model that somebody took, with the mean over those who did."""
    step_all = optax_server(for_each)

    def combine(state, aggregate, key):
        mass = aggregate["mass"]
        taken = mass > 0

        def rows(values, leaf):
            return values.reshape(-1, *[1] * (leaf.ndim - 1))

        share = jnp.where(taken, mass, 1)
        delta = jax.tree.map(lambda leaf: leaf / rows(share, leaf), aggregate["delta"])
        stepped, info = step_all(state, {"delta": delta}, key)

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(rows(taken, a), a, b), new, old)

        params, optimizer = keep((stepped.params, stepped.optimizer), (state.params, state.optimizer))
        return state._replace(params=params, optimizer=optimizer), info

    return combine


class _PopularBroadcast(NamedTuple):
    models: ModelBroadcast
    popular: jax.Array


def _broadcast_popular(state) -> _PopularBroadcast:
    return _PopularBroadcast(broadcast_model(state), jnp.argmax(state.extra).astype(jnp.int32))


class _Scoring(NamedTuple):
    choice: jax.Array
    inner: PyTree


def evaluate_chosen(task: Task) -> ClientTrainer:
    """A client scored with the model that it chose when it trained; without a choice, with the most popular one."""
    inner = local_evaluation(task)

    def served(broadcast, choice):
        return ModelBroadcast(tree.take(broadcast.models.params, choice), broadcast.models.frozen)

    def start(broadcast, info, state):
        choice = jnp.where(state == _NO_CHOICE, broadcast.popular, state)
        return _Scoring(choice, inner.start(served(broadcast, choice), info, state))

    def step(broadcast, info, local, batch, mask, key):
        return local._replace(inner=inner.step(served(broadcast, local.choice), info, local.inner, batch, mask, key))

    def finish(broadcast, info, local):
        result = inner.finish(served(broadcast, local.choice), info, local.inner)
        known = (result.state != _NO_CHOICE).astype(jnp.float32)
        told = {"cluster": local.choice.astype(jnp.float32), "cluster_known": known}
        return result._replace(metrics={**result.metrics, **{name: (value, result.weight) for name, value in told.items()}})

    return ClientTrainer(lambda broadcast, key: jnp.int32(_NO_CHOICE), start, step, finish, task)
