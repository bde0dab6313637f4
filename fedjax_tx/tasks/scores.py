"""Scores that are no means of examples: recall and F1 of each class, calibration, area under the ROC curve, perplexity.

Each is made of means within groups (classes, bins of confidence or of scores) that are averaged apart, over batches, clients and
devices, like any other metric with two more axes; only what is pooled is made into one number. A mean of the clients' own numbers
would be another one: the calibration error of few examples is mostly chance.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_tx.tasks.parts import is_right

SCORE_BINS = 256
_FINEST, _LARGEST = 0.05, 1_000.0


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
        return _mean_of_classes(self.value, self.weight)

    def parts(self) -> dict[str, np.ndarray]:
        """Returns each class's recall by name."""
        return _by_class(self.value)


class F1(NamedTuple):
    """The harmonic mean of each class's precision and recall; as one number the mean over classes, macro F1.

    It is 2 TP / (examples of the class + guesses of it): an example counts once for the class that it has and once for the one
    that is guessed. value, weight: [..., class]. A class that is neither there nor guessed has weight 0 and takes no part.

    Example:
      >>> float(F1(np.array([1.0, 0.5, 0.0]), np.array([8.0, 2.0, 0.0])).overall())
      0.75
    """

    value: Array
    weight: Array

    def overall(self) -> np.ndarray:
        """Returns the mean over the classes that are there or guessed, [...]."""
        return _mean_of_classes(self.value, self.weight)

    def parts(self) -> dict[str, np.ndarray]:
        """Returns each class's F1 by name."""
        return _by_class(self.value)


class AUROC(NamedTuple):
    """The area under the ROC curve: how often, of an example of class 1 and one of class 0, the first has the higher score.

    From a histogram: value [..., bin] is the share of class 1 in a bin of scores, weight its number of examples. Scores in one
    bin are tied, and a tie counts half. A score is m = logit of class 1 - logit of class 0, and the 256 bins are equal in
    asinh(20 m): scores up to 1,000 are told apart where they differ by 8.3 %, or near 0 by 0.004. Where scores of a class spread
    over five bins or more, the area is right to about 0.001. NaN where a class has no example.

    Example:
      >>> float(AUROC(np.array([0.0, 0.5, 1.0]), np.array([2.0, 2.0, 1.0])).overall())  # of 6 pairs 5 are right, 1 is a tie
      0.9166...
    """

    value: Array
    weight: Array

    def overall(self) -> np.ndarray:
        """Returns the area, [...]."""
        weight = np.asarray(self.weight, np.float64)
        positive = np.where(weight > 0, self.value * weight, 0)
        negative = weight - positive
        right = positive * (np.cumsum(negative, -1) - negative / 2)
        pairs = positive.sum(-1) * negative.sum(-1)
        return np.asarray(np.where(pairs > 0, right.sum(-1) / np.where(pairs > 0, pairs, 1), np.nan))

    def parts(self) -> dict[str, np.ndarray]:
        """Returns nothing: single bins are for diagrams."""
        return {}


class Perplexity(NamedTuple):
    """exp of the mean loss of a token; of a client, exp of its own. value, weight: [..., 1], those of the loss.

    Example:
      >>> float(Perplexity(np.array([np.log(8.0)]), np.array([3.0])).overall().round(6))
      8.0
    """

    value: Array
    weight: Array

    def overall(self) -> np.ndarray:
        """Returns the perplexity, [...]; inf where it has no number."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(self.value[..., 0]))

    def parts(self) -> dict[str, np.ndarray]:
        """Returns nothing: there is one group."""
        return {}


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


def f1(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> F1:
    """Returns the metric of a batch: an example counts for the class that it has, and for the one that is guessed."""
    own, guess = (jax.nn.one_hot(one, logits.shape[-1], dtype=jnp.float32) for one in (labels, jnp.argmax(logits, axis=-1)))
    return F1(jnp.broadcast_to(is_right(logits, labels)[:, None], own.shape), own + guess)


def auroc(logits: Float[Array, "batch 2"], labels: Int[Array, " batch"]) -> AUROC:
    """Returns the metric of a batch: an example counts for the bin of its score."""
    score = logits[:, 1].astype(jnp.float32) - logits[:, 0].astype(jnp.float32)
    place = (jnp.arcsinh(score / _FINEST) / np.arcsinh(_LARGEST / _FINEST) + 1) / 2  # 0 to 1, but for scores beyond the largest
    number = jnp.clip(jnp.floor(place * SCORE_BINS), 0, SCORE_BINS - 1).astype(jnp.int32)
    own = jax.nn.one_hot(number, SCORE_BINS, dtype=jnp.float32)
    positive = jnp.where(jnp.isnan(score), jnp.nan, labels == 1)
    return AUROC(jnp.broadcast_to(positive[:, None], own.shape), own)


def perplexity(value: Float[Array, " batch"], weight: Float[Array, " batch"]) -> Perplexity:
    """Returns the metric of a batch, given the loss of its tokens."""
    return Perplexity(value[:, None], weight[:, None])


def calibration_error(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], num_bins: int) -> CalibrationError:
    """Returns the metric of a batch: an example counts for the bin of its confidence, the largest probability."""
    confidence = jnp.max(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), axis=-1)
    number = jnp.clip(jnp.ceil(confidence * num_bins) - 1, 0, num_bins - 1).astype(jnp.int32)
    own = jax.nn.one_hot(number, num_bins, dtype=jnp.float32)
    return CalibrationError(jnp.broadcast_to((is_right(logits, labels) - confidence)[:, None], own.shape), own)


def _mean_of_classes(value: Any, weight: Any) -> np.ndarray:
    """The mean over the classes of which the metric says anything."""
    seen = np.asarray(weight) > 0
    return np.asarray(np.where(seen, value, 0).sum(-1) / np.maximum(seen.sum(-1), 1))


def _by_class(value: Any) -> dict[str, np.ndarray]:
    return {f"class_{number}": np.asarray(value[..., number]) for number in range(value.shape[-1])}
