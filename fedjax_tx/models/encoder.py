"""A Transformer that reads a text in both directions: BERT (arXiv:1810.04805), and its pre-norm form.

With ``norm="post"`` and the other defaults it is BERT: embeddings of token, position and segment are added and normalised, and
each layer normalises after its sums::

    x = Norm(token_embedding[tokens] + position_embedding + segment_embedding[segments]);   x = Block_l(x) for each layer l

With ``norm="pre"`` (arXiv:2002.04745) there is no norm of the embeddings, and one after the last layer instead. What is read
off is one of three heads::

    classes      pooled = x[:, 0] (pool="cls") or the mean of valid positions (pool="mean");  with pooler=True,
                 pooled = tanh(pooled W_pooler + b), as in BERT;   logits = pooled W_head + b
    tokens       logits = Norm(gelu(x W_transform + b)) E^T + b_head, BERT's masked language model; E is the token embedding, or
                 a kernel of its own with tie_embeddings=False
    embeddings   pooled, of length 1 with normalise=True: Sentence-BERT (arXiv:1908.10084)

The tree of parameters (a kernel is [inputs, outputs]; ``layers`` as in ``models/stack.py``)::

    token_embedding/embedding       [vocab_size, width]
    position_embedding/embedding    [max_length, width]
    segment_embedding/embedding     [num_segments, width]     where num_segments > 0
    embedding_norm/{scale, bias}    [width]                   where norm="post"
    layers/...                      [num_layers, ...]
    final_norm/{scale, bias}        [width]                   where norm="pre"
    pooler/{kernel, bias}           [width, width]            head "classes" with pooler=True
    transform/{kernel, bias}        [width, width]            head "tokens"
    transform_norm/{scale, bias}    [width]                   head "tokens"
    head/{kernel, bias}             [width, num_classes]      head "classes"
    head/{kernel, bias}             [width, vocab_size]       head "tokens"; the bias alone where embeddings are tied

A position that is not valid is seen by none, so that padding changes nothing; dropout acts on the embeddings and the branches,
and on what a head of classes reads.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from fedjax_tx import check
from fedjax_tx.models.attention import INIT_SCALE, drop, layer_norm, linear
from fedjax_tx.models.inputs import check_sizes, check_tokens, read_inputs, read_valid
from fedjax_tx.models.modules import look_up
from fedjax_tx.models.pooling import pool_positions, unit_length
from fedjax_tx.models.product import product
from fedjax_tx.models.stack import Layers, make_stack
from fedjax_tx.types import Model, PyTree


class _Embedder(nnx.Module):
    """What comes before the layers; the three kinds of ends share it."""

    def __init__(self, layers: Layers, vocab_size: int, max_length: int, num_segments: int, *, rngs: nnx.Rngs):
        self.layers = layers
        # The tables stay float32 in the lookup, so that gradients of tokens that occur often are summed in float32.
        table = {"embedding_init": nnx.initializers.normal(INIT_SCALE), "dtype": jnp.float32, "rngs": rngs}
        self.token_embedding = nnx.Embed(vocab_size, layers.width, **table)
        self.position_embedding = nnx.Embed(max_length, layers.width, **table)
        self.segment_embedding = nnx.Embed(num_segments, layers.width, **table) if num_segments else None
        self.embedding_norm = self.norm(rngs) if layers.norm == "post" else None
        self.final_norm = self.norm(rngs) if layers.norm == "pre" else None

    def norm(self, rngs):
        return layer_norm(self.layers.width, epsilon=self.layers.epsilon, dtype=self.layers.dtype, rngs=rngs)

    def dense(self, outputs, rngs, **options):
        return linear(self.layers.width, outputs, rngs=rngs, **{"dtype": self.layers.dtype, **options})

    def embed(self, tokens, segments, valid, key):
        x = look_up(self.token_embedding, tokens, valid) + self.position_embedding.embedding[: tokens.shape[1]]
        if self.segment_embedding is not None:
            x = x + look_up(self.segment_embedding, jnp.zeros_like(tokens) if segments is None else segments, valid)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return drop(x.astype(self.layers.dtype), self.layers.dropout, key, site=0)

    def last(self, x):
        return x if self.final_norm is None else self.final_norm(x)


class _ClassEnds(_Embedder):
    def __init__(self, layers, *sizes, num_classes, pool, pooler, rngs):
        super().__init__(layers, *sizes, rngs=rngs)
        self.pool = pool
        # One vector an example costs nothing in float32.
        self.pooler = self.dense(layers.width, rngs, dtype=jnp.float32) if pooler else None
        self.head = self.dense(num_classes, rngs, dtype=jnp.float32)

    def read_out(self, x, valid, key):
        pooled = pool_positions(self.last(x), valid, self.pool)
        if self.pooler is not None:
            pooled = jnp.tanh(self.pooler(pooled))
        return self.head(drop(pooled, self.layers.dropout, key, site=0))


class _Bias(nnx.Module):
    """What a tied head has of its own."""

    def __init__(self, size):
        self.bias = nnx.Param(jnp.zeros(size))


class _TokenEnds(_Embedder):
    def __init__(self, layers, vocab_size, *sizes, tie_embeddings, rngs):
        super().__init__(layers, vocab_size, *sizes, rngs=rngs)
        self.tied = tie_embeddings
        self.transform = self.dense(layers.width, rngs)
        self.transform_norm = self.norm(rngs)
        self.head: Any = _Bias(vocab_size) if tie_embeddings else self.dense(vocab_size, rngs, out_dtype=jnp.float32)

    def read_out(self, x, valid, key):
        hidden = jax.nn.gelu(self.transform(self.last(x)), approximate=self.layers.activation == "gelu_tanh")
        hidden = self.transform_norm(hidden)
        if not self.tied:
            return self.head(hidden)
        table = self.token_embedding.embedding[...]
        logits = product(hidden, table.T.astype(self.layers.dtype), out_dtype=jnp.float32)
        return logits + self.head.bias[...]


class _EmbeddingEnds(_Embedder):
    def __init__(self, layers, *sizes, pool, normalise, rngs):
        super().__init__(layers, *sizes, rngs=rngs)
        self.pool, self.normalise = pool, normalise

    def read_out(self, x, valid, key):
        pooled = pool_positions(self.last(x), valid, self.pool)
        return unit_length(pooled) if self.normalise else pooled


def encoder(
    vocab_size: int,
    num_layers: int = 2,
    num_heads: int = 4,
    width: int = 128,
    max_length: int = 64,
    *,
    head: str = "classes",
    num_classes: int | None = None,
    pool: str = "mean",
    pooler: bool = False,
    tie_embeddings: bool = True,
    normalise: bool = False,
    num_segments: int = 0,
    norm: str = "post",
    activation: str = "gelu",
    mlp_width: int | None = None,
    layer_norm_epsilon: float = 1e-12,
    dropout: float = 0.0,
    dtype=jnp.float32,
    implementation: str | None = None,
    unroll: bool = True,
) -> Model:
    """Returns a model of whole texts: ``apply(params, inputs, key=None)``.

    ``inputs`` are tokens, integers [batch, time], or a dict of ``tokens``, ``valid`` [batch, time] (True or 1 where a token is no
    padding; absent: all are valid) and ``segments`` [batch, time] (integers below ``num_segments``; absent: all 0). Returned
    are float32 logits [batch, num_classes] or [batch, time, vocab_size], or embeddings [batch, width].

    Args:
      vocab_size, num_layers, num_heads, width, max_length, mlp_width, unroll, implementation: as for ``decoder``.
      head: "classes", "tokens" or "embeddings".
      num_classes: of the head "classes", and of no other.
      pool: "mean" of the valid positions, or "cls", the first one; of the heads "classes" and "embeddings".
      pooler: whether a tanh layer stands before the head "classes".
      tie_embeddings: whether the kernel of the head "tokens" is the transposed token embedding.
      normalise: whether the head "embeddings" gives vectors of length 1.
      num_segments: how many segments a text may have; 0: none, and no embedding of them. BERT has 2.
      norm: "post" as in BERT, or "pre".
      activation: "gelu", or "gelu_tanh" for its tanh form.
      layer_norm_epsilon: > 0, added to the variance in every layer norm.
      dropout: rate, 0 <= rate < 1, where ``apply`` gets a key.
      dtype: type of the arithmetic, float32 or bfloat16; parameters, gradients and outputs are float32 in both.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value; in ``apply``, an input is missing,
        unknown, or not of the shape and type told above.

    Example:
      >>> model = encoder(vocab_size=96, num_classes=3)
      >>> params = model.init(jax.random.key(0))
      >>> tokens = jnp.zeros((8, 20), jnp.int32)
      >>> model.apply(params, {"tokens": tokens, "valid": tokens == 0}).shape
      (8, 3)
    """
    layers = Layers(
        num_layers,
        num_heads,
        width,
        mlp_width,
        norm=norm,
        activation=activation,
        dropout=dropout,
        epsilon=layer_norm_epsilon,
        dtype=dtype,
        implementation=implementation,
        unroll=unroll,
    )
    check_sizes(vocab_size=vocab_size, max_length=max_length)
    check.integer("num_segments", num_segments, low=0)
    ends: dict[str, tuple[Any, dict[str, Any]]] = {
        "classes": (_ClassEnds, {"num_classes": num_classes, "pool": pool, "pooler": pooler}),
        "tokens": (_TokenEnds, {"tie_embeddings": tie_embeddings}),
        "embeddings": (_EmbeddingEnds, {"pool": pool, "normalise": normalise}),
    }
    kind, options = ends[check.one_of("head", head, tuple(ends))]
    _check_head(head, num_classes, pool, pooler=pooler, tie_embeddings=tie_embeddings, normalise=normalise)
    stack = make_stack(lambda key: kind(layers, vocab_size, max_length, num_segments, **options, rngs=nnx.Rngs(key)), layers)

    def apply(
        params: PyTree,
        inputs: Int[Array, "batch time"] | Mapping[str, Array],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch ..."]:
        tokens, valid, segments = _read(inputs, max_length, num_segments)
        ends = stack.ends(params)
        x = ends.embed(tokens, segments, valid, stack.key_of(key, "before"))
        return ends.read_out(stack.run(params, x, valid, key=key), valid, stack.key_of(key, "after"))

    return Model(stack.init, apply)


def _check_head(head: str, num_classes, pool, **switches: bool) -> None:
    check.one_of("pool", pool, ("mean", "cls"))
    for name, switch in switches.items():
        check.boolean(name, switch)
    if head == "classes":
        check.integer("num_classes", num_classes, low=1)
    elif num_classes is not None:
        check.fail_value("num_classes", f"to be None where head={head!r}", num_classes)
    for name, its_head in (("pooler", "classes"), ("normalise", "embeddings")):
        if switches[name] and head != its_head:
            check.fail_value(name, f"to be False where head={head!r}", switches[name])


def _read(inputs, max_length: int, num_segments: int):
    arrays = read_inputs(inputs, "tokens", ("valid", "segments") if num_segments else ("valid",))
    tokens, segments = arrays["tokens"], arrays.get("segments")
    check_tokens(tokens, max_length)
    if segments is not None:
        check_tokens(segments, max_length, "segments")
        if jnp.shape(segments) != jnp.shape(tokens):
            check.fail_value("segments", f"of shape {jnp.shape(tokens)}", jnp.shape(segments))
    return tokens, read_valid(arrays, jnp.shape(tokens)), segments
