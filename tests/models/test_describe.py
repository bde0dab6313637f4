"""A model's costs against formulas, and against what XLA counts in the compiled program."""

import jax
import jax.numpy as jnp
import pytest

from fedjax_tx.models import cnn, decoder, describe, encoder, lora, mlp, recurrent, resnet, vit, winograd
from fedjax_tx.types import Model


def test_a_perceptron_costs_its_products():
    told = describe(mlp(4, 3, [8]), jnp.ones((7, 4)))
    assert told.num_parameters == 4 * 8 + 8 + 8 * 3 + 3 and told.parameter_bytes == 4 * told.num_parameters
    assert told.forward_flops == 2 * (4 * 8 + 8 * 3)
    # Each kernel has a gradient; only the second layer hands one on.
    assert told.training_flops == 2 * (2 * 4 * 8 + 3 * 8 * 3)
    # The input, the hidden values, and of each hidden value where it was above 0, a byte each, and its zero or one.
    assert 4 * (4 + 8) < told.activation_bytes <= 4 * (4 + 8) + 8 * 5


def test_a_network_of_convolutions_costs_every_window_however_it_is_computed():
    for channels in (2, 3):  # three go by tiles on a CPU
        model = cnn((6, 6, channels), 5, [3], kernel_size=3, pool=2, hidden_sizes=[])
        told = describe(model, jnp.ones((1, 6, 6, channels)))
        assert told.forward_flops == 2 * (4 * 4 * 9 * channels * 3 + 2 * 2 * 3 * 5)


@pytest.mark.slow
def test_the_residual_network_of_20_layers_costs_41_million_multiplications():
    """As counted for arXiv 1512.03385: 3x3 convolutions, the head, and here the shortcuts' 1x1."""
    pixels = {16: 32 * 32, 32: 16 * 16, 64: 8 * 8}
    blocks = sum(6 * pixels[width] * 9 * width * width for width in pixels)
    halving = sum(
        pixels[width] * 9 * (width // 2 * width - width * width) + pixels[width] * width // 2 * width for width in (32, 64)
    )
    want = pixels[16] * 9 * 3 * 16 + blocks + halving + 64 * 10
    assert describe(resnet(3, 10, depth=20), jnp.ones((1, 32, 32, 3))).forward_flops == 2 * want
    assert round(want / 1e6) == 41


@pytest.mark.parametrize("layers", [1, 3])
def test_a_transformer_costs_its_layers(layers):
    time, width, vocab = 6, 8, 11
    told = describe(decoder(vocab, num_layers=layers, num_heads=2, width=width, max_length=8), jnp.zeros((3, time), int))
    layer = time * 12 * width * width + 2 * time * time * width
    assert told.forward_flops == 2 * (layers * layer + time * width * vocab)


def test_a_loop_costs_as_often_as_it_runs():
    told = describe(recurrent(num_features=2, num_classes=4, width=3, num_layers=1), jnp.ones((1, 9, 2)))
    assert told.forward_flops == 2 * (9 * (2 + 3) * 4 * 3 + 3 * 4)


def test_of_branches_the_dearest_counts_and_what_examples_share_does_not():
    matrix = jnp.ones((4, 4))

    def apply(params, x, *, key=None):
        shared = params @ params
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ shared @ matrix, lambda: x @ matrix)

    assert describe(Model(lambda key: matrix, apply), jnp.ones((1, 4))).forward_flops == 2 * 2 * 4 * 4


def test_a_loop_of_unknown_length_is_refused():
    def apply(params, x, *, key=None):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 10, lambda x: x @ params, x)

    with pytest.raises(ValueError, match="loop whose length depends on data"):
        describe(Model(lambda key: jnp.ones((4, 4)), apply), jnp.ones((1, 4)))


def test_adapters_add_their_own():
    plain = encoder(11, 1, 2, 8, 8, num_classes=3)
    tokens = jnp.zeros((1, 6), int)
    more, less = describe(lora(plain, rank=2, where="layers/*"), tokens), describe(plain, tokens)
    added = [(8, 24), (8, 8), (8, 32), (32, 8)]
    assert more.num_parameters - less.num_parameters == sum(2 * (a + b) for a, b in added)
    assert more.forward_flops - less.forward_flops == 2 * 6 * sum(2 * (a + b) for a, b in added)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape", "dtype"),
    [
        (cnn((28, 28, 1), 62), (28, 28, 1), jnp.float32),
        (encoder(30, 2, 4, 64, 32, num_classes=3), (32,), jnp.int32),
        (vit(28, 4, 10, num_layers=4, num_heads=4, width=64, channels=1), (28, 28, 1), jnp.float32),
    ],
    ids=["cnn", "encoder", "vit"],
)
def test_the_compiled_program_agrees(model, shape, dtype):
    """XLA counts all that is not a product too, and holds some more or less than the trace says: within a quarter."""
    params = jax.eval_shape(model.init, jax.random.key(0))

    def loss(params, x):
        return jnp.sum(jnp.square(model.apply(params, x)))

    with winograd.never():
        batches = [jax.ShapeDtypeStruct((size, *shape), dtype) for size in (8, 24)]
        programs = [jax.jit(jax.grad(loss)).lower(params, batch).compile() for batch in batches]
    flops, memory = (
        (after - before) / 16
        for before, after in (
            [program.cost_analysis()["flops"] for program in programs],
            [program.memory_analysis().temp_size_in_bytes for program in programs],
        )
    )
    told = describe(model, jnp.ones((1, *shape), dtype))
    assert 0.8 < flops / told.training_flops < 1.25 and 0.8 < memory / told.activation_bytes < 1.25
