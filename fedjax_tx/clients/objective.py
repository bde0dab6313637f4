"""The one place where losses and metrics are masked and averaged."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from fedjax_tx import tree
from fedjax_tx.types import Batch, Metrics, PyTree, Task


def masked_mean(
    value: Float[Array, "batch ..."], weight: Float[Array, "batch ..."], mask: Bool[Array, " batch"]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns (mean, total weight) in float32: sum(mask * weight * value) / sum(mask * weight); (0, 0) where no row counts.

    A metric by groups of examples has a mean and a weight for each.

    Example:
      >>> mean, total = masked_mean(jnp.array([1.0, 3.0, 9.0]), jnp.ones(3), jnp.array([True, True, False]))
      >>> float(mean), float(total)
      (2.0, 2.0)
    """
    weight = jnp.where(mask.reshape(-1, *[1] * (weight.ndim - 1)), weight, 0).astype(jnp.float32)
    total = weight.sum(0)
    weighted = jnp.where(weight > 0, weight * value.astype(jnp.float32), 0)
    return weighted.sum(0) / jnp.where(total > 0, total, 1), total


def batch_loss(
    task: Task, trainable: PyTree, frozen: PyTree, batch: Batch, mask: Bool[Array, " batch"], key: Key[Array, ""] | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns (mean loss, total weight) of a batch; differentiate it with ``jax.value_and_grad(..., has_aux=True)``."""
    outputs = task.apply(trainable, frozen, batch, key)
    return masked_mean(*task.loss(outputs, batch), mask)


def batch_gradient(
    task: Task, trainable: PyTree, frozen: PyTree, batch: Batch, mask: Bool[Array, " batch"], key: Key[Array, ""] | None
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], PyTree]:
    """Returns ((mean loss, total weight), its gradient by ``trainable``) of a batch."""

    def loss(trainable):
        return batch_loss(task, trainable, frozen, batch, mask, key)

    return jax.value_and_grad(loss, has_aux=True)(trainable)


def batch_metrics(task: Task, trainable: PyTree, frozen: PyTree, batch: Batch, mask: Bool[Array, " batch"]) -> Metrics:
    """Returns ``{"loss": (mean, weight), ...}`` of a batch in evaluation mode: the task's metrics and its loss."""
    outputs = task.apply(trainable, frozen, batch, None)
    values = {**task.metrics(outputs, batch), "loss": task.loss(outputs, batch)}
    return {name: _of_its_kind(pair, *masked_mean(*pair, mask)) for name, pair in values.items()}


def add_metrics(left: Metrics, right: Metrics) -> Metrics:
    """Returns the metrics of two sets of examples taken together: weights add, values average by weight."""

    def together(name: str) -> tuple[Array, Array]:
        (value, weight), (other, more) = left[name], right[name]
        total = weight + more
        return _of_its_kind(left[name], value + (other - value) * more / jnp.where(total > 0, total, 1), total)

    return {name: together(name) for name in left}


def no_metrics(names: Mapping[str, object]) -> Metrics:
    """Returns metrics of no example, by name: what ``add_metrics`` starts from.

    A name stands for a scalar where it has None, else for a metric of the given pair's kind and shapes.
    """
    scalar = jnp.zeros(()), jnp.zeros(())
    return {name: scalar if pair is None else tree.zeros(pair) for name, pair in names.items()}


def _of_its_kind(pair: Any, value: Array, weight: Array) -> tuple[Array, Array]:
    """(value, weight) as a tuple of the kind of ``pair``, which says how the metric becomes one number in the end."""
    return type(pair)(value, weight) if hasattr(pair, "overall") else (value, weight)
