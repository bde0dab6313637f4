"""A decoder-only Transformer: the language model that federated clients train.

Causal self-attention (arXiv:1706.03762) in pre-norm layers (arXiv:2002.04745), learned or rotary positions, a final layer norm
and a linear head without bias::

    x = token_embedding[tokens] + position_embedding;   x = Block_l(x) for each layer l;   logits = Norm(x) W_head

Its parameters are the tree of ``models/stack.py`` with ``token_embedding.embedding`` [vocab, width],
``position_embedding.embedding`` [max_length, width], ``final_norm`` and, where it is not tied, ``head.kernel`` [width, vocab].
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from fedjax_tx import check
from fedjax_tx.models.attention import INIT_SCALE, drop, layer_norm, linear
from fedjax_tx.models.inputs import check_sizes, check_tokens
from fedjax_tx.models.lora import lora
from fedjax_tx.models.modules import look_up
from fedjax_tx.models.product import product
from fedjax_tx.models.stack import Layers, make_stack
from fedjax_tx.types import Model, PyTree


class _Ends(nnx.Module):
    """What is not repeated: the embeddings before the layers, the norm and the head after them."""

    def __init__(self, vocab_size, width, max_length, *, learned, dropout, tie_embeddings, dtype, rngs):
        self.dropout, self.dtype = dropout, jnp.dtype(dtype)
        # The tables stay float32 in the lookup, so that gradients of tokens that occur often are summed in float32.
        table = {"embedding_init": nnx.initializers.normal(INIT_SCALE), "dtype": jnp.float32, "rngs": rngs}
        self.token_embedding = nnx.Embed(vocab_size, width, **table)
        self.position_embedding = nnx.Embed(max_length, width, **table) if learned else None
        self.final_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        options = {"use_bias": False, "dtype": dtype, "out_dtype": jnp.float32, "rngs": rngs}
        self.head = None if tie_embeddings else linear(width, vocab_size, **options)

    def embed(self, tokens, key):
        x = look_up(self.token_embedding, tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding.embedding[: tokens.shape[1]]
        return drop(x.astype(self.dtype), self.dropout, key, site=0)

    def logits(self, x):
        x = self.final_norm(x)
        if self.head is not None:
            return self.head(x)
        table = self.token_embedding.embedding[...]
        return product(x, table.T.astype(self.dtype), out_dtype=jnp.float32)


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
    positions: str = "learned",
    num_kv_heads: int | None = None,
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
      positions: "learned", an embedding of each that is added, or "rotary", by which queries and keys are turned
        (arXiv:2104.09864); then ``width / num_heads`` is even.
      num_kv_heads: heads of keys and values, of which ``num_heads`` is a multiple (arXiv:2305.13245); None: as many.
      dtype: type of the arithmetic, float32 or bfloat16; parameters, gradients and logits are float32 in both.
      implementation: of attention: "xla", "cudnn", or None: cuDNN on NVIDIA in bfloat16, else XLA.
      unroll: whether the layers are compiled one after another (faster to run) or as a loop (faster to compile).
      lora_rank: rank of the low-rank adapters (``models.lora``) on every dense layer of the blocks; 0: none. Everything else is
        drawn as without them.
      lora_alpha: > 0, the adapters' scale is alpha / rank; None: alpha = rank.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value; in ``apply``, tokens are not
        integers of shape [batch, time] with time <= max_length.

    Example:
      >>> import jax
      >>> model = decoder(vocab_size=96)
      >>> params = model.init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      429568
      >>> model.apply(params, jnp.zeros((8, 64), jnp.int32)).shape
      (8, 64, 96)
    """
    check_sizes(vocab_size=vocab_size, max_length=max_length)
    check.boolean("tie_embeddings", tie_embeddings)
    check.one_of("positions", positions, ("learned", "rotary"))
    check.integer("lora_rank", lora_rank, low=0)
    if lora_alpha is not None:
        check.number("lora_alpha", lora_alpha, above=0)
    options = {"mlp_width": mlp_width, "activation": "gelu_tanh", "dropout": dropout, "dtype": dtype}
    options |= {"implementation": implementation, "unroll": unroll}
    options |= {"num_kv_heads": num_kv_heads, "rotary": positions == "rotary"}
    layers = Layers(num_layers, num_heads, width, causal=True, **options)

    def make_ends(key):
        options = {"dropout": dropout, "tie_embeddings": tie_embeddings, "dtype": dtype, "rngs": nnx.Rngs(key)}
        return _Ends(vocab_size, width, max_length, learned=positions == "learned", **options)

    stack = make_stack(make_ends, layers)

    def apply(
        params: PyTree, tokens: Int[Array, "batch time"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch time vocab"]:
        check_tokens(tokens, max_length)
        ends = stack.ends(params)
        x = ends.embed(tokens, stack.key_of(key, "before"))
        return ends.logits(stack.run(params, x, key=key))

    model = Model(stack.init, apply)
    return lora(model, lora_rank, lora_alpha, where="layers/*") if lora_rank else model
