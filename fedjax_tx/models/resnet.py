"""Residual networks for small images, with group norm in place of batch norm.

The blocks are those of "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), the sizes those for CIFAR of "Deep
Residual Learning" (arXiv 1512.03385), section 4.2: a convolution, three stages of n blocks (6 n + 2 layers) of widths w, 2 w and
4 w, of which the second and the third begin with stride 2, and the mean over space::

    block(x) = shortcut(x) + conv(relu(norm(conv(relu(norm(x))))))

Group norm (arXiv 1803.08494) takes mean and variance over space and a group of channels of one example, so that a client's
batches share no statistics; in float32. Where a block changes the shape, its shortcut is a 1 x 1 convolution of relu(norm(x)).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fedjax_tx import check
from fedjax_tx.models.inputs import check_dtype, check_sizes
from fedjax_tx.models.modules import Convolution, as_model, check_shape, make_head
from fedjax_tx.types import Model

GROUP_NORM_EPSILON = 1e-5


class GroupNorm(nnx.Module):
    """Group norm over images or signals, with a gain and a bias for each channel.

    Args:
      channels: a multiple of ``num_groups``.

    Example:
      >>> GroupNorm(4, num_groups=2)(jnp.ones((1, 3, 3, 4))).sum().item()
      0.0
    """

    def __init__(self, channels: int, num_groups: int):
        self.num_groups = num_groups
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

    def __call__(self, x: Float[Array, "batch *space channels"]) -> Float[Array, "batch *space channels"]:
        """Normalises; statistics are float32, what is returned has the dtype of x."""
        groups = x.astype(jnp.float32).reshape(len(x), -1, self.num_groups, x.shape[-1] // self.num_groups)
        mean = jnp.mean(groups, axis=(1, 3), keepdims=True)
        variance = jnp.mean(jnp.square(groups - mean), axis=(1, 3), keepdims=True)
        normal = ((groups - mean) * jax.lax.rsqrt(variance + GROUP_NORM_EPSILON)).reshape(x.shape)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


class Block(nnx.Module):
    """One residual block of two 3 x 3 convolutions.

    Example:
      >>> Block(4, 8, stride=2, num_groups=2, dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.ones((1, 6, 6, 4))).shape
      (1, 3, 3, 8)
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, num_groups: int, dtype, rngs: nnx.Rngs):
        options = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.norm_0, self.norm_1 = GroupNorm(inputs, num_groups), GroupNorm(outputs, num_groups)
        self.convolution_0 = Convolution((3, 3), inputs, outputs, stride=stride, **options)
        self.convolution_1 = Convolution((3, 3), outputs, outputs, **options)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else Convolution((1, 1), inputs, outputs, stride=stride, **options)

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch rows columns outputs"]:
        """Applies the block."""
        h = jax.nn.relu(self.norm_0(x))
        short = x if self.shortcut is None else self.shortcut(h)
        return short + self.convolution_1(jax.nn.relu(self.norm_1(self.convolution_0(h))))


class _Network(nnx.Module):
    def __init__(self, inputs, num_classes, blocks_per_stage, width, *, num_groups, dtype, rngs):
        self.convolution = Convolution((3, 3), inputs, width, use_bias=False, dtype=dtype, rngs=rngs)
        names, channels = [], width
        for stage in range(3):
            for number in range(blocks_per_stage):
                stride, outputs = 2 if stage and not number else 1, width << stage
                block = Block(channels, outputs, stride=stride, num_groups=num_groups, dtype=dtype, rngs=rngs)
                names.append(f"stage_{stage}_block_{number}")
                setattr(self, names[-1], block)
                channels = outputs
        self.names = tuple(names)
        self.final_norm = GroupNorm(channels, num_groups)
        self.head = make_head(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = self.convolution(x)
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(jnp.mean(jax.nn.relu(self.final_norm(x)), axis=(1, 2), dtype=jnp.float32))


def resnet(
    input_channels: int, num_classes: int, depth: int = 20, width: int = 16, *, num_groups: int = 8, dtype=jnp.float32
) -> Model:
    """Returns a residual network: ``apply(params, x[batch, height, width, channels]) -> logits[batch, classes]``, float32.

    Args:
      input_channels: of the images, whose height and width are free. num_classes: of the output.
      depth: 6 n + 2 layers, n blocks a stage: 8, 14, 20 ... width: channels of the first stage, a multiple of ``num_groups``.
      num_groups: of each group norm; 1 is layer norm over space too. dtype: of the convolutions, float32 or bfloat16.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or value; in ``apply``, x has another shape.

    Example:
      >>> model = resnet(3, 10, depth=8, width=8)
      >>> params = jax.eval_shape(model.init, jax.random.key(0))  # shapes alone: drawing takes seconds
      >>> jax.eval_shape(model.apply, params, jnp.ones((2, 8, 8, 3))).shape
      (2, 10)
    """
    sizes = {"input_channels": input_channels, "num_classes": num_classes, "width": width, "num_groups": num_groups}
    check_sizes(**sizes)
    check.integer("depth", depth, low=8)
    if depth % 6 != 2:
        check.fail_value("depth", "to be 6 n + 2", depth)
    if width % num_groups:
        check.fail_value("width", f"to be a multiple of num_groups={num_groups}", width)
    check_dtype(dtype)
    options = {"num_groups": num_groups, "dtype": dtype}

    def call(network, x):
        check_shape("x", x, (None, None, input_channels))
        return network(x)

    return as_model(lambda rngs: _Network(input_channels, num_classes, (depth - 2) // 6, width, rngs=rngs, **options), call)
