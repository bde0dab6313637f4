"""Recurrent networks over tokens or over series: LSTM and GRU, as language models and as classifiers.

LSTM ("Long Short-Term Memory", 1997, with the forget gate of Gers et al., 2000)::

    i, f, g, o = split(x W + h U + b);   c' = σ(f) c + σ(i) tanh(g);   h' = σ(o) tanh(c')

GRU (arXiv 1406.1078, the reset gate behind the product, as in cuDNN and PyTorch)::

    r, z, n = split(x W + b), r', z', n' = split(h U + b');   h' = (1 - z) tanh(n + r n') + z h,  with r = σ(r + r'), z alike

At a position that is not valid the state stays what it was, so padding changes nothing, wherever it is. The products with W of
all positions are one matrix product before the loop over time. The state starts at 0, and the forget gate's bias at 1
(arXiv 1602.02410). The state is float32 in bfloat16 arithmetic too.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fedjax_tx import check
from fedjax_tx.models.inputs import check_dtype, check_sizes, read_inputs, read_valid
from fedjax_tx.models.layers import Dense
from fedjax_tx.models.modules import UNIT_NORMAL, as_model, check_shape, look_up, make_head
from fedjax_tx.types import Model

_SERIES = "batch time width"


class LSTM(nnx.Module):
    """One layer: ``layer(x[batch, time, inputs], valid) -> [batch, time, width]``, the state after each position.

    Example:
      >>> LSTM(3, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 3)), None).shape
      (2, 5, 8)
    """

    def __init__(self, inputs: int, width: int, *, dtype, rngs: nnx.Rngs):
        self.width = width
        self.input = _product(inputs, 4 * width, bias_init=_open_forget_gate, dtype=dtype, rngs=rngs)
        self.recurrent = _product(width, 4 * width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time inputs"], valid: Bool[Array, "batch time"] | None) -> Float[Array, _SERIES]:
        """Goes through time."""

        def step(state, moved):
            hidden, cell = state
            i, f, g, o = jnp.split(moved + self.recurrent(hidden), 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            return jax.nn.sigmoid(o) * jnp.tanh(cell), cell

        zeros = jnp.zeros((len(x), self.width), jnp.float32)
        return _through_time(step, (zeros, zeros), self.input(x), valid)


class GRU(nnx.Module):
    """One layer: ``layer(x[batch, time, inputs], valid) -> [batch, time, width]``, the state after each position.

    Example:
      >>> GRU(3, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 3)), None).shape
      (2, 5, 8)
    """

    def __init__(self, inputs: int, width: int, *, dtype, rngs: nnx.Rngs):
        self.width = width
        self.input = _product(inputs, 3 * width, dtype=dtype, rngs=rngs)
        self.recurrent = _product(width, 3 * width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time inputs"], valid: Bool[Array, "batch time"] | None) -> Float[Array, _SERIES]:
        """Goes through time."""

        def step(state, moved):
            (hidden,) = state
            moved_r, moved_z, moved_n = jnp.split(moved, 3, axis=-1)
            held_r, held_z, held_n = jnp.split(self.recurrent(hidden), 3, axis=-1)
            reset, update = jax.nn.sigmoid(moved_r + held_r), jax.nn.sigmoid(moved_z + held_z)
            return ((1.0 - update) * jnp.tanh(moved_n + reset * held_n) + update * hidden,)

        zeros = jnp.zeros((len(x), self.width), jnp.float32)
        return _through_time(step, (zeros,), self.input(x), valid)


_CELLS: dict[str, Any] = {"lstm": LSTM, "gru": GRU}


def _product(inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs, **options) -> Dense:
    return Dense(inputs, outputs, dtype=dtype, preferred_element_type=jnp.float32, kernel_init=UNIT_NORMAL, rngs=rngs, **options)


def _open_forget_gate(key, shape, dtype):
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1.0)


def _through_time(step, state, moved: Float[Array, "batch time gates"], valid) -> Float[Array, _SERIES]:
    """The first part of the state after each position; ``step(state, moved[batch, gates]) -> state``."""

    def one(state, at):
        moved, real = at
        stepped = step(state, moved)
        if real is not None:
            stepped = jax.tree.map(lambda new, old: jnp.where(real[:, None], new, old), stepped, state)
        return stepped, stepped[0]

    times = jnp.moveaxis(moved, 1, 0), None if valid is None else valid.T
    return jnp.moveaxis(jax.lax.scan(one, state, times)[1], 0, 1)


class _Network(nnx.Module):
    """An embedding, where there are tokens, layers, and a head."""

    def __init__(self, cell, inputs, width, num_layers, outputs, *, vocab_size, dtype, rngs):
        self.num_layers = num_layers
        if vocab_size is not None:
            table = {"embedding_init": nnx.initializers.normal(1.0), "dtype": jnp.float32, "rngs": rngs}
            self.token_embedding = nnx.Embed(vocab_size, inputs, **table)
        for number in range(num_layers):
            setattr(self, f"layer_{number}", _CELLS[cell](inputs, width, dtype=dtype, rngs=rngs))
            inputs = width
        self.head = make_head(width, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x, valid, *, every_position: bool):
        if hasattr(self, "token_embedding"):
            x = look_up(self.token_embedding, x, valid)
        elif valid is not None:
            x = jnp.where(valid[..., None], x, 0)  # of NaN, which often fills up series, gradients would be NaN
        for number in range(self.num_layers):
            x = getattr(self, f"layer_{number}")(x, valid)
        return self.head(x if every_position else x[:, -1])


def recurrent(
    *,
    vocab_size: int | None = None,
    num_features: int | None = None,
    num_classes: int | None = None,
    cell: str = "lstm",
    width: int = 256,
    num_layers: int = 2,
    embedding_width: int = 8,
    dtype=jnp.float32,
) -> Model:
    """Returns an LSTM or GRU over ``tokens`` [batch, time] or over a series ``x`` [batch, time, features].

    With ``num_classes`` it gives logits [batch, classes], read off the last state; without, those of the next token at each
    position, [batch, time, vocab]. Float32. It takes the array alone, or a dict of it and ``valid`` [batch, time].

    The defaults are the language model for Shakespeare of "Adaptive Federated Optimization" (arXiv 2003.00295).

    Args:
      vocab_size: how many tokens there are, or
      num_features: of a series at a position. Exactly one of the two is given.
      num_classes: of the output, which a series needs.
      cell: "lstm" or "gru". width: of the state of each layer. num_layers: one upon the other.
      embedding_width: of a token's vector. dtype: of the products, float32 or bfloat16.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or value; in ``apply``, an input has the wrong shape or is unknown.

    Example:
      >>> model = recurrent(vocab_size=90)
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jnp.zeros((2, 5), jnp.int32)).shape
      (2, 5, 90)
      >>> model = recurrent(num_features=3, num_classes=4, cell="gru", width=8)
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 5, 3))).shape
      (2, 4)
    """
    if (vocab_size is None) == (num_features is None):
        check.fail_value("vocab_size or num_features, not both", "to be given", (vocab_size, num_features))
    if num_classes is None and vocab_size is None:
        check.fail_value("num_classes", "where num_features is given", None)
    optional = {"vocab_size": vocab_size, "num_features": num_features, "num_classes": num_classes}
    given = {name: size for name, size in optional.items() if size is not None}
    check_sizes(**given, width=width, num_layers=num_layers, embedding_width=embedding_width)
    check.one_of("cell", cell, tuple(_CELLS))
    check_dtype(dtype)
    inputs = embedding_width if num_features is None else num_features
    outputs = vocab_size if num_classes is None else num_classes

    def call(network, inputs):
        name = "tokens" if num_features is None else "x"
        columns = read_inputs(inputs, name, ("valid",))
        values = columns[name]
        check_shape(name, values, (None,) if num_features is None else (None, num_features))
        if num_features is None and not jnp.issubdtype(jnp.result_type(values), jnp.integer):
            check.fail_type(name, "integers", jnp.result_type(values))
        return network(values, read_valid(columns, jnp.shape(values)[:2]), every_position=num_classes is None)

    options = {"vocab_size": vocab_size, "dtype": dtype}
    return as_model(lambda rngs: _Network(cell, inputs, width, num_layers, outputs, rngs=rngs, **options), call)
