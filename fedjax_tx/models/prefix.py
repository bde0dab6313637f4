"""Prefix tuning: Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation" (arXiv 2101.00190).

In each attention, every position sees ``length`` more keys and values, which are parameters::

    Attention(Q, [P_K; K], [P_V; V]),        P_K, P_V [length, width]

Causal masks and padding do not touch them, and they have no positions. The paper trains them through an MLP that it throws away
in the end, as plain training was less stable; here they are trained as they are, drawn from N(0, 0.02²). A prefix changes what
the model gives from the start: a zero key too is attended to. Attention with a prefix runs by XLA.

In a tree of parameters an attention with a prefix is ``{"qkv", "out", "prefix": {"key", "value"}}``.
``ftx.tasks.freeze(task, "*prefix*")`` trains the prefixes alone.
"""

from collections.abc import Sequence

import jax

from fedjax_tx import check
from fedjax_tx.models import extras
from fedjax_tx.types import Model


def prefix(model: Model, length: int, *, where: str | Sequence[str] = "*attention") -> Model:
    """Returns the model with a trained prefix in its attentions; everything else is drawn as without it.

    Args:
      model: a Transformer of ``ftx.models``. length: >= 1, of the prefix.
      where: patterns of paths of attentions; all of them by default.

    Errors: ``ValueError`` if the model has no attention, or a pattern matches none, or one that has a prefix already.

    Example:
      >>> from fedjax_tx.models import decoder
      >>> model = decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> prefix(model, length=3).init(jax.random.key(0))["layers"]["attention"]["prefix"]["key"].shape
      (1, 3, 8)
    """
    check.integer("length", length, low=1)
    chosen = extras.places(model, where, _key_width, "attentions", without="prefix")

    def draw(path, place, key):
        *stack, width = place.shape
        drawn = 0.02 * jax.random.normal(key, (2, *stack, length, width), place.dtype)
        return {"key": drawn[0], "value": drawn[1]}

    return extras.add(model, chosen, "prefix", draw)


def _key_width(path: extras.Path, branch: dict) -> extras.Place | None:
    """Returns the place at an attention; its keys are as wide as what its projection gives beside the queries, halved."""
    if not {"qkv", "out"} <= set(branch):
        return None
    projection, out = branch["qkv"]["kernel"], branch["out"]["kernel"]
    width = (projection.shape[-1] - out.shape[-2]) // 2
    return extras.Place((*projection.shape[:-2], width), projection.dtype, frozenset(branch))
