"""What tasks are made of: columns of a batch, cross-entropy, and the half of a task that only its model decides."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_tx import check
from fedjax_tx.types import Batch, Model


def read_column(batch: Batch, name: str) -> Array:
    """Returns a column of a batch; an error naming it if it is missing."""
    if name not in batch:
        check.fail_value("batch", f"to have a column {name!r}", sorted(batch))
    return batch[name]


def read_tokens(batch: Batch, name: str) -> Int[Array, "..."]:
    """Returns a column of integers as int32: a narrow type, such as uint8 of bytes, can't hold marks beyond its tokens."""
    column = read_column(batch, name)
    if not jnp.issubdtype(jnp.result_type(column), jnp.integer):
        check.fail_type(f"column {name!r}", "integers", jnp.result_type(column))
    return jnp.asarray(column, jnp.int32)


def read_labels(batch: Batch, name: str, logits: Float[Array, "..."]) -> Int[Array, " batch"]:
    """Returns the column of each example's class, integers or booleans, as int32; logits must be [batch, class]."""
    if jnp.result_type(read_column(batch, name)) == jnp.bool_:
        batch = {name: jnp.asarray(batch[name], jnp.int32)}
    labels = read_tokens(batch, name)
    if logits.ndim != 2:
        check.fail_value("the model's logits", "of shape [batch, class]", logits.shape)
    if labels.shape != logits.shape[:1]:
        check.fail_value(f"column {name!r}", f"of shape {logits.shape[:1]}, one class an example", labels.shape)
    return labels


def check_padding(pad_id: int | None, valid: str | None) -> None:
    """Raises unless padding is told by a token, by the name of a column, or not at all."""
    if pad_id is not None:
        check.integer("pad_id", pad_id, low=0)
    if valid is not None:
        check.instance("valid", valid, str, "the name of a column")
        if pad_id is not None:
            check.fail_value("valid", "to be None where pad_id is given: one of the two tells what padding is", valid)


def read_real(batch: Batch, tokens: Int[Array, "*shape"], pad_id: int | None, valid: str | None) -> Bool[Array, "*shape"]:
    """Returns which tokens are no padding: those that aren't ``pad_id``, those that the column ``valid`` marks, or all."""
    if valid is None:
        return jnp.ones(tokens.shape, bool) if pad_id is None else tokens != pad_id
    marks = read_column(batch, valid)
    dtype = jnp.result_type(marks)
    if dtype != jnp.bool_ and not jnp.issubdtype(dtype, jnp.integer):
        check.fail_type(f"column {valid!r}", "booleans or integers", dtype)
    if jnp.shape(marks) != tokens.shape:
        check.fail_value(f"column {valid!r}", f"of the tokens' shape {tokens.shape}", jnp.shape(marks))
    return jnp.asarray(marks) != 0


def check_inputs(inputs: str | Sequence[str]) -> None:
    """Raises unless ``inputs`` names one column, or is a list of different ones."""
    names = (inputs,) if isinstance(inputs, str) else inputs
    check.instance("inputs", names, (list, tuple), "the name of a column, or a list of them")
    for name in names:
        check.instance("a name of inputs", name, str, "a string")
    if not names or len(set(names)) < len(names):
        check.fail_value("inputs", "to name at least one column, and each once", inputs)


def read_inputs(batch: Batch, inputs: str | Sequence[str]) -> Array | dict[str, Array]:
    """Returns a column as it is, or a list of them as a dict by name."""
    if isinstance(inputs, str):
        return read_column(batch, inputs)
    return {name: read_column(batch, name) for name in inputs}


def check_arguments(model: Model, **columns: str) -> None:
    """Raises unless ``model`` is one and the others name columns."""
    check.instance("model", model, Model, "a Model(init, apply)")
    for name, column in columns.items():
        check.instance(name, column, str, "the name of a column")


def cross_entropy(logits: Float[Array, "*shape classes"], labels: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns -log softmax(logits)[label] of each place, in float32.

    A label of no class makes it NaN, and the gradient too, even where the place is masked.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    # A factor: NaN in the value alone would leave a finite gradient, and training would go on.
    no_class = jnp.where((labels >= 0) & (labels < logits.shape[-1]), 1.0, jnp.nan)
    return (jax.nn.logsumexp(logits, axis=-1) - chosen) * no_class


def is_right(logits: Float[Array, "*shape classes"], labels: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns 1.0 where the greatest logit is the label's, else 0.0."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def mean_of_real(
    values: Float[Array, "batch time"], real: Bool[Array, "batch time"]
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Returns each example's mean over its real positions, and their share of all: (0, 0) of one that has none."""
    # where, not a product: 0 times an infinite loss is not a number.
    count = jnp.sum(real, axis=1, dtype=jnp.float32)
    total = jnp.sum(jnp.where(real, values, 0.0), axis=1)
    return total / jnp.maximum(count, 1.0), count / values.shape[1]


def with_model(model: Model, read: Callable[[Batch], Any]) -> dict:
    """Returns the half of a task that does not depend on the loss, given how inputs are read; every parameter is trained."""

    def init(key):
        return model.init(key), ()

    def apply(trainable, frozen, batch, key) -> Mapping[str, Array]:
        return {"logits": model.apply(trainable, read(batch), key=key)}

    return {"init": init, "apply": apply}
