"""The decoder against a float64 NumPy Transformer, and by its laws: causality, lanes, dropout, loops, ties, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx.models import decoder

SMALL = {"vocab_size": 11, "num_layers": 2, "num_heads": 2, "width": 8, "max_length": 6}


def draw_tokens(batch: int = 3, time: int = 6, vocab_size: int = 11) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, vocab_size, (batch, time)), jnp.int32)


def draw_params(model, seed: int = 0, scale: float = 0.5):
    """Parameters far from their initial values, biases and gains too, so that no part of the model is close to idle."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        gain = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(gain + scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def reference(params, tokens, num_heads: int) -> np.ndarray:
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, part):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * part["scale"] + part["bias"]

    def dense(x, part):
        return x @ part["kernel"] + part["bias"]

    def attend(x, part):
        time, width = x.shape[1:]
        query, key, value = np.split(dense(x, part["qkv"]), 3, axis=-1)
        heads = []
        for block in np.split(np.arange(width), num_heads):
            scores = query[..., block] @ key[..., block].swapaxes(-1, -2) / np.sqrt(len(block))
            weights = np.exp(np.where(np.tril(np.ones((time, time))) == 1, scores, -np.inf))
            heads.append(weights / weights.sum(-1, keepdims=True) @ value[..., block])
        return dense(np.concatenate(heads, axis=-1), part["out"])

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = params["token_embedding"]["embedding"][tokens] + params["position_embedding"]["embedding"][: tokens.shape[1]]
    for index in range(len(params["layers"]["mlp_in"]["bias"])):
        layer = jax.tree.map(lambda leaf: leaf[index], params["layers"])  # noqa: B023
        x = x + attend(norm(x, layer["attention_norm"]), layer["attention"])
        x = x + dense(gelu(dense(norm(x, layer["mlp_norm"]), layer["mlp_in"])), layer["mlp_out"])
    head = params["head"]["kernel"] if "head" in params else params["token_embedding"]["embedding"].T
    return norm(x, params["final_norm"]) @ head


def mean_square(model, params, tokens, key=None):
    return jnp.mean(model.apply(params, tokens, key=key) ** 2)


def gradient(model, params, tokens):
    return jax.jit(jax.grad(functools.partial(mean_square, model)))(params, tokens)


def test_parameters_are_a_plain_float32_dict_of_the_stated_count():
    params = jax.jit(decoder(vocab_size=96).init)(jax.random.key(0))
    leaves = jax.tree.leaves(params)
    assert sum(leaf.size for leaf in leaves) == 429_568
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)
    assert jax.tree.structure(params) == jax.tree.structure(jax.tree.map(lambda leaf: leaf, dict(params)))
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(params["layers"]))
    kernel = params["layers"]["mlp_in"]["kernel"]
    assert abs(kernel.std() - 0.02) < 5e-4 and not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize("time", [1, 4, 6])
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_logits_equal_the_reference(time, tie_embeddings):
    model = decoder(**SMALL, tie_embeddings=tie_embeddings)
    params, tokens = draw_params(model), draw_tokens(time=time)
    want = reference(params, np.asarray(tokens), SMALL["num_heads"])
    np.testing.assert_allclose(jax.jit(model.apply)(params, tokens), want, rtol=1e-5, atol=1e-5)


def test_logits_equal_the_reference_at_the_default_size():
    model = decoder(vocab_size=96)
    params, tokens = draw_params(model, scale=0.02), draw_tokens(2, 64, 96)
    np.testing.assert_allclose(jax.jit(model.apply)(params, tokens), reference(params, tokens, 4), rtol=1e-5, atol=1e-5)


def test_a_token_that_the_model_lacks_makes_the_logits_of_its_text_nan():
    model = decoder(vocab_size=5, num_layers=1, num_heads=1, width=4, max_length=4)
    texts = jnp.array([[1, 2, 3, 4], [1, 2, 5, 3], [1, 2, -1, 3]])
    logits = jax.jit(model.apply)(draw_params(model), texts)
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1:, 2:]).all()


def test_logits_depend_on_the_past_and_not_on_the_future():
    model = decoder(**SMALL)
    params, tokens = draw_params(model), draw_tokens(batch=1)
    mix = jnp.asarray(np.random.default_rng(5).standard_normal(11), jnp.float32)

    def scores(positions):
        changed = {**params, "position_embedding": {"embedding": positions}}
        return model.apply(changed, tokens)[0] @ mix

    influence = np.abs(jax.jit(jax.jacobian(scores))(params["position_embedding"]["embedding"])).sum(-1)  # [t, t']
    past = np.tril(np.ones((6, 6), bool))
    assert np.all(influence[past] > 0)
    assert np.all(influence[~past] == 0)


def test_tokens_after_the_text_change_nothing_before():
    model = decoder(**SMALL)
    params, tokens = draw_params(model), draw_tokens()
    padded = tokens.at[:, 4:].set(0)
    apply, want = jax.jit(model.apply), jax.jit(model.apply)(params, tokens)[:, :4]
    np.testing.assert_array_equal(apply(params, padded)[:, :4], want)
    np.testing.assert_allclose(apply(params, tokens[:, :4]), want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_scan_equals_unrolled(dropout):
    models = [decoder(**{**SMALL, "num_layers": 3}, dropout=dropout, unroll=unroll) for unroll in (True, False)]
    params, key = draw_params(models[0]), jax.random.key(1)
    first, second = (
        jax.jit(jax.value_and_grad(functools.partial(mean_square, model)))(params, draw_tokens(), key) for model in models
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), first, second)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_stacked_parameters_equal_one_by_one(dropout):
    model = decoder(**SMALL, dropout=dropout)
    params = [draw_params(model, seed) for seed in range(3)]
    tokens, keys = jnp.stack([(draw_tokens() + lane) % 11 for lane in range(3)]), jax.random.split(jax.random.key(0), 3)
    gradient = jax.value_and_grad(functools.partial(mean_square, model))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    together, gradient = jax.jit(jax.vmap(gradient))(stacked, tokens, keys), jax.jit(gradient)
    for lane in range(3):
        alone = gradient(params[lane], tokens[lane], keys[lane])
        picked = jax.tree.map(lambda leaf: leaf[lane], together)  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), picked, alone)


def test_jit_compiles_once():
    model, traces = decoder(**SMALL), []

    @jax.jit
    def step(params, tokens):
        traces.append(None)
        return jax.grad(lambda params: mean_square(model, params, tokens))(params)

    params = draw_params(model)
    for _ in range(3):
        params = step(params, draw_tokens())
    assert len(traces) == 1 and step._cache_size() == 1


def test_dropout_acts_only_with_a_key():
    model, plain = decoder(**SMALL, dropout=0.1), decoder(**SMALL)
    params, tokens = draw_params(plain, scale=0.1), draw_tokens()
    key, other = jax.random.split(jax.random.key(0))
    apply, want = jax.jit(model.apply), jax.jit(plain.apply)(params, tokens)
    np.testing.assert_array_equal(apply(params, tokens), want)
    np.testing.assert_array_equal(apply(params, tokens, key=key), apply(params, tokens, key=key))
    assert np.any(apply(params, tokens, key=key) != want)
    assert np.any(apply(params, tokens, key=key) != apply(params, tokens, key=other))


def test_dropout_draws_anew_in_every_layer_and_place():
    model = decoder(**SMALL, dropout=0.5)
    apply = jax.jit(model.apply)

    def kept(place):
        """Which entries survive where only one place adds to the residual stream, and adds 1."""
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(model.init, jax.random.key(0)))
        params["final_norm"]["scale"] = jnp.ones(8)
        params["head"]["kernel"] = jnp.eye(8, 11)
        if place == "embedding":
            params["token_embedding"]["embedding"] = jnp.ones((11, 8))
        else:
            name, layer = place
            branch = params["layers"]["attention"]["out"] if name == "attention" else params["layers"]["mlp_out"]
            branch["bias"] = branch["bias"].at[layer].set(1.0)
        return np.asarray(apply(params, draw_tokens(16), key=jax.random.key(0))[..., :8] > 0)

    places = ["embedding", ("attention", 0), ("attention", 1), ("mlp", 0), ("mlp", 1)]
    drawn = [kept(place) for place in places]
    for index, first in enumerate(drawn):
        assert 0.4 < first.mean() < 0.6
        for second in drawn[:index]:
            assert 0.4 < np.mean(first == second) < 0.6


def test_no_dropout_traces_no_random_numbers():
    def has_random_bits(rate):
        model = decoder(**SMALL, dropout=rate)
        params = draw_params(model)
        traced = jax.make_jaxpr(lambda key: model.apply(params, draw_tokens(), key=key))(jax.random.key(0))
        return "random" in str(traced)

    assert not has_random_bits(0.0)
    assert has_random_bits(0.1)


@pytest.mark.slow
def test_tied_embedding_is_used_at_both_ends():
    tied, untied = decoder(**SMALL, tie_embeddings=True), decoder(**SMALL)
    params, tokens = draw_params(tied), draw_tokens()
    both = {**params, "head": {"kernel": params["token_embedding"]["embedding"].T}}
    count, more = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, both))
    assert more - count == 11 * 8
    same, want = jax.jit(tied.apply)(params, tokens), jax.jit(untied.apply)(both, tokens)
    np.testing.assert_allclose(same, want, rtol=1e-5, atol=1e-5)
    have = gradient(tied, params, tokens)["token_embedding"]["embedding"]
    parts = gradient(untied, both, tokens)
    start, end = parts["token_embedding"]["embedding"], parts["head"]["kernel"].T
    assert np.any(start != 0) and np.any(end != 0)
    np.testing.assert_allclose(have, start + end, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_bfloat16_keeps_float32_outside_and_is_near(tie_embeddings):
    half = decoder(**SMALL, tie_embeddings=tie_embeddings, dtype=jnp.bfloat16)
    full = decoder(**SMALL, tie_embeddings=tie_embeddings)
    params, tokens = draw_params(half, scale=0.2), draw_tokens()
    logits, want = jax.jit(half.apply)(params, tokens), jax.jit(full.apply)(params, tokens)
    assert logits.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(logits - want) < 0.03 * jnp.linalg.norm(want)
    have, wanted = gradient(half, params, tokens), gradient(full, params, tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, have))} == {jnp.dtype("float32")}
    difference, size = (
        np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree)))
        for tree in (jax.tree.map(jnp.subtract, have, wanted), wanted)
    )
    assert difference < 0.05 * size


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        *((TypeError, name, {name: "4"}) for name in [*SMALL, "mlp_width"]),
        *((ValueError, f"{name} >= 1, got 0", {name: 0}) for name in [*SMALL, "mlp_width"]),
        (ValueError, "expected width to be a multiple of num_heads=3, got 8", {"num_heads": 3}),
        (TypeError, "dropout", {"dropout": "a lot"}),
        (ValueError, "expected dropout < 1, got 1.0", {"dropout": 1.0}),
        (ValueError, "expected dropout >= 0, got -0.1", {"dropout": -0.1}),
        (TypeError, "tie_embeddings", {"tie_embeddings": 1}),
        (TypeError, "unroll", {"unroll": 2}),
        (TypeError, "dtype", {"dtype": 3}),
        (ValueError, "dtype to be one of 'float32', 'bfloat16', got 'int32'", {"dtype": jnp.int32}),
        (TypeError, "implementation", {"implementation": 3}),
        (ValueError, "implementation.*did you mean 'xla'", {"implementation": "xlaa"}),
    ],
)
def test_wrong_arguments_are_named(error, message, options):
    with pytest.raises(error, match=message):
        decoder(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("error", "message", "tokens"),
    [
        (ValueError, "at most max_length=6 positions, got 7", jnp.zeros((1, 7), jnp.int32)),
        (TypeError, "tokens", jnp.zeros((1, 6))),
        ((TypeError, ValueError), "tokens", jnp.zeros(6, jnp.int32)),
    ],
)
def test_wrong_tokens_are_named(error, message, tokens):
    model = decoder(**SMALL)
    with pytest.raises(error, match=message):
        model.apply(draw_params(model), tokens)
