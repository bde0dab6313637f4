"""Unbalanced classes: what training looks at instead of the plain loss. Evaluation stays as it is.

Each function takes a classification task and changes what it gives in *training*, where ``apply`` has a key: its logits, or how
much an example's loss counts. In evaluation (``key=None``) the task is what it was, so losses, accuracies and calibration of all
of them compare. Where an algorithm looks at a loss without training on it (IFCA's choice, q-FedAvg's), that is the plain one too.

FedLC and FedRS need the class counts of the very client that trains. They read them from the batch's column ``class_counts``,
which is there in training when the cohorts bring it along::

    counts = ftx.data.class_counts(train, num_classes=10)                                # [client, class]
    cohorts = ftx.data.with_covariates(ftx.data.uniform_cohorts(10), class_counts=counts)
    task = ftx.tasks.fed_lc(ftx.tasks.classification(model), tau=1.0)
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from fedjax_tx import check
from fedjax_tx.tasks.parts import cross_entropy, read_labels
from fedjax_tx.types import Batch, Task

_COUNTS = "class_counts"
_LEAST_COUNT = 1e-8  # of a class that a client lacks: its margin under FedLC is 100 tau, which leaves it out of the softmax


def logit_adjusted(task: Task, counts: ArrayLike, tau: Any = 1.0) -> Task:
    """Adds tau * log(prior) to the logits in training, so that the plain logits are those of balanced classes.

    Menon et al., "Long-tail learning via logit adjustment", arXiv 2007.07314, eq. 10, with the prior of all clients' data:
    the loss is the cross-entropy of f_y(x) + tau log pi_y.

    Args:
      task: gives ``logits`` [..., class]. counts: [class] > 0, how often each class is there, as numbers or as shares.
      tau: >= 0; 0 is the plain task.

    Errors: ``TypeError``, ``ValueError`` for arguments that aren't such; in use, for logits of another number of classes.

    Example:
      >>> from fedjax_tx.models import decoder
      >>> from fedjax_tx.tasks import next_token
      >>> adjusted = logit_adjusted(next_token(decoder(vocab_size=3)), counts=[6, 3, 1])
    """
    check.instance("task", task, Task, "a Task")
    shares = _read_classes("counts", counts, positive=True)
    log_prior = np.log(shares / shares.sum()).astype(np.float32)
    check.number("tau", tau, low=0)
    return _with_logits(task, lambda logits, batch: logits + tau * _one_a_class("counts", log_prior, logits))


def fed_lc(task: Task, tau: Any) -> Task:
    """FedLC: at each client, a class's logit is lowered by tau * n^(-1/4), n being how often the client has the class.

    Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration", arXiv 2209.00189:
    the loss is the cross-entropy of f_y(x) - tau n_y^(-1/4). A class that the client lacks leaves the softmax, for all that
    matters: it counts as 1e-8 of an example.

    Args:
      task: gives ``logits`` [batch, class]. tau: >= 0; 0 is the plain task.

    Errors: in training, ``ValueError`` if the cohorts bring no ``class_counts`` (see ``ftx.data.with_covariates``).

    Example:
      >>> from fedjax_tx.types import Model
      >>> from fedjax_tx.tasks import classification
      >>> model = Model(lambda key: jnp.zeros((3, 2)), lambda params, x, key=None: x @ params)
      >>> batch = {"x": jnp.ones((1, 3)), "class_counts": jnp.array([[1, 16]])}
      >>> fed_lc(classification(model), tau=1.0).apply(jnp.zeros((3, 2)), (), batch, "a key")["logits"].tolist()
      [[-1.0, -0.5]]
    """
    check.instance("task", task, Task, "a Task")
    check.number("tau", tau, low=0)

    def lower(logits, batch):
        counts = _own_counts(batch, logits).astype(jnp.float32)
        return logits - tau * jnp.maximum(counts, _LEAST_COUNT) ** -0.25

    return _with_logits(task, lower)


def fed_rs(task: Task, alpha: Any) -> Task:
    """FedRS: at each client, the logits of classes that it lacks are scaled by alpha, so that they are pushed down less.

    Li and Zhan, "FedRS: Federated Learning with Restricted Softmax for Label Distribution Non-IID Data", KDD 2021: the loss is
    the cross-entropy of alpha_y f_y(x), where alpha_y is 1 for the client's own classes and alpha for the others.

    Args:
      task: gives ``logits`` [batch, class]. alpha: 0 to 1; 1 is the plain task.

    Errors: in training, ``ValueError`` if the cohorts bring no ``class_counts`` (see ``ftx.data.with_covariates``).

    Example:
      >>> from fedjax_tx.types import Model
      >>> from fedjax_tx.tasks import classification
      >>> model = Model(lambda key: jnp.ones((3, 2)), lambda params, x, key=None: x @ params)
      >>> batch = {"x": jnp.ones((1, 3)), "class_counts": jnp.array([[4, 0]])}
      >>> fed_rs(classification(model), alpha=0.5).apply(jnp.ones((3, 2)), (), batch, "a key")["logits"].tolist()
      [[3.0, 1.5]]
    """
    check.instance("task", task, Task, "a Task")
    check.number("alpha", alpha, low=0, high=1)
    return _with_logits(task, lambda logits, batch: logits * jnp.where(_own_counts(batch, logits) > 0, 1.0, alpha))


def class_weighted(task: Task, weights: ArrayLike, *, labels: str = "y") -> Task:
    """Multiplies each example's training loss by the weight of its class.

    The loss, not the weight that it has in means: a batch's gradient is then an unbiased part of that of all data, whatever
    classes are in the batch (of a mean weighted by class, a batch of one example would not feel the weights at all).

    Args:
      task: gives ``logits`` [batch, class]. weights: [class], >= 0, such as ``effective_number_weights`` gives; all 1 is the
        plain task. labels: the batch's column of classes, [batch].

    Errors: ``TypeError``, ``ValueError`` for arguments that aren't such; in use, for logits of another shape.

    Example:
      >>> from fedjax_tx.types import Model
      >>> from fedjax_tx.tasks import classification
      >>> model = Model(lambda key: jnp.zeros((3, 2)), lambda params, x, key=None: x @ params)
      >>> weighted = class_weighted(classification(model), [0.5, 2.0])
    """
    check.instance("task", task, Task, "a Task")
    array = _read_classes("weights", weights).astype(np.float32)
    check.instance("labels", labels, str, "the name of a column")

    def factor(logits, batch):
        return _one_a_class("weights", array, logits)[read_labels(batch, labels, logits)]

    return _with_factor(task, "class_weight", factor)


def focal(task: Task, gamma: Any, *, labels: str = "y") -> Task:
    """Multiplies each example's training loss by (1 - p)^gamma, p being the probability that its class is given.

    Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, eq. 4. Class weights, the paper's alpha, go around it:
    ``class_weighted(focal(task, 2.0), weights)``.

    Args:
      task: gives ``logits`` [batch, class]. gamma: >= 0; 0 is the plain task. labels: the batch's column of classes.

    Example:
      >>> from fedjax_tx.types import Model
      >>> from fedjax_tx.tasks import classification
      >>> model = Model(lambda key: jnp.zeros((3, 2)), lambda params, x, key=None: x @ params)
      >>> task, batch = focal(classification(model), gamma=2.0), {"x": jnp.ones((1, 3)), "y": jnp.array([0])}
      >>> value, weight = task.loss(task.apply(jnp.zeros((3, 2)), (), batch, "a key"), batch)
      >>> bool(jnp.allclose(value, 0.25 * jnp.log(2)))
      True
    """
    check.instance("task", task, Task, "a Task")
    check.number("gamma", gamma, low=0)
    check.instance("labels", labels, str, "the name of a column")

    def factor(logits, batch):
        missing = -jnp.expm1(-cross_entropy(logits, read_labels(batch, labels, logits)))
        # Of 0 the power has no finite derivative where gamma < 1.
        return jnp.maximum(missing, jnp.finfo(jnp.float32).eps) ** gamma

    return _with_factor(task, "focal_factor", factor)


def effective_number_weights(counts: ArrayLike, beta: float) -> np.ndarray:
    """Weights of classes by their effective numbers of examples; they sum to the number of classes that occur.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", arXiv 1901.05555: w_y is in proportion to
    (1 - beta) / (1 - beta^n_y). beta = 0 gives 1 to each, beta -> 1 the inverse frequencies.

    Args:
      counts: [class] >= 0, of all clients. A class without examples has weight 0. beta: 0 <= beta < 1, such as 0.999.

    Example:
      >>> effective_number_weights([1, 2, 0], beta=0.5).round(3).tolist()
      [1.2, 0.8, 0.0]
    """
    array = _read_classes("counts", counts)
    if not check.number("beta", beta, low=0) < 1:
        check.fail_value("beta", "< 1", beta)
    held = -np.expm1(array * np.log(beta)) if beta > 0 else np.sign(array)
    return _inverses(held)


def inverse_frequency_weights(counts: ArrayLike) -> np.ndarray:
    """Weights of classes in proportion to 1 / n_y; they sum to the number of classes that occur, and one without has 0.

    Args:
      counts: [class] >= 0, of all clients.

    Example:
      >>> inverse_frequency_weights([1, 3, 0]).tolist()
      [1.5, 0.5, 0.0]
    """
    return _inverses(_read_classes("counts", counts))


def _inverses(held: np.ndarray) -> np.ndarray:
    inverse = np.where(held > 0, 1 / np.where(held > 0, held, 1), 0)
    return inverse * (held > 0).sum() / inverse.sum()


def _with_logits(task: Task, change: Callable[[Array, Batch], Array]) -> Task:
    """The task whose logits are ``change(logits, batch)`` in training."""

    def apply(trainable, frozen, batch, key) -> Mapping[str, Array]:
        outputs = task.apply(trainable, frozen, batch, key)
        return outputs if key is None else {**outputs, "logits": change(outputs["logits"], batch)}

    return task._replace(apply=apply)


def _with_factor(task: Task, name: str, factor: Callable[[Array, Batch], Float[Array, " batch"]]) -> Task:
    """The task whose loss is multiplied by ``factor(logits, batch)`` in training.

    The output ``name`` holds it, as a tuple: those of tasks within, made by the same function, follow it.
    """

    def apply(trainable, frozen, batch, key) -> Mapping[str, Any]:
        outputs = task.apply(trainable, frozen, batch, key)
        return outputs if key is None else {**outputs, name: (factor(outputs["logits"], batch), *outputs.get(name, ()))}

    def loss(outputs, batch):
        own, within = outputs.get(name, ())[:1], outputs.get(name, ())[1:]
        value, weight = task.loss({**outputs, name: within}, batch)
        return (value * own[0] if own else value), weight

    return task._replace(apply=apply, loss=loss)


def _own_counts(batch: Batch, logits: Array) -> Array:
    if _COUNTS not in batch:
        expected = f"to bring {_COUNTS!r} of each client along: ftx.data.with_covariates(cohorts, {_COUNTS}=...)"
        check.fail_value("the cohorts", expected, sorted(batch))
    if batch[_COUNTS].shape != logits.shape:
        check.fail_value(_COUNTS, f"of shape [batch, class] = {logits.shape}, as the logits", batch[_COUNTS].shape)
    return batch[_COUNTS]


def _one_a_class(name: str, values: np.ndarray, logits: Array) -> Array:
    if logits.shape[-1] != values.size:
        check.fail_value(name, f"to have {logits.shape[-1]} entries, one for each class of the logits", f"{values.size} entries")
    return jnp.asarray(values)


def _read_classes(name: str, values: ArrayLike, positive: bool = False) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        check.fail_type(name, "an array of numbers, one for each class", values)
    if array.ndim != 1 or array.size < 2:
        check.fail_value(name, "to have shape [class], at least two", array.shape)
    for value in array[~np.isfinite(array) | (array < 0) | (positive & (array == 0))][:1].tolist():
        check.fail_value(name, f"to be finite and {'> 0' if positive else '>= 0'}", value)
    if not array.any():
        check.fail_value(name, "not to be 0 for every class", values)
    return array.astype(np.float64)
