"""Scores by groups of examples: the recall of each class, and how far confidence is from accuracy, bin by bin.

Both are means within groups (classes, bins of confidence) that are averaged apart, over batches, clients and devices, like any
other metric with two more axes; only what is pooled is made into one number. A mean of the clients' own numbers would be another
one: the calibration error of few examples is mostly chance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_tx.tasks.parts import is_right


class Recall(NamedTuple):
    """The share of each class's examples that are recognised; as one number the mean over classes, balanced accuracy.

    value, weight: [..., class]. A class without examples has weight 0 and takes no part in the mean.

    Example:
      >>> float(Recall(np.array([1.0, 0.5, 0.0]), np.array([8.0, 2.0, 0.0])).overall())
      0.75
    """

    value: Array
    weight: Array

    def overall(self) -> np.ndarray:
        """Returns the mean over the classes that occur, [...]."""
        seen = self.weight > 0
        return np.asarray(np.where(seen, self.value, 0).sum(-1) / np.maximum(seen.sum(-1), 1))

    def parts(self) -> dict[str, np.ndarray]:
        """Returns each class's recall by name."""
        return {f"class_{number}": np.asarray(self.value[..., number]) for number in range(self.value.shape[-1])}


class CalibrationError(NamedTuple):
    """Accuracy less confidence in each bin of confidence; as one number the expected calibration error.

    Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, eq. 3: ECE = sum_m |B_m| / n |acc(B_m) - conf(B_m)|
    with the bins ((m - 1) / M, m / M]. value, weight: [..., bin].

    Example:
      >>> float(CalibrationError(np.array([0.5, -0.25]), np.array([1.0, 3.0])).overall())
      0.3125
    """

    value: Array
    weight: Array

    def overall(self) -> np.ndarray:
        """Returns the mean distance, weighted by the bins' numbers of examples, [...]."""
        gaps = np.where(self.weight > 0, np.abs(self.value) * self.weight, 0)
        return np.asarray(gaps.sum(-1) / np.maximum(self.weight.sum(-1), np.finfo(np.float32).tiny))

    def parts(self) -> dict[str, np.ndarray]:
        """Returns nothing: single bins are for diagrams."""
        return {}


def recall(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Recall:
    """Returns the metric of a batch: an example counts for the class that it has."""
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return Recall(jnp.broadcast_to(is_right(logits, labels)[:, None], own.shape), own)


def calibration_error(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], num_bins: int) -> CalibrationError:
    """Returns the metric of a batch: an example counts for the bin of its confidence, the largest probability."""
    confidence = jnp.max(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), axis=-1)
    number = jnp.clip(jnp.ceil(confidence * num_bins) - 1, 0, num_bins - 1).astype(jnp.int32)
    own = jax.nn.one_hot(number, num_bins, dtype=jnp.float32)
    return CalibrationError(jnp.broadcast_to((is_right(logits, labels) - confidence)[:, None], own.shape), own)
