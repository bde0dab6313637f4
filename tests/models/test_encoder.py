"""The encoder against a float64 NumPy BERT, and what its options say."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer as reference
import pytest
from numpy_transformer import draw_params

from fedjax_tx.models import encoder

SMALL = {"vocab_size": 11, "num_layers": 2, "num_heads": 2, "width": 8, "max_length": 6, "unroll": False}
CLASSES = {**SMALL, "num_classes": 3}
LENGTHS = np.array([6, 3, 1])


def draw_inputs(time: int = 6, segments: bool = False):
    rng = np.random.default_rng(0)
    inputs = {"tokens": rng.integers(0, 11, (3, time)), "valid": np.arange(time) < LENGTHS[:, None]}
    return {**inputs, "segments": rng.integers(0, 2, (3, time))} if segments else inputs


def hidden(params, inputs, order="post", activation=reference.gelu, epsilon=1e-12):
    time = inputs["tokens"].shape[1]
    x = params["token_embedding"]["embedding"][inputs["tokens"]] + params["position_embedding"]["embedding"][:time]
    if "segment_embedding" in params:
        x = x + params["segment_embedding"]["embedding"][inputs.get("segments", np.zeros_like(inputs["tokens"]))]
    x = reference.norm(x, params["embedding_norm"], epsilon) if order == "post" else x
    visible = np.broadcast_to(inputs["valid"][:, None, :], (3, time, time))
    x = reference.layers(x, params["layers"], 2, visible, order=order, activation=activation, epsilon=epsilon)
    return reference.norm(x, params["final_norm"], epsilon) if order == "pre" else x


def mean(x, valid):
    return np.stack([row[real].mean(0) for row, real in zip(x, valid, strict=True)])


def run(model, inputs, seed: int = 0):
    params = draw_params(model, seed)
    return np.asarray(jax.jit(model.apply)(params, inputs)), reference.in_float64(params)


def close(have, want):
    np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5)


def test_bert_with_its_pooler_equals_the_reference():
    inputs = draw_inputs(segments=True)
    have, params = run(encoder(**CLASSES, num_segments=2, pool="cls", pooler=True), inputs)
    pooled = np.tanh(reference.dense(hidden(params, inputs)[:, 0], params["pooler"]))
    close(have, reference.dense(pooled, params["head"]))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_norms_activations_and_mean_pooling_equal_the_reference(norm):
    inputs = draw_inputs(5)
    name, activation = {"pre": ("gelu_tanh", reference.gelu_tanh), "post": ("gelu", reference.gelu)}[norm]
    have, params = run(encoder(**CLASSES, norm=norm, activation=name, mlp_width=5, layer_norm_epsilon=1e-3), inputs)
    close(have, reference.dense(mean(hidden(params, inputs, norm, activation, 1e-3), inputs["valid"]), params["head"]))


@pytest.mark.parametrize("tied", [True, False])
def test_the_masked_language_model_equals_the_reference(tied):
    inputs = draw_inputs()
    have, params = run(encoder(**SMALL, head="tokens", tie_embeddings=tied), inputs)
    transformed = reference.gelu(reference.dense(hidden(params, inputs), params["transform"]))
    kernel = params["token_embedding"]["embedding"].T if tied else params["head"]["kernel"]
    want = reference.norm(transformed, params["transform_norm"], 1e-12) @ kernel + params["head"]["bias"]
    close(have[inputs["valid"]], want[inputs["valid"]])
    assert ("kernel" in params["head"]) != tied


@pytest.mark.parametrize("normalise", [True, False])
def test_embeddings_equal_the_reference(normalise):
    inputs = draw_inputs()
    have, params = run(encoder(**SMALL, head="embeddings", normalise=normalise), inputs)
    want = mean(hidden(params, inputs), inputs["valid"])
    close(have, want / np.linalg.norm(want, axis=-1, keepdims=True) if normalise else want)
    assert "head" not in params


def test_without_a_mask_all_positions_are_valid_and_without_segments_all_are_the_first():
    model = encoder(**CLASSES, num_segments=2)
    params, apply, tokens = draw_params(model), jax.jit(model.apply), draw_inputs()["tokens"]
    want = apply(params, {"tokens": tokens, "valid": np.ones((3, 6), np.int32), "segments": np.zeros((3, 6), np.int32)})
    np.testing.assert_array_equal(apply(params, tokens), want)
    assert np.any(apply(params, {"tokens": tokens, "segments": np.ones((3, 6), np.int32)}) != want)


def test_padding_of_any_number_changes_nothing_and_other_tokens_that_it_lacks_are_not_read():
    model, inputs = encoder(**{**CLASSES, "num_layers": 1}), draw_inputs()
    params, apply = draw_params(model), jax.jit(model.apply)
    padded = {**inputs, "tokens": np.where(inputs["valid"], inputs["tokens"], -100)}
    assert np.isfinite(apply(params, padded)).all()
    for token in (-1, 11):
        padded["tokens"][0, 2] = token
        np.testing.assert_array_equal(np.isnan(apply(params, padded)).all(-1), [True, False, False])


def test_every_position_sees_every_valid_one_and_no_other():
    model = encoder(**SMALL, head="tokens")
    params, inputs = draw_params(model), jax.tree.map(jnp.asarray, draw_inputs())
    mix = jnp.asarray(np.random.default_rng(5).standard_normal(11), jnp.float32)

    def scores(positions):
        return model.apply({**params, "position_embedding": {"embedding": positions}}, inputs) @ mix

    influence = np.abs(jax.jit(jax.jacobian(scores))(params["position_embedding"]["embedding"])).sum(-1)  # [batch, t, t']
    for row, length in zip(influence, LENGTHS, strict=True):
        assert np.all(row[:length, :length] > 0)
        assert not np.any(row[:length, length:])


@pytest.mark.slow
def test_dropout_acts_with_a_key_only_and_in_the_head_too():
    model, plain = encoder(**CLASSES, dropout=0.3), encoder(**CLASSES)
    params, inputs = draw_params(model), draw_inputs()
    fast = {"compiler_options": {"xla_backend_optimization_level": 0}}  # to compile
    apply, apply_plain = jax.jit(model.apply, **fast), jax.jit(plain.apply, **fast)
    want = apply_plain(params, inputs)
    np.testing.assert_array_equal(apply(params, inputs), want)
    np.testing.assert_array_equal(apply_plain(params, inputs, key=jax.random.key(0)), want)
    assert np.any(apply(params, inputs, key=jax.random.key(0)) != want)
    # Layers and embeddings silent, what is pooled is the norms' bias of 1: each entry is kept, and scaled, or dropped.
    silent = jax.tree.map(jnp.zeros_like, params)
    silent["layers"]["mlp_norm"]["bias"] += 1.0
    silent["head"]["kernel"] = jnp.eye(8, 3)
    logits = apply(silent, np.zeros((40, 6), np.int32), key=jax.random.key(0))
    np.testing.assert_allclose(np.unique(logits), [0.0, 1 / 0.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "num_classes to be an integer, got None", {"num_classes": None}),
        (ValueError, "num_classes to be None where head='tokens'", {"head": "tokens"}),
        (ValueError, "pooler to be False where head='embeddings'", {"head": "embeddings", "num_classes": None, "pooler": True}),
        (ValueError, "normalise to be False where head='classes'", {"normalise": True}),
        (ValueError, "head to be one of 'classes', 'tokens', 'embeddings'.*did you mean 'tokens'", {"head": "token"}),
    ],
)
def test_heads_that_contradict_other_arguments_are_refused(error, message, options):
    with pytest.raises(error, match=message):
        encoder(**{**CLASSES, **options})


@pytest.mark.parametrize(
    ("error", "message", "inputs"),
    [
        (ValueError, "at most max_length=6 positions, got 7", np.zeros((1, 7), np.int32)),
        (TypeError, "expected tokens to be integers", np.zeros((1, 6), np.float32)),
        (ValueError, "model's inputs to have 'tokens'", {"valid": np.ones((1, 6), bool)}),
        (ValueError, "inputs to be one of 'tokens', 'valid', got 'segments'", {"tokens": np.zeros((1, 6), int), "segments": 0}),
        (ValueError, r"valid of shape \(1, 6\), got \(1, 5\)", {"tokens": np.zeros((1, 6), int), "valid": np.ones((1, 5), bool)}),
        (TypeError, "valid to be booleans", {"tokens": np.zeros((1, 6), int), "valid": np.ones((1, 6), np.float32)}),
    ],
)
def test_wrong_inputs_are_named(error, message, inputs, unchecked):
    model = encoder(**CLASSES)
    with pytest.raises(error, match=message):
        model.apply(draw_params(model), inputs)
