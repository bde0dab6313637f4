"""Rotary positions and grouped-query heads: relative positions, equalities with full heads, adapters and sampling on top."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy_transformer import draw_params

from fedjax_tx.models import decoder, generate, lora, merge_lora
from fedjax_tx.models.attention import SelfAttention
from fedjax_tx.models.positions import rotate, sinusoids

SMALL = {"vocab_size": 11, "num_layers": 2, "num_heads": 4, "width": 16, "max_length": 8, "unroll": False}
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6))


def test_rotation_by_hand():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 1, 4)), jnp.float32)
    have, x = np.asarray(rotate(x))[0, :, 0], np.asarray(x)[0, :, 0]
    for position in range(5):
        for pair, rate in ((0, 1.0), (1, 0.01)):
            # A complex number turned by its angle; entries i and i + 2 are its parts.
            turned = (x[position, pair] + 1j * x[position, pair + 2]) * np.exp(1j * position * rate)
            np.testing.assert_allclose(have[position, [pair, pair + 2]], [turned.real, turned.imag], atol=1e-5)


@pytest.mark.slow
def test_rotary_attention_depends_on_distances_only_and_plain_attention_on_nothing():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 16)), jnp.float32)
    later = jnp.concatenate([jnp.zeros((1, 3, 16)), x], axis=1)
    valid = jnp.arange(7)[None] >= 3
    swapped = x[:, jnp.array([1, 0, 2, 3])]
    for rotary in (True, False):
        attention = SelfAttention(16, 4, causal=False, rotary=rotary, rngs=nnx.Rngs(0))
        attention.qkv.kernel.set_value(attention.qkv.kernel[...] * 50)
        want = attention(x)
        np.testing.assert_allclose(attention(later, valid)[:, 3:], want, rtol=1e-4, atol=1e-5)
        # Order is seen through rotations alone.
        assert np.allclose(attention(swapped)[:, 3], want[:, 3], rtol=1e-4, atol=1e-5) != rotary


def test_a_rotary_decoder_has_no_position_embedding_and_tells_positions_apart():
    model = decoder(**SMALL, positions="rotary")
    params, apply = draw_params(model), jax.jit(model.apply)
    assert "position_embedding" not in params
    swapped = TOKENS[:, [1, 0, 2, 3, 4, 5]]
    assert np.abs(apply(params, TOKENS)[:, -1] - apply(params, swapped)[:, -1]).max() > 1e-3
    np.testing.assert_allclose(apply(params, TOKENS[:, :4]), apply(params, TOKENS)[:, :4], rtol=1e-4, atol=1e-4)


def repeated(params, num_kv_heads: int):
    """The parameters of full heads that hold each shared head as often as it is read."""

    def repeat(block):
        parts = np.split(np.asarray(block), num_kv_heads, axis=-1)
        return np.concatenate([part for part in parts for _ in range(4 // num_kv_heads)], axis=-1)

    def widen(leaf):
        query, key, value = np.split(np.asarray(leaf), [16, 16 + 4 * num_kv_heads], axis=-1)
        return np.concatenate([query, repeat(key), repeat(value)], axis=-1)

    attention = params["layers"]["attention"]
    attention = {**attention, "qkv": jax.tree.map(widen, attention["qkv"])}
    return {**params, "layers": {**params["layers"], "attention": attention}}


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_grouped_heads_equal_full_ones_whose_keys_and_values_repeat(num_kv_heads):
    grouped, full = decoder(**SMALL, positions="rotary", num_kv_heads=num_kv_heads), decoder(**SMALL, positions="rotary")
    params = draw_params(grouped, scale=0.3)
    assert params["layers"]["attention"]["qkv"]["kernel"].shape == (2, 16, 16 + 8 * num_kv_heads)
    have, want = jax.jit(grouped.apply)(params, TOKENS), jax.jit(full.apply)(repeated(params, num_kv_heads), TOKENS)
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


def test_sinusoids_are_those_of_the_paper_in_halves():
    have = np.asarray(sinusoids(7, 6))
    for position in range(7):
        for index in range(3):
            angle = position / 10000 ** (2 * index / 6)
            np.testing.assert_allclose(have[position, [index, index + 3]], [np.sin(angle), np.cos(angle)], atol=1e-5)


@pytest.mark.slow
def test_adapters_and_sampling_work_on_both_options():
    model = decoder(**{**SMALL, "num_layers": 1}, positions="rotary", num_kv_heads=2)
    adapted = lora(model, rank=2, where="*qkv")
    params = draw_params(adapted, scale=0.2)
    assert params["layers"]["attention"]["qkv"]["lora"]["lora_b"].shape == (1, 2, 32)
    have, want = jax.jit(adapted.apply)(params, TOKENS), jax.jit(model.apply)(merge_lora(params), TOKENS)
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)
    tokens = generate(model, merge_lora(params), jnp.array([1, 2]), 9, jax.random.key(0), max_length=8)
    assert tokens.shape == (11,) and tokens[:2].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "num_kv_heads to divide num_heads=4, got 3", {"num_kv_heads": 3}),
        (ValueError, "width of even heads for rotary positions, with num_heads=4, got 12", {"width": 12, "positions": "rotary"}),
        (ValueError, "positions to be one of 'learned', 'rotary'", {"positions": "rope"}),
    ],
)
def test_wrong_options_are_named(error, message, options):
    with pytest.raises(error, match=message):
        decoder(**{**SMALL, **options})
