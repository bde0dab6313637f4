"""Next token, classification, regression: what is to be predicted stands in the batch."""

from collections.abc import Sequence

import jax.numpy as jnp

from fedjax_tx import check
from fedjax_tx.tasks.parts import (
    check_arguments,
    check_inputs,
    check_padding,
    cross_entropy,
    is_right,
    mean_of_real,
    read_column,
    read_inputs,
    read_labels,
    read_real,
    read_tokens,
    with_model,
)
from fedjax_tx.tasks.scores import auroc, calibration_error, f1, perplexity, recall
from fedjax_tx.types import Model, Task


def next_token(model: Model, *, pad_id: int | None = None, valid: str | None = None, column: str = "tokens") -> Task:
    """Returns the task of predicting each token from those before it, by cross-entropy.

    Args:
      model: ``apply(params, tokens[batch, time], key=) -> logits[batch, time, vocab]``.
      pad_id: the token of the vocabulary that fills up short texts and is no target, wherever it stands; or
      valid: the column [batch, time + 1] that is True or 1 where a token is no padding, as ``ftx.data.encode_texts`` makes it.
        Padding stands behind its text, where a causal model does not see it. With neither, every target counts.
      column: the batch's column of integers [batch, time + 1]; inputs are all but the last, targets all but the first.

    Loss and ``accuracy`` are means over an example's real targets, and the weight is their share of ``time``. ``perplexity`` is
    exp of the loss: of that over all examples of an evaluation set, and in the clients' percentiles of each client's own.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value; in use, the batch lacks the
        column, the column is not of integers [batch, time + 1], or the model has no token ``pad_id``.

    Example:
      >>> import jax
      >>> from fedjax_tx.models import decoder
      >>> task = next_token(decoder(vocab_size=10), pad_id=0)
      >>> params, frozen = task.init(jax.random.key(0))
      >>> batch = {"tokens": jnp.array([[5, 6, 7, 0, 0]])}
      >>> value, weight = task.loss(task.apply(params, frozen, batch, None), batch)
      >>> weight.tolist()
      [0.5]
    """
    check_arguments(model, column=column)
    check_padding(pad_id, valid)

    def read(batch):
        tokens = read_tokens(batch, column)
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            check.fail_value(f"column {column!r}", "of shape [batch, time + 1] with time >= 1", tokens.shape)
        return tokens

    def average(score, outputs, batch):
        tokens, logits = read(batch), outputs["logits"]
        if pad_id is not None and pad_id >= logits.shape[-1]:
            check.fail_value("pad_id", f"< {logits.shape[-1]}, the number of tokens that the model has", pad_id)
        real = read_real(batch, tokens, pad_id, valid)[:, 1:]
        return mean_of_real(score(logits, tokens[:, 1:]), real)

    def loss(outputs, batch):
        return average(cross_entropy, outputs, batch)

    def metrics(outputs, batch):
        return {"accuracy": average(is_right, outputs, batch), "perplexity": perplexity(*loss(outputs, batch))}

    return Task(**with_model(model, lambda batch: read(batch)[:, :-1]), loss=loss, metrics=metrics, labels=(column,))


def classification(
    model: Model,
    *,
    inputs: str | Sequence[str] = "x",
    labels: str = "y",
    num_classes: int | None = None,
    num_bins: int = 15,
) -> Task:
    """Returns the task of naming each example's class, by cross-entropy, with the metric ``accuracy``.

    With ``num_classes`` evaluation has more: ``recall``, the mean over classes (balanced accuracy) beside ``recall/class_0`` ...
    of each, ``f1`` likewise (macro F1), ``calibration_error``, the expected calibration error (arXiv 1706.04599), and with two
    classes ``auroc``, the area under the ROC curve, from a histogram of scores (see ``tasks/scores.py`` for its resolution). All
    are made from what is pooled over all examples of an evaluation set; in the clients' percentiles, from each client's own,
    where one who has a single class has no ``auroc``.

    Args:
      model: ``apply(params, inputs[batch, ...], key=) -> logits[batch, classes]``.
      inputs: the batch's column that the model reads, or a list of columns, which the model gets as a dict by name, such as
        ``["tokens", "valid"]``.
      labels: the batch's column of integers [batch], 0 to classes - 1, or of booleans.
      num_classes: how many classes the model's logits have, for the metrics by class and by confidence; by default without.
      num_bins: bins of equal width for the confidence.

    Raises:
      TypeError, ValueError: an argument is of the wrong type; in use, a column is missing, labels or logits are not of the
        type and shape told above, or logits have another number of classes.

    Example:
      >>> model = Model(lambda key: jnp.zeros((3, 2)), lambda params, x, key=None: x @ params)
      >>> task = classification(model)
      >>> batch = {"x": jnp.ones((4, 3)), "y": jnp.array([0, 1, 1, 0])}
      >>> value, weight = task.loss(task.apply(jnp.zeros((3, 2)), (), batch, None), batch)
      >>> bool(jnp.allclose(value, jnp.log(2.0)))
      True
      >>> weight.tolist()
      [1.0, 1.0, 1.0, 1.0]
    """
    check_arguments(model, labels=labels)
    check_inputs(inputs)
    if num_classes is not None:
        check.integer("num_classes", num_classes, low=2)
    check.integer("num_bins", num_bins, low=1)

    def loss(outputs, batch):
        value = cross_entropy(outputs["logits"], read_labels(batch, labels, outputs["logits"]))
        return value, jnp.ones_like(value)

    def metrics(outputs, batch):
        logits, wanted = outputs["logits"], read_labels(batch, labels, outputs["logits"])
        value = is_right(logits, wanted)
        metrics = {"accuracy": (value, jnp.ones_like(value))}
        if num_classes is None:
            return metrics
        if logits.shape[-1] != num_classes:
            check.fail_value("the model's logits", f"of {num_classes} classes, as num_classes says", logits.shape)
        metrics |= {"recall": recall(logits, wanted), "f1": f1(logits, wanted)}
        if num_classes == 2:
            metrics["auroc"] = auroc(logits, wanted)
        return metrics | {"calibration_error": calibration_error(logits, wanted, num_bins)}

    return Task(**with_model(model, lambda batch: read_inputs(batch, inputs)), loss=loss, metrics=metrics, labels=(labels,))


def regression(model: Model, *, inputs: str | Sequence[str] = "x", targets: str = "y") -> Task:
    """Returns the task of predicting numbers, by mean squared error over an example's targets; it has no other metric.

    Args:
      model: ``apply(params, inputs[batch, ...], key=) -> predictions`` of the targets' shape (the output ``logits``).
      inputs: the batch's column that the model reads, or a list of columns, which it gets as a dict by name.
      targets: the batch's column of numbers [batch, ...].

    Raises:
      TypeError, ValueError: an argument is of the wrong type; in use, the batch lacks a column or the shapes differ.

    Example:
      >>> model = Model(lambda key: jnp.zeros(3), lambda params, x, key=None: x @ params)
      >>> batch = {"x": jnp.ones((2, 3)), "y": jnp.array([1.0, 2.0])}
      >>> task = regression(model)
      >>> value, weight = task.loss(task.apply(jnp.zeros(3), (), batch, None), batch)
      >>> value.tolist()
      [1.0, 4.0]
    """
    check_arguments(model, targets=targets)
    check_inputs(inputs)

    def loss(outputs, batch):
        predictions, wanted = outputs["logits"], read_column(batch, targets)
        if predictions.shape != jnp.shape(wanted):
            check.fail_value("the model's output", f"of {targets!r}'s shape {jnp.shape(wanted)}", predictions.shape)
        errors = jnp.square(predictions.astype(jnp.float32) - wanted)
        value = jnp.mean(errors, axis=tuple(range(1, errors.ndim)))
        return value, jnp.ones_like(value)

    def metrics(outputs, batch):
        return {}

    return Task(**with_model(model, lambda batch: read_inputs(batch, inputs)), loss=loss, metrics=metrics)
