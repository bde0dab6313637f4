"""The Vision Transformer (arXiv:2010.11929): an image is a text of patches.

Patches are cut without overlap, row by row, each flattened in the order [row, column, channel], and go through one dense
layer::

    x = [class_token; patches W + b] + position_embedding;   x = Block_l(x) for each layer l, pre-norm;   x = Norm(x)
    logits = x[:, 0] W_head + b         or, with pool="mean", without a class token, the mean of all patches in place of x[:, 0]

With the defaults of ``activation`` and ``layer_norm_epsilon`` it is the model of that name in common libraries; a convolution's
kernel [row, column, channel, width] is the patches' kernel when reshaped to [row * column * channel, width].

The tree of parameters (a kernel is [inputs, outputs]; ``layers`` as in ``models/stack.py``)::

    patch_embedding/{kernel, bias}     [patch_size² * channels, width]
    class_token/embedding              [1, width]                             where pool="cls"
    position_embedding/embedding       [patches (+ 1), width], the class token's first
    layers/...                         [num_layers, ...]
    final_norm/{scale, bias}           [width]
    head/{kernel, bias}                [width, num_classes]
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fedjax_tx import check
from fedjax_tx.models.attention import INIT_SCALE, drop, layer_norm, linear
from fedjax_tx.models.inputs import check_sizes
from fedjax_tx.models.pooling import pool_positions
from fedjax_tx.models.stack import Layers, make_stack
from fedjax_tx.types import Model, PyTree


def cut_patches(images: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch patches entries"]:
    """Returns the patches of images, row by row, each in the order [row, column, channel].

    Example:
      >>> cut_patches(jnp.arange(8.0).reshape(1, 2, 4, 1), 2)[0].tolist()
      [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    parts = images.reshape(batch, rows, size, columns, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(batch, rows * columns, size * size * channels)


class _Ends(nnx.Module):
    def __init__(self, layers: Layers, entries: int, patches: int, num_classes: int, pool: str, *, rngs: nnx.Rngs):
        self.layers, self.pool = layers, pool
        table = {"embedding_init": nnx.initializers.normal(INIT_SCALE), "dtype": jnp.float32, "rngs": rngs}
        self.patch_embedding = linear(entries, layers.width, dtype=layers.dtype, rngs=rngs)
        self.class_token = nnx.Embed(1, layers.width, **table) if pool == "cls" else None
        self.position_embedding = nnx.Embed(patches + (pool == "cls"), layers.width, **table)
        self.final_norm = layer_norm(layers.width, epsilon=layers.epsilon, dtype=layers.dtype, rngs=rngs)
        self.head = linear(layers.width, num_classes, dtype=jnp.float32, rngs=rngs)

    def embed(self, patches, key):
        x = self.patch_embedding(patches).astype(jnp.float32)
        if self.class_token is not None:
            token = jnp.broadcast_to(self.class_token.embedding[...], (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([token, x], axis=1)
        x = (x + self.position_embedding.embedding[...]).astype(self.layers.dtype)
        return drop(x, self.layers.dropout, key, site=0)

    def read_out(self, x, key):
        pooled = pool_positions(self.final_norm(x), None, self.pool)
        return self.head(drop(pooled, self.layers.dropout, key, site=0))


def vit(
    image_size: int | Sequence[int],
    patch_size: int,
    num_classes: int,
    num_layers: int = 2,
    num_heads: int = 4,
    width: int = 128,
    *,
    channels: int = 3,
    pool: str = "cls",
    activation: str = "gelu",
    mlp_width: int | None = None,
    layer_norm_epsilon: float = 1e-12,
    dropout: float = 0.0,
    dtype=jnp.float32,
    implementation: str | None = None,
    unroll: bool = True,
) -> Model:
    """Returns a classifier of images: ``apply(params, images[batch, height, width, channels], key=None) -> logits``.

    Args:
      image_size: height and width of the images in pixels: a pair, or one number for both; multiples of ``patch_size``.
      patch_size: side of a patch in pixels.
      num_classes: how many classes.
      channels: of the images, which are floating-point numbers.
      pool: "cls" reads a class token, "mean" the mean of the patches.
      layer_norm_epsilon: > 0, added to the variance in every layer norm.
      num_layers, num_heads, width, activation, mlp_width, dropout, dtype, implementation, unroll: as for ``encoder``.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value; in ``apply``, images are of another
        shape or no floating-point numbers.

    Example:
      >>> import jax
      >>> model = vit(image_size=8, patch_size=4, num_classes=10, width=16)
      >>> params = model.init(jax.random.key(0))
      >>> params["position_embedding"]["embedding"].shape, model.apply(params, jnp.zeros((2, 8, 8, 3))).shape
      ((5, 16), (2, 10))
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
    check_sizes(patch_size=patch_size, num_classes=num_classes, channels=channels)
    height, breadth = _check_image_size(image_size, patch_size)
    check.one_of("pool", pool, ("cls", "mean"))
    patches = (height // patch_size) * (breadth // patch_size)
    entries = patch_size * patch_size * channels
    stack = make_stack(lambda key: _Ends(layers, entries, patches, num_classes, pool, rngs=nnx.Rngs(key)), layers)

    def apply(
        params: PyTree, images: Float[Array, "batch height width channels"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch classes"]:
        if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
            check.fail_type("images", "floating-point numbers", jnp.result_type(images))
        if jnp.ndim(images) != 4 or jnp.shape(images)[1:] != (height, breadth, channels):
            check.fail_value("images", f"of shape [batch, {height}, {breadth}, {channels}]", jnp.shape(images))
        ends = stack.ends(params)
        x = ends.embed(cut_patches(images, patch_size), stack.key_of(key, "before"))
        return ends.read_out(stack.run(params, x, key=key), stack.key_of(key, "after"))

    return Model(stack.init, apply)


def _check_image_size(image_size, patch_size: int) -> tuple[int, int]:
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2:
        check.fail_value("image_size", "to be a number or a pair of them", image_size)
    for side in sides:
        check.integer("image_size", side, low=1)
        if side % patch_size:
            check.fail_value("image_size", f"to be a multiple of patch_size={patch_size}", side)
    return sides
