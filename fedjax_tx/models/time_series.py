"""A Transformer of signals: series of sensors or frames of speech, of any length up to a largest.

Neighbouring steps are joined into patches, as in PatchTST (arXiv:2211.14730; patch_length=1 keeps each step, as for frames of a
spectrogram), without overlap; each is flattened in the order [step, channel]::

    x = patches W + b + positions;   x = Block_l(x) for each layer l, pre-norm;   x = Norm(x)
    classes     logits = mean of x over valid patches W_head + b
    forecast    next ``horizon`` steps of all channels = x at the last valid patch W_head + b

A series whose length is no multiple of the patch is filled up with zeros, and so are steps that are not valid; a patch without
any valid step is seen by none. So padding at the end changes nothing. PatchTST treats channels apart and flattens all patches
into its head; here channels are read together and the head does not depend on the length.

The tree of parameters (a kernel is [inputs, outputs]; ``layers`` as in ``models/stack.py``)::

    patch_embedding/{kernel, bias}     [patch_length * channels, width]
    position_embedding/embedding       [max_length / patch_length, rounded up, width]     where positions="learned"
    layers/...                         [num_layers, ...]
    final_norm/{scale, bias}           [width]
    head/{kernel, bias}                [width, num_classes or horizon * channels]
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from fedjax_tx import check
from fedjax_tx.models.attention import INIT_SCALE, drop, layer_norm, linear
from fedjax_tx.models.inputs import check_sizes, read_inputs, read_valid
from fedjax_tx.models.pooling import last_valid, masked_mean
from fedjax_tx.models.positions import sinusoids
from fedjax_tx.models.stack import Layers, make_stack
from fedjax_tx.types import Model, PyTree


def join_steps(
    series: Float[Array, "batch time channels"], valid: Bool[Array, "batch time"] | None, length: int
) -> tuple[Float[Array, "batch patches entries"], Bool[Array, "batch patches"] | None]:
    """Returns patches of ``length`` steps, and which of them have a valid step; what is missing or not valid is 0.

    Example:
      >>> patches, valid = join_steps(jnp.ones((1, 3, 1)), jnp.array([[True, False, False]]), 2)
      >>> patches.tolist(), valid.tolist()
      ([[[1.0, 0.0], [0.0, 0.0]]], [[True, False]])
    """
    batch, time, channels = series.shape
    missing = -time % length
    if valid is not None:
        series = jnp.where(valid[..., None], series, 0.0)
        valid = jnp.pad(valid, ((0, 0), (0, missing))).reshape(batch, -1, length).any(axis=-1)
    series = jnp.pad(series, ((0, 0), (0, missing), (0, 0)))
    return series.reshape(batch, -1, length * channels), valid


class _Ends(nnx.Module):
    def __init__(self, layers: Layers, entries: int, patches: int, outputs: int, *, learned: bool, mean: bool, rngs: nnx.Rngs):
        self.layers, self.mean = layers, mean
        self.patch_embedding = linear(entries, layers.width, dtype=layers.dtype, rngs=rngs)
        table = {"embedding_init": nnx.initializers.normal(INIT_SCALE), "dtype": jnp.float32, "rngs": rngs}
        self.position_embedding = nnx.Embed(patches, layers.width, **table) if learned else None
        self.final_norm = layer_norm(layers.width, epsilon=layers.epsilon, dtype=layers.dtype, rngs=rngs)
        self.head = linear(layers.width, outputs, dtype=jnp.float32, rngs=rngs)

    def embed(self, patches, key):
        x = self.patch_embedding(patches).astype(jnp.float32)
        if self.position_embedding is None:
            x = x + sinusoids(x.shape[1], x.shape[2])
        else:
            x = x + self.position_embedding.embedding[: x.shape[1]]
        return drop(x.astype(self.layers.dtype), self.layers.dropout, key, site=0)

    def read_out(self, x, valid, key):
        x = self.final_norm(x)
        pooled = masked_mean(x, valid) if self.mean else last_valid(x, valid)
        return self.head(drop(pooled, self.layers.dropout, key, site=0))


def time_series(
    channels: int,
    num_layers: int = 2,
    num_heads: int = 4,
    width: int = 128,
    max_length: int = 256,
    *,
    num_classes: int | None = None,
    horizon: int | None = None,
    patch_length: int = 1,
    positions: str = "learned",
    activation: str = "gelu",
    mlp_width: int | None = None,
    layer_norm_epsilon: float = 1e-5,
    dropout: float = 0.0,
    dtype=jnp.float32,
    implementation: str | None = None,
    unroll: bool = True,
) -> Model:
    """Returns a model of series: ``apply(params, inputs, key=None)``, float32.

    ``inputs`` are ``series`` [batch, time, channels], or a dict of them and ``valid`` [batch, time], True or 1 where a step is
    no padding. Returned are logits [batch, num_classes], or with ``horizon`` the next steps [batch, horizon, channels].

    Args:
      channels: numbers in each step.
      max_length: most steps of an input; shorter ones are fine.
      num_classes, horizon: one of them: how many classes, or how many steps ahead.
      patch_length: how many steps are joined into one position.
      positions: "learned", or "sinusoidal" (arXiv:1706.03762); then ``width`` is even.
      layer_norm_epsilon: > 0, added to the variance in every layer norm.
      num_layers, num_heads, width, activation, mlp_width, dropout, dtype, implementation, unroll: as for ``encoder``.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value; in ``apply``, an input is missing,
        unknown, or not of the shape and type told above.

    Example:
      >>> import jax
      >>> model = time_series(channels=3, num_classes=5, patch_length=4)
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, {"series": jnp.zeros((2, 50, 3)), "valid": jnp.arange(50) < jnp.array([[50], [7]])}).shape
      (2, 5)
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
    check_sizes(channels=channels, max_length=max_length, patch_length=patch_length)
    if (num_classes is None) == (horizon is None):
        check.fail_value("num_classes and horizon", "to be given one without the other", (num_classes, horizon))
    if horizon is None:
        outputs = check.integer("num_classes", num_classes, low=1)
    else:
        outputs = channels * check.integer("horizon", horizon, low=1)
    if check.one_of("positions", positions, ("learned", "sinusoidal")) == "sinusoidal" and width % 2:
        check.fail_value("width", "to be even for positions='sinusoidal'", width)
    sizes = (patch_length * channels, -(-max_length // patch_length), outputs)
    options = {"learned": positions == "learned", "mean": horizon is None}
    stack = make_stack(lambda key: _Ends(layers, *sizes, **options, rngs=nnx.Rngs(key)), layers)

    def apply(
        params: PyTree,
        inputs: Float[Array, "batch time channels"] | Mapping[str, Array],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch ..."]:
        arrays = read_inputs(inputs, "series", ("valid",))
        series = arrays["series"]
        _check_series(series, max_length, channels)
        patches, valid = join_steps(series, read_valid(arrays, jnp.shape(series)[:2]), patch_length)
        ends = stack.ends(params)
        x = stack.run(params, ends.embed(patches, stack.key_of(key, "before")), valid, key=key)
        outputs = ends.read_out(x, valid, stack.key_of(key, "after"))
        return outputs if horizon is None else outputs.reshape(-1, horizon, channels)

    return Model(stack.init, apply)


def _check_series(series, max_length: int, channels: int) -> None:
    if not jnp.issubdtype(jnp.result_type(series), jnp.floating):
        check.fail_type("series", "floating-point numbers", jnp.result_type(series))
    shape = jnp.shape(series)
    if len(shape) != 3 or shape[2] != channels:
        check.fail_value("series", f"of shape [batch, time, {channels}]", shape)
    if not 1 <= shape[1] <= max_length:
        check.fail_value("series", f"of 1 to max_length={max_length} steps", shape[1])
