"""Bounding what one client can do: clip its update's norm, or drop an update that is too long."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check, tree
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.types import Aggregator


def clip_norm(max_norm: float | Array) -> Aggregator:
    """Scales an update down to the L2 norm ``max_norm`` if it is longer, all its leaves together (arXiv 1710.06963).

    update * min(1, max_norm / ||update||). An update that is not finite becomes 0.

    Args:
      max_norm: > 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> clipped = ftx.aggregation.chain(clip_norm(5.0), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(clipped, {"w": jnp.array([[6.0, 8.0]])}, [1.0])
      >>> update["w"].tolist()
      [3.0, 4.0]
    """
    check.number("max_norm", max_norm, above=0)

    def encode(update, weight, shared, client_state, client_key, round_key):
        norm = tree.norm(update)
        scale = jnp.minimum(1, max_norm / jnp.where(norm > 0, norm, 1))

        def scaled(leaf):
            return jnp.where(jnp.isfinite(norm), leaf * scale, 0).astype(leaf.dtype)

        return jax.tree.map(scaled, update), weight, client_state

    return stage(f"clip_norm({max_norm})", encode=encode, sensitivity=lambda bound: max_norm)


def zero_norm(max_norm: float | Array) -> Aggregator:
    """Makes an update 0 if its L2 norm, of all its leaves together, exceeds ``max_norm`` or is not finite (cf. arXiv 1911.07963).

    Its client still counts in a mean. Where honest updates are shorter, what is longer is an error or an attack.

    Args:
      max_norm: > 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> safe = ftx.aggregation.chain(zero_norm(5.0), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(safe, {"w": jnp.array([[3.0, 4.0], [6.0, 8.0]])}, [1.0, 1.0])
      >>> update["w"].tolist()
      [1.5, 2.0]
    """
    check.number("max_norm", max_norm, above=0)

    def encode(update, weight, shared, client_state, client_key, round_key):
        short = tree.norm(update) <= max_norm
        return jax.tree.map(lambda leaf: jnp.where(short, leaf, 0).astype(leaf.dtype), update), weight, client_state

    return stage(f"zero_norm({max_norm})", encode=encode, sensitivity=lambda bound: max_norm)
