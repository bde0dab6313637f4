"""A Transformer of tables: the FT-Transformer of "Revisiting Deep Learning Models for Tabular Data" (arXiv:2106.11959).

Each feature of a row is a token, and a class token comes before them::

    token_j = x_j s_j + b_j               a number
    token_j = E_j[x_j] + b_j              a category
    token_j = missing_j                   a number that is NaN, or a category outside of 0 .. its count - 1
    x = [class_token; tokens];   x = Block_l(x) for each layer l, pre-norm;   outputs = relu(Norm(x[:, 0])) W_head + b

The paper has no token for what is missing, a ReGLU in place of GELU, and leaves out the first norm of the first layer. Numbers
should be scaled to about unit variance.

The tree of parameters (a kernel is [inputs, outputs]; ``layers`` as in ``models/stack.py``)::

    numeric/{slope, bias}          [num_numeric, width]                  where there are numbers
    category_embedding/embedding   [sum of categories, width]            where there are categories, feature after feature
    category_bias/embedding        [number of categorical features, width]
    missing/embedding              [number of features, width], the numbers first
    class_token/embedding          [1, width]
    layers/...                     [num_layers, ...]
    final_norm/{scale, bias}       [width]
    head/{kernel, bias}            [width, num_outputs]
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from fedjax_tx import check
from fedjax_tx.models.attention import drop, layer_norm, linear
from fedjax_tx.models.inputs import check_sizes
from fedjax_tx.models.stack import Layers, make_stack
from fedjax_tx.types import Model, PyTree


def _uniform(width: int):
    """The paper's start of tokens: uniform between -1/sqrt(width) and 1/sqrt(width)."""
    bound = width**-0.5
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)


class _Numbers(nnx.Module):
    """Each number times a vector of its own, plus another."""

    def __init__(self, count: int, width: int, *, rngs: nnx.Rngs):
        self.slope = nnx.Param(_uniform(width)(rngs.params(), (count, width)))
        self.bias = nnx.Param(_uniform(width)(rngs.params(), (count, width)))

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch features width"]:
        return x[..., None] * self.slope[...] + self.bias[...]


class _Ends(nnx.Module):
    def __init__(self, layers: Layers, num_numeric: int, categories: tuple[int, ...], num_outputs: int, *, rngs: nnx.Rngs):
        self.layers, self.categories = layers, categories
        table = {"features": layers.width, "embedding_init": _uniform(layers.width), "dtype": jnp.float32, "rngs": rngs}
        self.numeric = _Numbers(num_numeric, layers.width, rngs=rngs) if num_numeric else None
        self.category_embedding = nnx.Embed(sum(categories), **table) if categories else None
        self.category_bias = nnx.Embed(len(categories), **table) if categories else None
        self.missing = nnx.Embed(num_numeric + len(categories), **table)
        self.class_token = nnx.Embed(1, **table)
        self.final_norm = layer_norm(layers.width, epsilon=layers.epsilon, dtype=layers.dtype, rngs=rngs)
        self.head = linear(layers.width, num_outputs, dtype=jnp.float32, rngs=rngs)

    def embed(self, numeric, categorical, key):
        tokens, present = [], []
        if self.numeric is not None:
            # where before the product: NaN times 0 would be NaN in the gradient.
            is_number = ~jnp.isnan(numeric)
            tokens.append(self.numeric(jnp.where(is_number, numeric, 0.0).astype(jnp.float32)))
            present.append(is_number)
        if self.category_embedding is not None and self.category_bias is not None:
            sizes = np.array(self.categories)
            is_known = (categorical >= 0) & (categorical < sizes)
            rows = jnp.where(is_known, categorical, 0) + (np.cumsum(sizes) - sizes)
            tokens.append(self.category_embedding(rows) + self.category_bias.embedding[...])
            present.append(is_known)
        x, known = jnp.concatenate(tokens, axis=1), jnp.concatenate(present, axis=1)
        x = jnp.where(known[..., None], x, self.missing.embedding[...])
        token = jnp.broadcast_to(self.class_token.embedding[...], (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([token, x], axis=1).astype(self.layers.dtype)
        return drop(x, self.layers.dropout, key, site=0)

    def read_out(self, x, key):
        pooled = jax.nn.relu(self.final_norm(x[:, 0]).astype(jnp.float32))
        return self.head(drop(pooled, self.layers.dropout, key, site=0))


def tabular(
    num_numeric: int,
    categories: Sequence[int],
    num_outputs: int,
    num_layers: int = 2,
    num_heads: int = 4,
    width: int = 64,
    *,
    activation: str = "gelu",
    mlp_width: int | None = None,
    layer_norm_epsilon: float = 1e-5,
    dropout: float = 0.0,
    dtype=jnp.float32,
    implementation: str | None = None,
    unroll: bool = True,
) -> Model:
    """Returns a model of rows of a table: ``apply(params, inputs, key=None) -> float32 [batch, num_outputs]``.

    ``inputs`` is a dict of ``numeric`` [batch, num_numeric], NaN where a number is missing, and ``categorical``, integers
    [batch, len(categories)], -1 (or any other number outside of a feature's categories) where one is missing or unknown. One
    that has no features is left out.

    Args:
      num_numeric: how many numbers a row has.
      categories: how many categories each categorical feature has.
      num_outputs: how many classes, or numbers to predict.
      layer_norm_epsilon: > 0, added to the variance in every layer norm.
      num_layers, num_heads, width, activation, mlp_width, dropout, dtype, implementation, unroll: as for ``encoder``.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value; in ``apply``, an input is missing,
        unknown, or not of the shape and type told above.

    Example:
      >>> model = tabular(num_numeric=2, categories=[3, 7], num_outputs=1)
      >>> params = model.init(jax.random.key(0))
      >>> row = {"numeric": jnp.array([[0.5, jnp.nan]]), "categorical": jnp.array([[2, -1]])}
      >>> model.apply(params, row).shape
      (1, 1)
    """
    layers = Layers(
        num_layers,
        num_heads,
        width,
        mlp_width,
        activation=activation,
        dropout=dropout,
        epsilon=layer_norm_epsilon,
        dtype=dtype,
        implementation=implementation,
        unroll=unroll,
    )
    check.integer("num_numeric", num_numeric, low=0)
    check.instance("categories", categories, (list, tuple), "a list of counts")
    for count in categories:
        check.integer("a count of categories", count, low=1)
    check_sizes(num_outputs=num_outputs)
    if num_numeric + len(categories) == 0:
        check.fail_value("num_numeric", ">= 1 where there are no categories", num_numeric)
    counts = tuple(categories)
    stack = make_stack(lambda key: _Ends(layers, num_numeric, counts, num_outputs, rngs=nnx.Rngs(key)), layers)

    def apply(params: PyTree, inputs: Mapping[str, Array], *, key: Key[Array, ""] | None = None) -> Float[Array, "batch outputs"]:
        numeric, categorical = _read(inputs, {"numeric": num_numeric, "categorical": len(counts)})
        ends = stack.ends(params)
        x = ends.embed(numeric, categorical, stack.key_of(key, "before"))
        return ends.read_out(stack.run(params, x, key=key), stack.key_of(key, "after"))

    return Model(stack.init, apply)


def _read(inputs, features: Mapping[str, int]):
    wanted = sorted(name for name, count in features.items() if count)
    if sorted(check.mapping("the model's inputs", inputs)) != wanted:
        check.fail_value("the model's inputs", f"to be {wanted}", sorted(inputs))
    kinds = {"numeric": (jnp.floating, "floating-point numbers"), "categorical": (jnp.integer, "integers")}
    for name in wanted:
        kind, expected = kinds[name]
        if not jnp.issubdtype(jnp.result_type(inputs[name]), kind):
            check.fail_type(name, expected, jnp.result_type(inputs[name]))
        if jnp.ndim(inputs[name]) != 2 or jnp.shape(inputs[name])[1] != features[name]:
            check.fail_value(name, f"of shape [batch, {features[name]}]", jnp.shape(inputs[name]))
    return inputs.get("numeric"), inputs.get("categorical")
