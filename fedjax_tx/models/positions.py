"""Positions that are computed, not learned: sinusoids that are added, and rotations of queries and keys.

Sinusoids are those of "Attention Is All You Need" (arXiv:1706.03762), section 3.5. Rotary positions are those of RoFormer
(arXiv:2104.09864), section 3.2: position t turns the pair i of a head's entries by t / 10000^(2i / size), so that the product
of a query and a key depends on their distance only. A pair is (entry i, entry i + size / 2), where the paper pairs neighbours:
the same model with its entries in another order, and no strided reads.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

BASE = 10000.0


def angles(time: int, size: int) -> Float[Array, "time half"]:
    """Returns t / 10000^(2i / size) for each position t and i below size / 2.

    Example:
      >>> angles(3, 2).tolist()
      [[0.0], [1.0], [2.0]]
    """
    rates = BASE ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    return jnp.arange(time, dtype=jnp.float32)[:, None] * rates


def sinusoids(time: int, width: int) -> Float[Array, "time width"]:
    """Returns sines of all angles, then cosines; ``width`` is even.

    Example:
      >>> sinusoids(2, 4)[0].tolist()
      [0.0, 0.0, 1.0, 1.0]
    """
    turned = angles(time, width)
    return jnp.concatenate([jnp.sin(turned), jnp.cos(turned)], axis=-1)


def rotate(x_BxSxHxD: Float[Array, "batch time heads size"]) -> Float[Array, "batch time heads size"]:
    """Returns queries or keys, each turned by its position; ``size`` is even. The arithmetic is float32.

    Example:
      >>> x = jnp.ones((1, 2, 1, 2))
      >>> jnp.linalg.norm(rotate(x) - x, axis=-1).tolist()  # the first position stays where it is
      [[[0.0], [1.35...]]]
    """
    turned = angles(x_BxSxHxD.shape[1], x_BxSxHxD.shape[-1])[:, None, :]
    cosine, sine = jnp.cos(turned), jnp.sin(turned)
    first, second = jnp.split(x_BxSxHxD.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x_BxSxHxD.dtype)
