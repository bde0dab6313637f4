"""Calibration of a trained classifier: Luo et al., "No Fear of Heterogeneity: Classifier Calibration for Federated Learning
with Non-IID Data" (CCVR, classifier calibration with virtual representations).

arXiv 2106.05001, section 4.2. After training, client k sends of each class c how many examples it has, n_ck, and the mean and
covariance of their features (what enters the head), mu_ck and S_ck. The server pools them exactly,

    n_c = sum_k n_ck,     mu_c = sum_k n_ck / n_c mu_ck,
    S_c = sum_k (n_ck - 1) / (n_c - 1) S_ck + sum_k n_ck / (n_c - 1) mu_ck mu_ck^T - n_c / (n_c - 1) mu_c mu_c^T,

draws as many virtual features of each class from N(mu_c, S_c), and trains the head on them, from where it was.

A client's share of these sums is what it sends here: n_ck, n_ck mu_ck and (n_ck - 1) S_ck + n_ck mu_ck mu_ck^T. These are as many
numbers and the same knowledge, and they can be added as they come, behind a secure sum too. It is one round, over all clients, at
the parameters of a run::

    calibrated = ftx.run(dataclasses.replace(experiment, make_algorithm=ccvr(...), cohorts=ftx.data.all_clients()), rounds=1,
                         init_params=result.params)

Sums of products are in float32: a feature's variance is good to about 1e-6 of its mean square.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from fedjax_tx import check, prng, tree
from fedjax_tx.aggregation import total
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server
from fedjax_tx.clients import client_weight, whole_data
from fedjax_tx.tasks import classification
from fedjax_tx.tasks.parts import cross_entropy
from fedjax_tx.types import ClientResult, ClientTrainer, FederatedAlgorithm, Model, Pass, PyTree, Task


class ClassSums(NamedTuple):
    """Of the features of each class: how many there are, their sum, and the sum of their outer products."""

    num_examples: Float[Array, " class"]
    total: Float[Array, "class feature"]
    products: Float[Array, "class feature feature"]


class ClassGaussians(NamedTuple):
    """Each class's features as a normal distribution, and how many examples it is taken from."""

    num_examples: Float[Array, " class"]
    mean: Float[Array, "class feature"]
    covariance: Float[Array, "class feature feature"]


class _Local(NamedTuple):
    sums: ClassSums
    state: PyTree


def ccvr(
    task: Task,
    features: Model,
    optimizer: optax.GradientTransformation,
    *,
    samples_per_class: int = 1000,
    num_steps: int = 500,
    batch_size: int = 128,
    head: str = "head",
    inputs: str | Sequence[str] = "x",
    labels: str = "y",
) -> FederatedAlgorithm:
    """Trains the head of a trained classifier anew, on features drawn from what clients tell of theirs; one round.

    Args:
      task: the classification whose parameters hold the head ``{"kernel": [feature, class], "bias": [class]}`` among those
        that are trained. features: takes all of the model's parameters and gives what enters the head, [batch, feature]:
        ``ftx.models.features(model)``. optimizer: trains the head at the server.
      samples_per_class: virtual features of each class. num_steps, batch_size: steps on random batches of them.
      head: its name in the parameters. inputs, labels: columns of a batch, as for ``ftx.tasks.classification``.

    Round info: ``virtual_loss``, the head's loss on all virtual features in the end, and ``virtual_loss_before``.

    Errors: ``TypeError``, ``ValueError`` for arguments that aren't such, or parameters without such a head.

    Example:
      >>> import fedjax_tx as ftx
      >>> def init(key):
      ...     return {"body": jnp.eye(3), "head": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
      >>> body = ftx.Model(init, lambda p, x, *, key=None: x @ p["body"])
      >>> whole = ftx.Model(init, lambda p, x, *, key=None: x @ p["body"] @ p["head"]["kernel"] + p["head"]["bias"])
      >>> algorithm = ccvr(ftx.tasks.classification(whole), body, optax.sgd(0.1, momentum=0.9))
    """
    check.instance("task", task, Task, "a Task")
    check.instance("features", features, Model, "a Model(init, apply)")
    check.instance("optimizer", optimizer, optax.GradientTransformation, "an optax optimiser")
    for name, value in {"samples_per_class": samples_per_class, "num_steps": num_steps, "batch_size": batch_size}.items():
        check.integer(name, value, low=1)
    shape = _head_shape(task, head)
    reader = classification(features, inputs=inputs, labels=labels)

    def combine(state, aggregate, key):
        gaussians = pool(ClassSums(*aggregate["statistics"]))
        drawn, classes = draw(gaussians, samples_per_class, prng.fold(key, "features"))
        own = state.params[head]
        seen = (gaussians.num_examples > 0)[classes].astype(jnp.float32)
        steps = prng.fold(key, "steps")
        trained = _train(own, optimizer, drawn, classes, seen, num_steps, batch_size, steps)
        told = {
            "virtual_loss_before": _mean_loss(own, drawn, classes, seen),
            "virtual_loss": _mean_loss(trained, drawn, classes, seen),
        }
        return state._replace(params={**state.params, head: trained}), told

    telling = Pass(class_sums(reader, labels, *shape), total(), broadcast_model, combine, whole_data)
    return FederatedAlgorithm(init_server(task, optax.identity()), (telling,), model_evaluation(task))


def class_sums(reader: Task, labels: str, num_features: int, num_classes: int) -> ClientTrainer:
    """A client that sums its features by class at the server's parameters, without dropout; it makes no step.

    Args:
      reader: its ``apply`` gives the features as ``logits`` [batch, feature], from all of the parameters as one tree.
    """

    def start(broadcast, info, state):
        by_class = jnp.zeros((num_classes, num_features))
        return _Local(ClassSums(jnp.zeros(num_classes), by_class, jnp.zeros((*by_class.shape, num_features))), state)

    def step(broadcast, info, local, batch, mask, key):
        params = tree.join(broadcast.params, broadcast.frozen)
        values = reader.apply(params, (), batch, None)["logits"].astype(jnp.float32)
        if values.shape[1:] != (num_features,):
            check.fail_value("features", f"to give [batch, {num_features}], what the head takes", values.shape)
        values = jnp.where(mask[:, None], values, 0)  # of what is masked not even a NaN is seen
        of_class = jax.nn.one_hot(batch[labels], num_classes) * mask[:, None]
        products = jnp.einsum("bc,bi,bj->cij", of_class, values, values)
        added = ClassSums(of_class.sum(0), of_class.T @ values, products)
        return local._replace(sums=jax.tree.map(jnp.add, local.sums, added))

    def finish(broadcast, info, local):
        return ClientResult({"statistics": local.sums}, client_weight(info), local.state, {})

    return ClientTrainer(lambda broadcast, key: (), start, step, finish)


def pool(sums: ClassSums) -> ClassGaussians:
    """Returns mean and covariance (over n - 1) of each class; 0 of a class without examples, and the covariance of one.

    Example:
      >>> sums = ClassSums(jnp.array([2.0]), jnp.array([[4.0]]), jnp.array([[[10.0]]]))  # the features 1 and 3
      >>> [part.item() for part in pool(sums)]
      [2.0, 2.0, 2.0]
    """
    count = sums.num_examples[:, None]
    mean = sums.total / jnp.maximum(count, 1)
    spread = sums.products - count[..., None] * mean[:, :, None] * mean[:, None, :]
    return ClassGaussians(
        sums.num_examples, mean, jnp.where(count[..., None] > 1, spread / jnp.maximum(count[..., None] - 1, 1), 0)
    )


def draw(
    gaussians: ClassGaussians, samples_per_class: int, key: Key[Array, ""]
) -> tuple[Float[Array, "sample feature"], Int[Array, " sample"]]:
    """Returns virtual features and their classes, as many of each class."""
    # By eigenvectors: a covariance of fewer examples than features has no Cholesky factor. One class after another: a batch of
    # them waits for threads of the pool that it runs on, for ever where each core is a device (JAX 0.10.2).
    values, vectors = jax.lax.map(jnp.linalg.eigh, gaussians.covariance)
    roots = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]
    num_classes, num_features = gaussians.mean.shape
    noise = jax.random.normal(key, (num_classes, samples_per_class, num_features))
    drawn = gaussians.mean[:, None, :] + jnp.einsum("csj,cij->csi", noise, roots)
    return drawn.reshape(-1, num_features), jnp.repeat(jnp.arange(num_classes), samples_per_class)


def _train(head, optimizer, drawn, classes, seen, num_steps, batch_size, key):
    def step(number, carry):
        head, state = carry
        rows = jax.random.randint(prng.fold(key, number), (batch_size,), 0, classes.shape[0])
        gradient = jax.grad(_mean_loss)(head, drawn[rows], classes[rows], seen[rows])
        updates, state = optimizer.update(gradient, state, head)
        return optax.apply_updates(head, updates), state

    trained, _ = jax.lax.fori_loop(0, num_steps, step, (head, optimizer.init(head)))
    return trained


def _mean_loss(head: PyTree, drawn, classes, seen) -> Float[Array, ""]:
    """The head's loss on features, those of classes of which clients told nothing left out."""
    losses = cross_entropy(drawn @ head["kernel"] + head["bias"], classes)
    return (losses * seen).sum() / jnp.maximum(seen.sum(), 1)


def _head_shape(task: Task, head: str) -> tuple[int, int]:
    """(features, classes) of the head, once it is found to be one."""
    check.instance("head", head, str, "a name in the parameters")
    trainable, _ = jax.eval_shape(task.init, jax.random.key(0))
    check.one_of("head", head, list(check.mapping("the task's trained parameters", trainable)))
    own = {name: leaf.shape for name, leaf in trainable[head].items()} if isinstance(trainable[head], dict) else {}
    if set(own) != {"kernel", "bias"} or len(own["kernel"]) != 2 or own["bias"] != own["kernel"][1:]:
        check.fail_value(f"the parameters {head!r}", "to be a kernel [feature, class] and a bias [class]", own)
    return own["kernel"]
