"""Multi-head self-attention and the Transformer block around it.

Attention is that of "Attention Is All You Need" (arXiv:1706.03762), section 3.2::

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V
    MultiHead(x) = Concat(head_1, ..., head_h) W^O,   head_i = Attention(x W_i^Q, x W_i^K, x W_i^V)

with biases on the projections. W^Q, W^K and W^V are one matrix of three blocks, in each of which the heads are contiguous. With
``num_kv_heads`` < ``num_heads`` neighbouring heads share keys and values (grouped queries, arXiv:2305.13245): head i reads those
of number i // (num_heads / num_kv_heads), and the matrix is [width, width + 2 * num_kv_heads * head_width]. With ``rotary``,
queries and keys are turned by their positions (``models/positions.py``).

The block normalises before each branch ("On Layer Normalization in the Transformer Architecture", arXiv:2002.04745), or, as in
the first Transformers and in BERT (arXiv:1810.04805), after each sum. Its activation is GELU (arXiv:1606.08415): x Phi(x), or
the tanh form of it.

Dropout acts on the output of each residual branch, not on the attention weights, which fused kernels never form.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from fedjax_tx import check
from fedjax_tx.models.layers import Dense
from fedjax_tx.models.positions import rotate

LAYER_NORM_EPSILON = 1e-5
INIT_SCALE = 0.02
_UNSEEN = -0.7 * float(jnp.finfo(jnp.float32).max)  # a logit; finite, so that a row which sees nothing is not NaN


def linear(inputs: int, outputs: int, *, use_bias: bool = True, dtype, rngs: nnx.Rngs, out_dtype=None) -> Dense:
    """Returns a dense layer with float32 parameters, a kernel drawn from N(0, 0.02²), and ``dtype`` arithmetic.

    ``out_dtype``: in which its products are summed and handed on; by default ``dtype``.

    Example:
      >>> linear(4, 8, dtype=jnp.float32, rngs=nnx.Rngs(0)).kernel.shape
      (4, 8)
    """
    normal = nnx.initializers.normal(INIT_SCALE)
    options: dict[str, Any] = {"use_bias": use_bias, "dtype": dtype, "preferred_element_type": out_dtype}
    return Dense(inputs, outputs, kernel_init=normal, rngs=rngs, **options)


def layer_norm(width: int, *, epsilon: float = LAYER_NORM_EPSILON, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns a layer norm over the last axis, with gain and bias; its statistics are float32 whatever ``dtype`` is.

    ``epsilon`` is added to the variance.

    Example:
      >>> layer_norm(4, dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.ones((1, 4))).tolist()
      [[0.0, 0.0, 0.0, 0.0]]
    """
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


def drop(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None, site: int) -> Float[Array, "..."]:
    """Zeroes each entry with probability ``rate`` and scales the rest by 1 / (1 - rate); the identity without a key.

    ``site`` tells apart the places of one layer that share its key.

    Example:
      >>> drop(jnp.ones(3), 0.5, None, 0).tolist()
      [1.0, 1.0, 1.0]
    """
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)


def fastest_implementation(dtype, head_width: int) -> str:
    """Returns "cudnn" on an NVIDIA GPU in half precision, for heads that it takes (multiples of 8 up to 128); "xla" elsewhere.

    Example:
      >>> fastest_implementation(jnp.float32, 32)
      'xla'
    """
    half = jnp.dtype(dtype).itemsize == 2
    nvidia = jax.default_backend() == "gpu" and "cuda" in jax.local_devices()[0].client.platform_version.lower()
    return "cudnn" if half and nvidia and head_width % 8 == 0 and head_width <= 128 else "xla"


def with_prefix(prefix: Mapping[str, Array], k_BxSxHxD: Array, v_BxSxHxD: Array, valid_BxS: Array | None, causal: bool):
    """Returns keys, values and mask of an attention of which every position also sees the prefix, [length, heads * size] each.

    Example:
      >>> prefix, zeros = {"key": jnp.ones((2, 8)), "value": jnp.ones((2, 8))}, jnp.zeros((1, 3, 4, 2))
      >>> keys, values, mask = with_prefix(prefix, zeros, zeros, None, causal=True)
      >>> keys.shape, mask.astype(int)[0, 0].tolist()
      ((1, 5, 4, 2), [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    """
    batch, time, *heads = k_BxSxHxD.shape
    length = prefix["key"].shape[0]

    def put_before(x_BxSxHxD, part):
        part = jnp.broadcast_to(part.reshape(length, *heads).astype(x_BxSxHxD.dtype), (batch, length, *heads))
        return jnp.concatenate([part, x_BxSxHxD], axis=1)

    seen_BxSxS = jnp.ones((batch, time, time), bool)
    seen_BxSxS = jnp.tril(seen_BxSxS) if causal else seen_BxSxS
    seen_BxSxS = seen_BxSxS if valid_BxS is None else seen_BxSxS & valid_BxS[:, None, :]
    mask_Bx1xSxK = jnp.concatenate([jnp.ones((batch, time, length), bool), seen_BxSxS], axis=-1)[:, None]
    return put_before(k_BxSxHxD, prefix["key"]), put_before(v_BxSxHxD, prefix["value"]), mask_Bx1xSxK


def attend(
    q_BxSxHxD: Float[Array, "batch time heads size"],
    k_BxKxGxD: Float[Array, "batch keys groups size"],
    v_BxKxGxD: Float[Array, "batch keys groups size"],
    *,
    mask: Bool[Array, "#batch #heads #time keys"] | None = None,
    is_causal: bool = False,
    implementation: str = "xla",
) -> Float[Array, "batch time heads size"]:
    """Returns what ``jax.nn.dot_product_attention`` does; on a CPU, in float32 and with keys for each head, sooner.

    There XLA has a slow routine for the gradient of the softmax as JAX's function lays it out.

    Example:
      >>> zeros, values = jnp.zeros((1, 2, 1, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, :, None]
      >>> attend(zeros, zeros, values, is_causal=True)[0, :, 0].tolist()
      [[1.0, 2.0], [2.0, 3.0]]
    """
    by_hand = implementation == "xla" and jax.default_backend() == "cpu" and q_BxSxHxD.shape[2] == k_BxKxGxD.shape[2]
    if not by_hand or q_BxSxHxD.dtype != jnp.float32:
        options: dict[str, Any] = {"mask": mask, "is_causal": is_causal, "implementation": implementation}
        return jax.nn.dot_product_attention(q_BxSxHxD, k_BxKxGxD, v_BxKxGxD, **options)
    logits_BxHxSxK = jnp.einsum("bshd,bkhd->bhsk", q_BxSxHxD * q_BxSxHxD.shape[-1] ** -0.5, k_BxKxGxD)
    if is_causal:
        seen = jnp.tril(jnp.ones(logits_BxHxSxK.shape[-2:], bool))
        mask = seen if mask is None else mask & seen
    if mask is not None:
        logits_BxHxSxK = jnp.where(mask, logits_BxHxSxK, _UNSEEN)
    return jnp.einsum("bhsk,bkhd->bshd", jax.nn.softmax(logits_BxHxSxK, axis=-1), v_BxKxGxD)


class SelfAttention(nnx.Module):
    """Multi-head self-attention: ``attention(x[batch, time, width], valid[batch, time]) -> [batch, time, width]``.

    Args:
      width: size of the model, a multiple of ``num_heads``.
      num_heads: how many heads; each has ``width // num_heads`` entries.
      causal: whether a position sees only itself and what came before.
      num_kv_heads: how many heads of keys and values, of which ``num_heads`` is a multiple; None: as many.
      rotary: whether queries and keys are turned by their positions; heads are then of even size.
      dtype: type of the arithmetic; parameters are float32.
      implementation: "xla" (by ``attend``), "cudnn" (bfloat16 on NVIDIA), or None (cuDNN where it can).
      rngs: draws the parameters.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value.

    Example:
      >>> attention = SelfAttention(width=8, num_heads=2, causal=True, rngs=nnx.Rngs(0))
      >>> attention(jnp.ones((1, 5, 8))).shape
      (1, 5, 8)
    """

    prefix: Mapping[str, Array] | None = None  # hung here by ``layers.merge`` (see ``models.prefix``)

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        causal: bool,
        num_kv_heads: int | None = None,
        rotary: bool = False,
        dtype=jnp.float32,
        implementation=None,
        rngs: nnx.Rngs,
    ):
        check.integer("width", width, low=1)
        check.integer("num_heads", num_heads, low=1)
        if width % num_heads:
            check.fail_value("width", f"to be a multiple of num_heads={num_heads}", width)
        self.head_width = width // num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else check.integer("num_kv_heads", num_kv_heads, low=1)
        if num_heads % self.num_kv_heads:
            check.fail_value("num_kv_heads", f"to divide num_heads={num_heads}", num_kv_heads)
        if check.boolean("rotary", rotary) and self.head_width % 2:
            check.fail_value("width", f"of even heads for rotary positions, with num_heads={num_heads}", width)
        self.rotary = rotary
        check.instance("implementation", implementation, (str, type(None)), "None or a string")
        check.one_of("implementation", implementation, (None, "xla", "cudnn"))
        if implementation == "cudnn" and jnp.dtype(dtype).itemsize != 2:
            check.fail_value("dtype", "to be bfloat16 where implementation='cudnn'", jnp.dtype(dtype).name)
        self.num_heads = num_heads
        self.causal = check.boolean("causal", causal)
        self.implementation = implementation
        self.qkv = linear(width, width + 2 * self.num_kv_heads * self.head_width, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_BxSxD: Float[Array, "batch time width"], valid_BxS: Bool[Array, "batch time"] | None = None
    ) -> Float[Array, "batch time width"]:
        """Attends; no position sees one that is not ``valid``, and what such a one itself returns means nothing."""
        batch, time, width = x_BxSxD.shape
        blocks = jnp.split(self.qkv(x_BxSxD), [width, width + self.num_kv_heads * self.head_width], axis=-1)
        q_BxSxHxD, k_BxSxHxD, v_BxSxHxD = (part.reshape(batch, time, -1, self.head_width) for part in blocks)
        if self.rotary:
            q_BxSxHxD, k_BxSxHxD = rotate(q_BxSxHxD), rotate(k_BxSxHxD)
        mask_Bx1x1xS = None if valid_BxS is None else valid_BxS[:, None, None, :]
        implementation = self.implementation or fastest_implementation(q_BxSxHxD.dtype, self.head_width)
        options: dict[str, Any] = {"mask": mask_Bx1x1xS, "is_causal": self.causal, "implementation": implementation}
        if self.prefix is not None:
            k_BxSxHxD, v_BxSxHxD, mask = with_prefix(self.prefix, k_BxSxHxD, v_BxSxHxD, valid_BxS, self.causal)
            options = {"mask": mask, "implementation": "xla"}
        o_BxSxHxD = attend(q_BxSxHxD, k_BxSxHxD, v_BxSxHxD, **options)
        return self.out(o_BxSxHxD.reshape(batch, time, width))


class Block(nnx.Module):
    """One layer: attention, then a feed-forward branch W₂ gelu(W₁ x + b₁) + b₂, each added to what it read.

    With ``norm="pre"``, x += Branch(Norm(x)); with ``norm="post"``, x = Norm(x + Branch(x)).

    Args:
      width, num_heads, causal, num_kv_heads, rotary, dtype, implementation, rngs: as for ``SelfAttention``.
      mlp_width: hidden size of the feed-forward branch.
      norm: "pre" or "post".
      activation: "gelu", or "gelu_tanh" for the tanh form.
      dropout: rate on the output of each branch, where the call gets a key.
      epsilon: of the layer norms.

    Example:
      >>> block = Block(width=8, num_heads=2, mlp_width=32, causal=True, rngs=nnx.Rngs(0))
      >>> block(jnp.ones((1, 5, 8))).shape
      (1, 5, 8)
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_width: int,
        causal: bool,
        num_kv_heads: int | None = None,
        rotary: bool = False,
        norm: str = "pre",
        activation: str = "gelu_tanh",
        dropout: float = 0.0,
        epsilon: float = LAYER_NORM_EPSILON,
        dtype=jnp.float32,
        implementation=None,
        rngs: nnx.Rngs,
    ):
        self.norm_first = check.one_of("norm", norm, ("pre", "post")) == "pre"
        self.tanh_form = check.one_of("activation", activation, ("gelu", "gelu_tanh")) == "gelu_tanh"
        self.dropout = dropout
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.attention_norm = layer_norm(width, epsilon=epsilon, **options)
        heads: dict[str, Any] = {"causal": causal, "num_kv_heads": num_kv_heads, "rotary": rotary}
        self.attention = SelfAttention(width, num_heads, **heads, implementation=implementation, **options)
        self.mlp_norm = layer_norm(width, epsilon=epsilon, **options)
        self.mlp_in = linear(width, mlp_width, **options)
        self.mlp_out = linear(mlp_width, width, **options)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        valid: Bool[Array, "batch time"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch time width"]:
        """Applies the layer; ``key`` drives its dropout, and without one there is none."""
        if self.norm_first:
            x = x + drop(self.attention(self.attention_norm(x), valid), self.dropout, key, site=0)
            return x + drop(self.feed_forward(self.mlp_norm(x)), self.dropout, key, site=1)
        x = self.attention_norm(x + drop(self.attention(x, valid), self.dropout, key, site=0))
        return self.mlp_norm(x + drop(self.feed_forward(x), self.dropout, key, site=1))

    def feed_forward(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        return self.mlp_out(jax.nn.gelu(self.mlp_in(x), approximate=self.tanh_form))
