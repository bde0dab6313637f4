"""What is learned: a model becomes a ``Task`` by naming the columns of a batch, the loss and the metrics.

Losses and metrics come as (value[batch], weight[batch]): an example's mean and how much of an example it stands for. An
example without any real target has value 0 and weight 0, so that averages and gradients stay finite.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_tx import check, tree
from fedjax_tx.types import Batch, Model, Task


def _column(batch: Batch, name: str, *, integers: bool = False) -> Array:
    if name not in batch:
        check.fail_value("batch", f"to have a column {name!r}", sorted(batch))
    if integers and not jnp.issubdtype(jnp.result_type(batch[name]), jnp.integer):
        check.fail_type(f"column {name!r}", "integers", jnp.result_type(batch[name]))
    return batch[name]


def _check_arguments(model: Model, **columns: str) -> None:
    check.instance("model", model, Model, "a Model(init, apply)")
    for name, column in columns.items():
        check.instance(name, column, str, "the name of a column")


def _cross_entropy(logits: Float[Array, "*shape classes"], labels: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def _is_right(logits: Float[Array, "*shape classes"], labels: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def _mean_of_real(
    values: Float[Array, "batch time"], real: Bool[Array, "batch time"]
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    # where, not a product: 0 times an infinite loss is not a number.
    count = jnp.sum(real, axis=1, dtype=jnp.float32)
    total = jnp.sum(jnp.where(real, values, 0.0), axis=1)
    return total / jnp.maximum(count, 1.0), count / values.shape[1]


def _with_model(model: Model, read_inputs) -> dict:
    """Returns the half of a task that does not depend on the loss; every parameter is trained."""

    def init(key):
        return model.init(key), ()

    def apply(trainable, frozen, batch, key) -> Mapping[str, Array]:
        return {"logits": model.apply(trainable, read_inputs(batch), key=key)}

    return {"init": init, "apply": apply}


def next_token(model: Model, *, pad_id: int | None = None, column: str = "tokens") -> Task:
    """Returns the task of predicting each token from those before it, by cross-entropy.

    Args:
      model: ``apply(params, tokens[batch, time], key=) -> logits[batch, time, vocab]``.
      pad_id: the token of the vocabulary that fills up short texts and is no target. None: every target counts.
      column: the batch's column of integers [batch, time + 1]; inputs are all but the last, targets all but the first.

    Loss and ``accuracy`` are means over an example's real targets, and the weight is their share of ``time``.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value; in use, the batch lacks the
        column, or the column is not of integers [batch, time + 1].

    Example:
      >>> from fedjax_tx.models import decoder
      >>> task = next_token(decoder(vocab_size=10), pad_id=0)
      >>> params, frozen = task.init(jax.random.key(0))
      >>> batch = {"tokens": jnp.array([[5, 6, 7, 0, 0]])}
      >>> value, weight = task.loss(task.apply(params, frozen, batch, None), batch)
      >>> weight.tolist()
      [0.5]
    """
    _check_arguments(model, column=column)
    if pad_id is not None:
        check.integer("pad_id", pad_id, low=0)

    def read(batch):
        tokens = _column(batch, column, integers=True)
        if jnp.ndim(tokens) != 2 or jnp.shape(tokens)[1] < 2:
            check.fail_value(f"column {column!r}", "of shape [batch, time + 1] with time >= 1", jnp.shape(tokens))
        return tokens[:, :-1], tokens[:, 1:]

    def average(values, targets):
        real = jnp.ones(targets.shape, bool) if pad_id is None else targets != pad_id
        return _mean_of_real(values, real)

    def loss(outputs, batch):
        _, targets = read(batch)
        return average(_cross_entropy(outputs["logits"], targets), targets)

    def metrics(outputs, batch):
        _, targets = read(batch)
        return {"accuracy": average(_is_right(outputs["logits"], targets), targets)}

    return Task(**_with_model(model, lambda batch: read(batch)[0]), loss=loss, metrics=metrics)


def classification(model: Model, *, inputs: str = "x", labels: str = "y") -> Task:
    """Returns the task of naming each example's class, by cross-entropy, with the metric ``accuracy``.

    Args:
      model: ``apply(params, inputs[batch, ...], key=) -> logits[batch, classes]``.
      inputs: the batch's column that the model reads.
      labels: the batch's column of integers [batch], 0 to classes - 1.

    Raises:
      TypeError, ValueError: an argument is of the wrong type; in use, a column is missing or labels are no integers.

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
    _check_arguments(model, inputs=inputs, labels=labels)

    def loss(outputs, batch):
        value = _cross_entropy(outputs["logits"], _column(batch, labels, integers=True))
        return value, jnp.ones_like(value)

    def metrics(outputs, batch):
        value = _is_right(outputs["logits"], _column(batch, labels, integers=True))
        return {"accuracy": (value, jnp.ones_like(value))}

    return Task(**_with_model(model, lambda batch: _column(batch, inputs)), loss=loss, metrics=metrics)


def regression(model: Model, *, inputs: str = "x", targets: str = "y") -> Task:
    """Returns the task of predicting numbers, by mean squared error over an example's targets; it has no other metric.

    Args:
      model: ``apply(params, inputs[batch, ...], key=) -> predictions`` of the targets' shape (the output ``logits``).
      inputs: the batch's column that the model reads.
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
    _check_arguments(model, inputs=inputs, targets=targets)

    def loss(outputs, batch):
        predictions, wanted = outputs["logits"], _column(batch, targets)
        if predictions.shape != jnp.shape(wanted):
            check.fail_value("the model's output", f"of {targets!r}'s shape {jnp.shape(wanted)}", predictions.shape)
        errors = jnp.square(predictions.astype(jnp.float32) - wanted)
        value = jnp.mean(errors, axis=tuple(range(1, errors.ndim)))
        return value, jnp.ones_like(value)

    def metrics(outputs, batch):
        return {}

    return Task(**_with_model(model, lambda batch: _column(batch, inputs)), loss=loss, metrics=metrics)


def freeze(task: Task, trainable: str | Sequence[str]) -> Task:
    """Returns the task in which only some parameters are trained; clients read the others and never send them.

    The server holds the frozen part once, and all clients of a round share it. Give pretrained parameters to a run as
    ``init_params``: the whole tree of ``task.init``, or the pair (trainable, frozen) of this task's.

    Args:
      task: one that trains everything, its parameters nested dicts. trainable: patterns of paths such as ``"*lora*"`` or
        ``["head/*", "final_norm/*"]``; names are joined by "/", and "*" stands for any characters, "/" too.

    Errors: ``ValueError`` if a pattern matches no parameter (some are named), or if the task freezes some already.

    Example:
      >>> from fedjax_tx.models import decoder
      >>> adapted = decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4, lora_rank=2)
      >>> trainable, frozen = freeze(next_token(adapted), "*lora*").init(jax.random.key(0))
      >>> sorted(trainable["layers"]["mlp_in"]), sorted(frozen["layers"]["mlp_in"])
      (['lora'], ['bias', 'kernel'])
    """
    check.instance("task", task, Task, "a Task")
    patterns = _check_patterns(trainable)
    params, nothing = jax.eval_shape(task.init, jax.random.key(0))
    check.mapping("the task's parameters", params)
    if jax.tree.leaves(nothing):
        raise ValueError("expected a task that freezes nothing yet, got one with frozen parameters")
    paths = sorted("/".join(path) for path in tree.paths(params))
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            some = ", ".join(paths[:: -(-len(paths) // 8)])
            check.fail_value("trainable", f"to match parameters, such as {some}", pattern)

    def is_trained(path: tuple[str, ...]) -> bool:
        return any(fnmatchcase("/".join(path), pattern) for pattern in patterns)

    def init(key):
        params, _ = task.init(key)
        return tree.partition(params, is_trained)

    def apply(trainable, frozen, batch, key):
        return task.apply(tree.join(trainable, frozen), nothing, batch, key)

    return task._replace(init=init, apply=apply)


def _check_patterns(trainable: str | Sequence[str]) -> tuple[str, ...]:
    patterns = (trainable,) if isinstance(trainable, str) else trainable
    check.instance("trainable", patterns, (list, tuple), "a pattern of paths, or a list of them")
    for pattern in patterns:
        check.instance("a pattern of trainable", pattern, str, "a string")
    if not patterns:
        check.fail_value("trainable", "to have at least one pattern", trainable)
    return tuple(patterns)
