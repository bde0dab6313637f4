"""Attention against softmax(Q K^T / sqrt(d_k)) V and Concat(heads) W^O in float64 NumPy; masks, dropout by effect."""

import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_tx.models.attention import Block, SelfAttention, attend, drop, fastest_implementation

WIDTH, HEADS, BATCH, TIME = 12, 3, 2, 7


def make_attention(causal: bool, **options) -> SelfAttention:
    """An attention whose parameters, biases too, are far from 0, so that the softmax is far from flat."""
    attention = SelfAttention(WIDTH, HEADS, causal=causal, rngs=nnx.Rngs(0), **options)
    rng = np.random.default_rng(1)
    for layer in (attention.qkv, attention.out):
        for parameter in (layer.kernel, layer.bias):
            parameter.set_value(jnp.asarray(0.7 * rng.standard_normal(parameter.shape), jnp.float32))
    return attention


def draw_inputs(seed: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((BATCH, TIME, WIDTH)), jnp.float32)


def reference(attention: SelfAttention, x, visible) -> np.ndarray:
    """Head by head, position by position; ``visible[b, t, s]`` says whether t sees s."""
    weights, bias = (np.asarray(part[...], np.float64) for part in (attention.qkv.kernel, attention.qkv.bias))
    w_query, w_key, w_value = np.split(weights, 3, axis=1)
    b_query, b_key, b_value = np.split(bias, 3)
    x, size = np.asarray(x, np.float64), WIDTH // HEADS
    heads = np.zeros((BATCH, TIME, WIDTH))
    for b in range(BATCH):
        for h in range(HEADS):
            block = slice(h * size, (h + 1) * size)
            query, key = x[b] @ w_query[:, block] + b_query[block], x[b] @ w_key[:, block] + b_key[block]
            value = x[b] @ w_value[:, block] + b_value[block]
            for t in range(TIME):
                seen = np.flatnonzero(visible[b, t])
                scores = np.exp(query[t] @ key[seen].T / np.sqrt(size))
                heads[b, t, block] = scores / scores.sum() @ value[seen]
    return heads @ np.asarray(attention.out.kernel[...], np.float64) + np.asarray(attention.out.bias[...], np.float64)


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_formula(causal, implementation):
    attention, x = make_attention(causal, implementation=implementation), draw_inputs()
    visible = np.broadcast_to(np.tril(np.ones((TIME, TIME), bool)) if causal else True, (BATCH, TIME, TIME))
    np.testing.assert_allclose(attention(x), reference(attention, x, visible), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_mask_equals_the_formula_on_valid_positions(causal):
    attention, x = make_attention(causal), draw_inputs()
    valid = np.arange(TIME) < np.array([[4], [TIME]])
    visible = np.broadcast_to(np.tril(np.ones((TIME, TIME), bool)) if causal else True, (BATCH, TIME, TIME))
    want = reference(attention, x, visible & valid[:, None, :])
    have = attention(x, jnp.asarray(valid))
    np.testing.assert_allclose(np.asarray(have)[valid], want[valid], rtol=1e-5, atol=1e-5)
    # Without the mask the padding is seen by all that come before it, unless attention is causal anyway.
    assert np.allclose(np.asarray(attention(x))[valid], want[valid], atol=1e-3) == causal


def test_invalid_positions_change_nothing_and_a_row_of_them_stays_finite():
    attention, x = make_attention(False), draw_inputs()
    valid = jnp.arange(TIME)[None] < jnp.array([[4], [0]])
    other = jnp.where(valid[..., None], x, 100.0 * draw_inputs(3))
    have, want = attention(other, valid), attention(x, valid)
    np.testing.assert_array_equal(have[0, :4], want[0, :4])
    gradient = jax.grad(lambda x: jnp.sum(attention(x, valid)[0, :4] ** 2))(x)
    assert np.isfinite(want).all() and np.isfinite(gradient).all()
    assert not np.any(gradient[0, 4:]) and np.all(np.any(gradient[0, :4] != 0, axis=-1))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [None, "keys", "pairs"])
def test_written_attention_and_its_gradients_are_those_of_jaxs(is_causal, masked):
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.standard_normal((2, 5, 3, 4)), jnp.float32) for _ in range(3))
    mask = {None: None, "keys": draw.random((2, 1, 1, 5)) < 0.5, "pairs": draw.random((2, 1, 5, 5)) < 0.3}[masked]
    if mask is not None:
        mask = jnp.asarray(mask).at[0].set(False)  # rows that see nothing

    def slopes(function):
        def total(*heads):
            return jnp.sum(jnp.sin(function(*heads, mask=mask, is_causal=is_causal)))

        return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(q, k, v)

    for one, other in zip(*map(jax.tree.leaves, (slopes(attend), slopes(jax.nn.dot_product_attention))), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_attention_is_written_out_on_a_cpu_in_single_precision_with_keys_for_each_head():
    def is_jaxs(dtype, groups):
        shapes = [jax.ShapeDtypeStruct((2, 5, heads, 4), dtype) for heads in (4, groups, groups)]
        with mock.patch.object(jax.nn, "dot_product_attention", side_effect=jax.nn.dot_product_attention) as library:
            jax.eval_shape(lambda *heads: attend(*heads), *shapes)
        return library.called

    assert [is_jaxs(jnp.float32, 4), is_jaxs(jnp.float32, 2), is_jaxs(jnp.bfloat16, 4)] == [False, True, True]


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    attention = make_attention(True, dtype=jnp.bfloat16)
    assert attention(draw_inputs()).dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(attention)))
    want = make_attention(True)(draw_inputs())
    difference = attention(draw_inputs()).astype(jnp.float32) - want
    assert 0 < jnp.linalg.norm(difference) < 0.02 * jnp.linalg.norm(want)


def test_block_without_branches_is_the_identity():
    block = Block(WIDTH, HEADS, mlp_width=8, causal=True, dropout=0.5, rngs=nnx.Rngs(0))
    for layer in (block.attention.out, block.mlp_out):
        layer.kernel.set_value(jnp.zeros_like(layer.kernel[...]))
    np.testing.assert_array_equal(block(draw_inputs(), key=jax.random.key(0)), draw_inputs())


@pytest.mark.parametrize("silent", ["attention", "mlp"])
def test_dropout_of_a_branch_keeps_the_expectation(silent):
    rate, draws = 0.25, 2000
    block = Block(WIDTH, HEADS, mlp_width=8, causal=True, dropout=rate, rngs=nnx.Rngs(0))
    # With one branch silent the block is linear in what the other one adds, so that its mean over keys is exact.
    for layer, name in ((block.attention.out, "attention"), (block.mlp_out, "mlp")):
        layer.kernel.set_value((name != silent) * 10.0 * layer.kernel[...])
    graph, parameters = nnx.split(block)
    apply = jax.jit(lambda x, key: nnx.merge(graph, parameters)(x, key=key))
    outputs = jax.vmap(apply, (None, 0))(draw_inputs(), jax.random.split(jax.random.key(0), draws))
    want = apply(draw_inputs(), None)
    branch = np.abs(np.asarray(want - draw_inputs()))
    error = np.abs(np.asarray(outputs.mean(0) - want))
    assert branch.mean() > 0.01
    assert np.all(error <= 5 * branch * np.sqrt(rate / (1 - rate) / draws) + 1e-5)


def test_drop_keeps_the_expectation_and_tells_sites_apart():
    rate, ones = 0.3, jnp.ones(40_000)
    dropped = drop(ones, rate, jax.random.key(0), site=0)
    np.testing.assert_allclose(np.unique(dropped), [0.0, 1 / (1 - rate)], rtol=1e-6)
    assert abs(dropped.mean() - 1.0) < 5 * np.sqrt(rate / (1 - rate) / ones.size)
    # Independent sites agree on 0.7² + 0.3² of the entries.
    agreement = np.mean(np.asarray(dropped == drop(ones, rate, jax.random.key(0), site=1)))
    assert abs(agreement - 0.58) < 0.02


@pytest.mark.parametrize(
    ("error", "name", "options"),
    [
        (TypeError, "width", {"width": 12.0}),
        (ValueError, "width", {"width": 0}),
        (TypeError, "num_heads", {"num_heads": "3"}),
        (ValueError, "num_heads", {"num_heads": 0}),
        (ValueError, "expected width to be a multiple of num_heads=5, got 12", {"num_heads": 5}),
        (TypeError, "causal", {"causal": 1}),
        (TypeError, "implementation", {"implementation": 3}),
        (ValueError, "implementation.*did you mean 'cudnn'", {"implementation": "cuddn"}),
        (ValueError, "dtype.*bfloat16.*cudnn.*float32", {"implementation": "cudnn"}),
    ],
)
def test_wrong_arguments_are_named(error, name, options):
    with pytest.raises(error, match=name):
        SelfAttention(**{"width": WIDTH, "num_heads": HEADS, "causal": True, "rngs": nnx.Rngs(0), **options})


@pytest.mark.parametrize(
    ("backend", "version", "dtype", "head_width", "expected"),
    [
        ("gpu", "PJRT C API\ncuda 12090", jnp.bfloat16, 64, "cudnn"),
        ("gpu", "PJRT C API\ncuda 12090", jnp.float32, 64, "xla"),
        ("gpu", "PJRT C API\ncuda 12090", jnp.bfloat16, 12, "xla"),
        ("gpu", "rocm 60000", jnp.bfloat16, 64, "xla"),
        ("tpu", "libtpu", jnp.bfloat16, 64, "xla"),
    ],
)
def test_cudnn_is_chosen_on_nvidia_in_half_precision_only(monkeypatch, backend, version, dtype, head_width, expected):
    device = types.SimpleNamespace(client=types.SimpleNamespace(platform_version=version))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert fastest_implementation(dtype, head_width) == expected
