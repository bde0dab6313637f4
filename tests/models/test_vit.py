"""The Vision Transformer against a float64 NumPy one; patches by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer as reference
import pytest
from numpy_transformer import draw_params

from fedjax_tx.models import vit
from fedjax_tx.models.vit import cut_patches

SMALL = {"image_size": (4, 6), "patch_size": 2, "num_classes": 3, "num_layers": 2, "num_heads": 2, "width": 8, "unroll": False}


def draw_images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_logits_equal_the_reference(pool):
    model, images = vit(**SMALL, pool=pool), draw_images()
    drawn = draw_params(model)
    params = reference.in_float64(drawn)
    patches = np.zeros((2, 6, 12))
    for number in range(6):
        row, column = 2 * (number // 3), 2 * (number % 3)
        patches[:, number] = images[:, row : row + 2, column : column + 2].reshape(2, 12)
    x = reference.dense(patches, params["patch_embedding"])
    if pool == "cls":
        x = np.concatenate([np.broadcast_to(params["class_token"]["embedding"], (2, 1, 8)), x], axis=1)
    x = x + params["position_embedding"]["embedding"]
    visible = np.ones((2, x.shape[1], x.shape[1]), bool)
    x = reference.norm(reference.layers(x, params["layers"], 2, visible, epsilon=1e-12), params["final_norm"], 1e-12)
    want = reference.dense(x[:, 0] if pool == "cls" else x.mean(1), params["head"])
    np.testing.assert_allclose(jax.jit(model.apply)(drawn, images), want, rtol=2e-5, atol=2e-5)


def test_a_convolution_of_patches_is_their_dense_layer():
    rng, images = np.random.default_rng(1), draw_images()
    kernel = rng.standard_normal((2, 2, 3, 8)).astype(np.float32)
    convolved = jax.lax.conv_general_dilated(images, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    have = cut_patches(jnp.asarray(images), 2) @ kernel.reshape(12, 8)
    np.testing.assert_allclose(have, convolved.reshape(2, 6, 8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "message", "images"),
    [
        (TypeError, "images to be floating-point", np.zeros((1, 4, 6, 3), np.uint8)),
        (ValueError, r"images of shape \[batch, 4, 6, 3\], got \(1, 6, 4, 3\)", np.zeros((1, 6, 4, 3), np.float32)),
    ],
)
def test_wrong_images_are_named(error, message, images, unchecked):
    model = vit(**SMALL)
    with pytest.raises(error, match=message):
        model.apply(draw_params(model), images)
