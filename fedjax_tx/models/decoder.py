"""A decoder-only Transformer: the language model that federated clients train.

Causal self-attention (arXiv:1706.03762) in pre-norm layers (arXiv:2002.04745), learned positions, a final layer norm
and a linear head without bias::

    x = token_embedding[tokens] + position_embedding;   x = Block_l(x) for each layer l;   logits = Norm(x) W_head

All layers are one pytree, stacked along a leading axis, run by ``jax.lax.scan``: a tree of few large leaves is what the
rest of the library adds, clips and sends, and a deep model compiles as fast as a shallow one when it is not unrolled.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from fedjax_tx import check
from fedjax_tx.models.attention import INIT_SCALE, Block, drop, layer_norm, linear
from fedjax_tx.models.layers import merge
from fedjax_tx.models.lora import lora
from fedjax_tx.types import Model, PyTree


class _Ends(nnx.Module):
    """What is not repeated: the embeddings before the layers, the norm and the head after them."""

    def __init__(self, vocab_size, width, max_length, *, dropout, tie_embeddings, dtype, rngs):
        self.dropout, self.dtype = dropout, jnp.dtype(dtype)
        # The tables stay float32 in the lookup, so that gradients of tokens that occur often are summed in float32.
        table = {"embedding_init": nnx.initializers.normal(INIT_SCALE), "dtype": jnp.float32, "rngs": rngs}
        self.token_embedding = nnx.Embed(vocab_size, width, **table)
        self.position_embedding = nnx.Embed(max_length, width, **table)
        self.final_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        options = {"use_bias": False, "dtype": dtype, "out_dtype": jnp.float32, "rngs": rngs}
        self.head = None if tie_embeddings else linear(width, vocab_size, **options)

    def embed(self, tokens, key):
        x = self.token_embedding(tokens) + self.position_embedding.embedding[: tokens.shape[1]]
        return drop(x.astype(self.dtype), self.dropout, key, site=0)

    def logits(self, x):
        x = self.final_norm(x)
        if self.head is not None:
            return self.head(x)
        table = self.token_embedding.embedding[...]
        return jnp.matmul(x, table.T.astype(self.dtype), preferred_element_type=jnp.float32)


def _check_tokens(tokens, max_length: int) -> None:
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        check.fail_type("tokens", "integers", jnp.result_type(tokens))
    if jnp.ndim(tokens) != 2:
        check.fail_value("tokens", "of shape [batch, time]", jnp.shape(tokens))
    if jnp.shape(tokens)[1] > max_length:
        check.fail_value("tokens", f"of at most max_length={max_length} positions", jnp.shape(tokens)[1])


def _check_dtype(dtype) -> None:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        check.fail_type("dtype", "a dtype", dtype)
    check.one_of("dtype", name, ("float32", "bfloat16"))


def decoder(
    vocab_size: int,
    num_layers: int = 2,
    num_heads: int = 4,
    width: int = 128,
    max_length: int = 64,
    *,
    mlp_width: int | None = None,
    dropout: float = 0.0,
    tie_embeddings: bool = False,
    dtype=jnp.float32,
    implementation: str | None = None,
    unroll: bool = True,
    lora_rank: int = 0,
    lora_alpha: float | None = None,
) -> Model:
    """Returns a causal language model: ``apply(params, tokens[batch, time], key=None) -> logits[batch, time, vocab]``.

    Args:
      vocab_size: how many tokens there are; token ids are 0 to vocab_size - 1.
      num_layers: how many layers.
      num_heads: heads of attention in each layer.
      width: size of the residual stream, a multiple of ``num_heads``.
      max_length: most positions of an input; shorter ones are fine.
      mlp_width: hidden size of the feed-forward branch; 4 * width by default.
      dropout: rate, 0 <= rate < 1, on the embeddings and on the output of each branch, where ``apply`` gets a key.
      tie_embeddings: whether the head is the transposed token embedding.
      dtype: type of the arithmetic, float32 or bfloat16; parameters, gradients and logits are float32 in both.
      implementation: of ``jax.nn.dot_product_attention``: "xla", "cudnn", or None: cuDNN on NVIDIA in bfloat16, else XLA.
      unroll: whether the layers are compiled one after another (faster to run) or as a loop (faster to compile).
      lora_rank: rank of the low-rank adapters (``models.lora``) on every dense layer of the blocks; 0: none. Everything else is
        drawn as without them.
      lora_alpha: > 0, the adapters' scale is alpha / rank; None: alpha = rank.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value; in ``apply``, tokens are not
        integers of shape [batch, time] with time <= max_length.

    Example:
      >>> model = decoder(vocab_size=96)
      >>> params = model.init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      429568
      >>> model.apply(params, jnp.zeros((8, 64), jnp.int32)).shape
      (8, 64, 96)
    """
    sizes = {"vocab_size": vocab_size, "num_layers": num_layers, "num_heads": num_heads, "width": width}
    for name, value in {**sizes, "max_length": max_length}.items():
        check.integer(name, value, low=1)
    mlp_width = 4 * width if mlp_width is None else check.integer("mlp_width", mlp_width, low=1)
    rate = float(check.number("dropout", dropout, low=0.0))
    if rate >= 1.0:
        check.fail_value("dropout", "< 1", rate)
    check.boolean("tie_embeddings", tie_embeddings)
    check.boolean("unroll", unroll)
    check.integer("lora_rank", lora_rank, low=0)
    if lora_alpha is not None:
        check.number("lora_alpha", lora_alpha, above=0)
    _check_dtype(dtype)

    def make_ends(key):
        options = {"dropout": rate, "tie_embeddings": tie_embeddings, "dtype": dtype, "rngs": nnx.Rngs(key)}
        return nnx.split(_Ends(vocab_size, width, max_length, **options))

    def make_layer(key):
        options = {"dropout": rate, "dtype": dtype, "implementation": implementation}
        return nnx.split(Block(width, num_heads, mlp_width=mlp_width, causal=True, rngs=nnx.Rngs(key), **options))

    model = _model(make_ends, make_layer, num_layers, max_length, drops=rate > 0.0, unroll=unroll)
    return lora(model, lora_rank, lora_alpha, where="layers/*") if lora_rank else model


def _model(make_ends, make_layer, num_layers: int, max_length: int, *, drops: bool, unroll: bool) -> Model:
    """Returns the two pure functions; ``make_ends`` and ``make_layer`` draw a module from a key and split it."""
    ends_graph, _ = jax.eval_shape(lambda: make_ends(jax.random.key(0)))
    layer_graph, _ = jax.eval_shape(lambda: make_layer(jax.random.key(0)))

    def init(key: Key[Array, ""]) -> PyTree:
        ends_key, layers_key = jax.random.split(key)
        layers = jax.vmap(lambda key: nnx.to_pure_dict(make_layer(key)[1]))(jax.random.split(layers_key, num_layers))
        return {**nnx.to_pure_dict(make_ends(ends_key)[1]), "layers": layers}

    def apply(
        params: PyTree, tokens: Int[Array, "batch time"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch time vocab"]:
        _check_tokens(tokens, max_length)
        ends = merge(ends_graph, {name: part for name, part in params.items() if name != "layers"})
        key = key if drops else None

        def run_layer(x, layer):
            index, layer_params = layer
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return merge(layer_graph, layer_params)(x, key=layer_key), None

        # Layers take the keys 0 to num_layers - 1, the embeddings the next one.
        x = ends.embed(tokens, None if key is None else jax.random.fold_in(key, num_layers))
        x, _ = jax.lax.scan(run_layer, x, (jnp.arange(num_layers), params["layers"]), unroll=unroll)
        return ends.logits(x)

    return Model(init, apply)
