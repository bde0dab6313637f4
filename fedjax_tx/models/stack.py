"""The body of every Transformer here: equal layers, stacked, between two ends.

The ends are what is not repeated: embeddings before the layers, norms and heads after them. All layers are one pytree, stacked
along a leading axis, run by ``jax.lax.scan``: a tree of few large leaves is what the rest of the library adds, clips and sends,
and a deep model compiles as fast as a shallow one when it is not unrolled. The tree of parameters, dense layers and norms with
a leading axis for the layer::

    layers/attention_norm/{scale, bias}        [layers, width]
    layers/attention/qkv/{kernel, bias}        [layers, width, 3 * width]: W^Q, W^K, W^V, in each the heads side by side
                                               (narrower where heads share keys and values)
    layers/attention/out/{kernel, bias}        [layers, width, width]
    layers/mlp_norm/{scale, bias}              [layers, width]
    layers/mlp_in/{kernel, bias}               [layers, width, mlp_width]
    layers/mlp_out/{kernel, bias}              [layers, mlp_width, width]
    ...                                        the ends, beside "layers"

A kernel is [inputs, outputs]. With ``norm="post"`` the norms follow their branch, under the same names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from fedjax_tx import check
from fedjax_tx.models.attention import LAYER_NORM_EPSILON, Block
from fedjax_tx.models.inputs import check_dtype, check_rate, check_sizes
from fedjax_tx.models.layers import merge
from fedjax_tx.types import PyTree


@dataclass(frozen=True)
class Layers:
    """What the layers of a Transformer are; arguments as for ``Block``, and ``mlp_width`` None is 4 * width.

    Raises:
      TypeError, ValueError: a value is of the wrong type or impossible.

    Example:
      >>> Layers(num_layers=2, num_heads=2, width=8).hidden
      32
    """

    num_layers: int
    num_heads: int
    width: int
    mlp_width: int | None = None
    causal: bool = False
    num_kv_heads: int | None = None
    rotary: bool = False
    norm: str = "pre"
    activation: str = "gelu"
    dropout: float = 0.0
    epsilon: float = LAYER_NORM_EPSILON
    dtype: Any = jnp.float32
    implementation: str | None = None
    unroll: bool = True

    def __post_init__(self):
        check_sizes(num_layers=self.num_layers, num_heads=self.num_heads, width=self.width)
        if self.mlp_width is not None:
            check_sizes(mlp_width=self.mlp_width)
        check_rate("dropout", self.dropout)
        check.number("layer_norm_epsilon", self.epsilon, above=0)
        check_dtype(self.dtype)
        check.boolean("unroll", self.unroll)

    @property
    def hidden(self) -> int:
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    def make_block(self, key: Key[Array, ""]) -> Block:
        return Block(
            self.width,
            self.num_heads,
            mlp_width=self.hidden,
            causal=self.causal,
            num_kv_heads=self.num_kv_heads,
            rotary=self.rotary,
            norm=self.norm,
            activation=self.activation,
            dropout=float(self.dropout),
            epsilon=self.epsilon,
            dtype=self.dtype,
            implementation=self.implementation,
            rngs=nnx.Rngs(key),
        )


class Stack(NamedTuple):
    """The functions of a body between two ends.

    ``init(key) -> params``: the ends' parameters and ``layers``.
    ``ends(params)``: the module of the ends.
    ``run(params, x[batch, time, width], valid[batch, time] or None, key=None) -> [batch, time, width]``: the layers.
    ``key_of(key, "before" or "after")``: the key of the dropout at an end; None without dropout or without a key.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    ends: Callable[[PyTree], Any]
    run: Callable[..., Float[Array, "batch time width"]]
    key_of: Callable[[Key[Array, ""] | None, str], Key[Array, ""] | None]


def make_stack(make_ends: Callable[[Key[Array, ""]], nnx.Module], layers: Layers) -> Stack:
    """Returns the functions of ``layers`` between the ends that ``make_ends`` draws from a key."""
    ends_graph, _ = jax.eval_shape(lambda: nnx.split(make_ends(jax.random.key(0))))
    layer_graph, _ = jax.eval_shape(lambda: nnx.split(layers.make_block(jax.random.key(0))))
    # Layers take the keys 0 to num_layers - 1, the ends those that follow.
    sites = {"before": layers.num_layers, "after": layers.num_layers + 1}

    def draw(make, key):
        return nnx.to_pure_dict(nnx.split(make(key))[1])

    def init(key: Key[Array, ""]) -> PyTree:
        ends_key, layers_key = jax.random.split(key)
        stacked = jax.vmap(lambda key: draw(layers.make_block, key))(jax.random.split(layers_key, layers.num_layers))
        return {**draw(make_ends, ends_key), "layers": stacked}

    def ends(params: PyTree):
        return merge(ends_graph, {name: part for name, part in params.items() if name != "layers"})

    def run(
        params: PyTree,
        x: Float[Array, "batch time width"],
        valid: Bool[Array, "batch time"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch time width"]:
        key = key if layers.dropout > 0.0 else None

        def run_layer(x, layer):
            index, layer_params = layer
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return merge(layer_graph, layer_params)(x, valid, key=layer_key), None

        return jax.lax.scan(run_layer, x, (jnp.arange(layers.num_layers), params["layers"]), unroll=layers.unroll)[0]

    def key_of(key: Key[Array, ""] | None, end: str) -> Key[Array, ""] | None:
        return jax.random.fold_in(key, sites[end]) if key is not None and layers.dropout > 0.0 else None

    return Stack(init, ends, run, key_of)
