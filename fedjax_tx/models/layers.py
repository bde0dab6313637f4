"""The dense layer that all models share, and ``merge``: how a tree of parameters becomes a module that can be called.

A tree may hold more than the model drew. Beside the leaves of a dense layer, ``{"kernel", "bias"}``, there may be

* ``"lora": {"lora_a", "lora_b"}``: a low-rank product that is added (``models.lora``);
* ``"adapter": {"down", "up"}``: a bottleneck behind the layer (``models.adapters``);
* ``"features": {}``: the layer hands on what enters it (``models.features``);
* ``"both": {}``: it hands on its outputs and, behind them on the last axis, what enters it (``tasks.with_features``);

and beside the projections of an attention ``"prefix": {"key", "value"}`` (``models.prefix``). ``merge`` hangs each on its
module when a program is traced. So any model takes such a tree without having been built for it, also where its layers are
stacked and scanned: the extras are leaves like all others.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fedjax_tx import check
from fedjax_tx.models.product import product
from fedjax_tx.types import PyTree

EXTRAS = ("lora", "adapter", "features", "both", "prefix")


class Dense(nnx.Linear):
    """A dense layer, y = x W + b, with room for what ``merge`` hangs on it.

    Its arguments are those of ``nnx.Linear``, but for ``dot_general``: its products are those of ``models/product.py``.

    With a ``lora`` it returns x W + b + (x A) B. W + A B is never formed: under a per-client ``vmap`` in which only A and B
    differ between clients, x W stays one product with one W. With an ``adapter`` it returns y + gelu(y D + d) U + u.
    With ``features`` it returns x, in the dtype of its output; with ``both``, y and x side by side.

    Example:
      >>> layer = Dense(4, 8, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((1, 4))).shape
      (1, 8)
    """

    lora: Mapping[str, Array] | None = None
    adapter: Mapping[str, Any] | None = None
    features: Mapping[str, Any] | None = None
    both: Mapping[str, Any] | None = None

    def __init__(self, in_features: int, out_features: int, **options):
        super().__init__(in_features, out_features, dot_general=_dot_general, **options)

    def __call__(self, inputs: Float[Array, "*batch inputs"], out_sharding: None = None) -> Float[Array, "*batch outputs"]:
        """Returns the layer's output, what hangs on the layer included; for ``out_sharding`` there is no use here."""
        if self.features is not None:
            return inputs.astype(self.preferred_element_type or inputs.dtype)
        outputs = super().__call__(inputs)
        if self.lora is not None:
            narrow = self._multiply(inputs, self.lora["lora_a"])
            outputs = outputs + self._multiply(narrow, self.lora["lora_b"], self.preferred_element_type)
        if self.adapter is not None:
            hidden = jax.nn.gelu(self._apply(outputs, self.adapter["down"]), approximate=True)
            outputs = outputs + self._apply(hidden, self.adapter["up"]).astype(outputs.dtype)
        return outputs if self.both is None else jnp.concatenate([outputs, inputs.astype(outputs.dtype)], axis=-1)

    def _multiply(self, x: Array, matrix: Array, out_dtype=None) -> Array:
        x, matrix = self.promote_dtype((x, matrix), dtype=self.dtype)
        return product(x, matrix, self.precision, out_dtype)

    def _apply(self, x: Array, part: Mapping[str, Array]) -> Array:
        y = self._multiply(x, part["kernel"])
        return y + part["bias"].astype(y.dtype)


def _dot_general(x: Array, kernel: Array, dimensions, *, precision, out_sharding, preferred_element_type=None) -> Array:
    """``product`` as ``nnx.Linear`` calls it."""
    return product(x, kernel, precision, preferred_element_type)


def merge(graph: nnx.GraphDef, params: PyTree) -> Any:
    """Returns the module of ``graph`` with the parameters ``params`` and what was added to them; ``nnx.merge`` takes no more.

    Args:
      graph: of ``nnx.split``. params: nested dicts, as ``nnx.to_pure_dict`` gives them, with or without extras.

    Errors: ``ValueError`` naming the place of an extra that its module can't use: it would be ignored.

    Example:
      >>> graph, state = nnx.split(Dense(4, 8, rngs=nnx.Rngs(0)))
      >>> lora = {"lora_a": jnp.ones((4, 1)), "lora_b": jnp.ones((1, 8))}
      >>> x, params = jnp.ones((1, 4)), nnx.to_pure_dict(state)
      >>> (merge(graph, {**params, "lora": lora})(x) - merge(graph, params)(x)).round(4).tolist()[0][:2]
      [4.0, 4.0]
    """
    plain, extras = _split(params, ())
    merged = nnx.merge(graph, plain)
    for path, name, extra in extras:
        module = merged
        for part in path:
            module = getattr(module, part) if isinstance(part, str) else module[part]
        if not hasattr(type(module), name):
            where = "/".join(map(str, path)) or "the top"
            check.fail_value("the parameters", f"to have no {name!r} at {where}, a {type(module).__name__}", sorted(extra))
        setattr(module, name, nnx.data(extra))
    return merged


def _split(params: Mapping, path: tuple) -> tuple[dict, list[tuple[tuple, str, Mapping]]]:
    """Returns the tree without its extras, and of each extra the path of its module, its name and its parameters."""
    plain, extras = {}, []
    for name, part in params.items():
        if not isinstance(part, Mapping):
            plain[name] = part
        elif name in EXTRAS:
            extras.append((path, name, part))
        else:
            plain[name], below = _split(part, (*path, name))
            extras += below
    return plain, extras
