"""From a vector for each position to one for each example."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_mean(x: Float[Array, "batch time width"], valid: Bool[Array, "batch time"] | None) -> Float[Array, "batch width"]:
    """Returns the float32 mean over valid positions; 0 where there is none.

    Example:
      >>> masked_mean(jnp.array([[[1.0], [9.0]]]), jnp.array([[True, False]])).tolist()
      [[1.0]]
    """
    x = x.astype(jnp.float32)
    if valid is None:
        return jnp.mean(x, axis=1)
    count = jnp.sum(valid, axis=1, dtype=jnp.float32)[:, None]
    return jnp.sum(jnp.where(valid[..., None], x, 0.0), axis=1) / jnp.maximum(count, 1.0)


def pool_positions(
    x: Float[Array, "batch time width"], valid: Bool[Array, "batch time"] | None, how: str
) -> Float[Array, "batch width"]:
    """Returns the first position's vector where ``how`` is "cls", the mean of the valid ones where it is "mean"; in float32.

    Example:
      >>> pool_positions(jnp.array([[[1.0], [9.0]]]), None, "cls").tolist()
      [[1.0]]
    """
    return x[:, 0].astype(jnp.float32) if how == "cls" else masked_mean(x, valid)


def last_valid(x: Float[Array, "batch time width"], valid: Bool[Array, "batch time"] | None) -> Float[Array, "batch width"]:
    """Returns the vector of the last valid position, of the first one where none is; in float32.

    Example:
      >>> last_valid(jnp.array([[[1.0], [9.0]]]), jnp.array([[True, False]])).tolist()
      [[1.0]]
    """
    if valid is None:
        return x[:, -1].astype(jnp.float32)
    index = jnp.max(jnp.where(valid, jnp.arange(valid.shape[1]), 0), axis=1)
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0].astype(jnp.float32)


def unit_length(x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Returns each row divided by its length, or by 1e-12 where it is shorter; the gradient of a row of zeros is finite.

    Example:
      >>> unit_length(jnp.array([[0.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.0, 1.0], [0.0, 0.0]]
    """
    return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
