"""Bottleneck adapters: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP" (arXiv 1902.00751), section 2.1.

Behind the projection that ends a branch of a layer, before its residual is added, a small network is put::

    y <- y + U gelu(D y + d) + u,        D [size, width], U [width, size]

The paper draws D and U so small that an adapter starts near the identity; here U and u start at 0, so it starts as the identity,
and D is drawn from N(0, 0.01²). The paper also trains the layer norms: ``ftx.tasks.freeze(task, ["*adapter*", "*norm/*"])``.
Dropout, where a model has it, comes behind the adapter.

In a tree of parameters: ``{"kernel", "bias", "adapter": {"down": {"kernel", "bias"}, "up": {"kernel", "bias"}}}``.

What needs no new parameters needs only a pattern: ``freeze(task, "head/*")`` is the linear probe, and ``freeze(task, "*bias")``
is BitFit (arXiv 2106.10199), with ``["*bias", "head/*"]`` where the head is new.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_tx import check
from fedjax_tx.models import extras
from fedjax_tx.types import Model

BRANCH_ENDS = ("*attention/out", "*mlp_out")


def adapters(model: Model, size: int, *, where: str | Sequence[str] = BRANCH_ENDS) -> Model:
    """Returns the model with a bottleneck adapter behind some dense layers; everything else is drawn as without them.

    Args:
      model: one of ``ftx.models``. size: >= 1, of the bottleneck.
      where: patterns of paths of dense layers; by default the ends of both branches of each layer of a Transformer.

    Errors: ``ValueError`` if a pattern matches no dense layer (some are named), or one that has an adapter already.

    Example:
      >>> from fedjax_tx.models import decoder
      >>> model = decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> params = adapters(model, size=2).init(jax.random.key(0))
      >>> params["layers"]["mlp_out"]["adapter"]["down"]["kernel"].shape
      (1, 8, 2)
    """
    check.integer("size", size, low=1)
    chosen = extras.places(model, where, extras.dense_kernels, "dense layers", without="adapter")

    def draw(path, place, key):
        *stack, _, width = place.shape
        down = 0.01 * jax.random.normal(key, (*stack, width, size), place.dtype)
        zeros = [jnp.zeros(shape, place.dtype) for shape in ((*stack, size), (*stack, size, width), (*stack, width))]
        return {"down": {"kernel": down, "bias": zeros[0]}, "up": {"kernel": zeros[1], "bias": zeros[2]}}

    return extras.add(model, chosen, "adapter", draw)
