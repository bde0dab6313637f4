"""What tasks are made of: columns of a batch, cross-entropy, and the half of a task that only its model decides."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_tx import check
from fedjax_tx.types import Batch, Model


def read_column(batch: Batch, name: str, *, integers: bool = False) -> Array:
    """Returns a column of a batch; an error naming it if it is missing, or holds no integers where it must."""
    if name not in batch:
        check.fail_value("batch", f"to have a column {name!r}", sorted(batch))
    if integers and not jnp.issubdtype(jnp.result_type(batch[name]), jnp.integer):
        check.fail_type(f"column {name!r}", "integers", jnp.result_type(batch[name]))
    return batch[name]


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
    """Returns -log softmax(logits)[label] of each place, in float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


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
