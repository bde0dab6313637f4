"""Adapters, prefixes and features on models not built for them: by hand, scanned, unrolled, in half precision, in lanes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fedjax_tx as ftx
from fedjax_tx import tree
from fedjax_tx.models import adapters, add_extras, decoder, features, lora, prefix
from fedjax_tx.models.attention import SelfAttention
from fedjax_tx.models.layers import EXTRAS, Dense, merge

SIZES = {"vocab_size": 7, "num_layers": 2, "num_heads": 2, "width": 8, "max_length": 4}
PLAIN = decoder(**SIZES)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (3, 4)), jnp.int32)


def with_all(model):
    """The model with all extras at once."""
    return prefix(adapters(lora(model, 2, 4.0), 3), 2)


def is_extra(path):
    return bool(set(path) & set(EXTRAS))


def draw(model, seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


@functools.cache
def drawn_logits():
    params = draw(with_all(PLAIN))
    return params, jax.jit(with_all(PLAIN).apply)(params, TOKENS)


@pytest.mark.slow
def test_what_is_not_added_is_drawn_as_without():
    params, plain = jax.jit(lambda key: (with_all(PLAIN).init(key), PLAIN.init(key)))(jax.random.key(3))
    added, rest = tree.partition(params, is_extra)
    assert jax.tree.structure(rest) == jax.tree.structure(plain)
    jax.tree.map(np.testing.assert_array_equal, rest, plain)
    layers = added["layers"]
    assert set(added) == {"layers", "head"} and set(layers["attention"]["out"]) == {"lora", "adapter"}
    assert set(layers["mlp_in"]) == {"lora"} and layers["attention"]["prefix"]["value"].shape == (2, 2, 8)
    assert np.abs(np.subtract(*layers["mlp_out"]["adapter"]["down"]["kernel"])).max() > 0.001


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    {
        "lora": lambda model: lora(model, 2),
        "adapter": lambda model: adapters(model, 3),
        "prefix": lambda model: prefix(model, 2),
    }.items(),
)
def test_pretrained_weights_get_new_extras_and_stay_themselves(name, change):
    plain, model, key = draw(PLAIN), change(PLAIN), jax.random.key(3)
    added = add_extras(plain, model, key)
    new, old = tree.partition(added, lambda path: name in path)
    jax.tree.map(np.testing.assert_array_equal, old, plain)
    jax.tree.map(np.testing.assert_array_equal, new, tree.partition(jax.jit(model.init)(key), lambda path: name in path)[0])


def test_extras_that_are_there_stay_when_others_are_added():
    trained, both = draw(lora(PLAIN, 2)), adapters(lora(PLAIN, 2), 3)
    added = add_extras(trained, both, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, tree.partition(added, lambda path: "adapter" in path)[1], trained)
    assert jax.tree.structure(added) == jax.tree.structure(jax.eval_shape(both.init, jax.random.key(0)))


def test_new_adapters_are_the_identity_and_a_new_prefix_is_not():
    plain, adapted = draw(PLAIN), adapters(lora(PLAIN, 2), 3)
    extra, _ = tree.partition(jax.jit(adapted.init)(jax.random.key(1)), is_extra)
    logits = jax.jit(PLAIN.apply)(plain, TOKENS)
    np.testing.assert_array_equal(jax.jit(adapted.apply)(tree.join(extra, plain), TOKENS), logits)
    zeros = tree.zeros(tree.partition(jax.eval_shape(prefix(PLAIN, 1).init, jax.random.key(0)), is_extra)[0])
    assert np.abs(jax.jit(PLAIN.apply)(tree.join(zeros, plain), TOKENS) - logits).max() > 1e-3


@pytest.mark.slow
def test_every_extra_of_every_layer_matters():
    params, _ = drawn_logits()
    extra, rest = tree.partition(params, is_extra)
    model = with_all(PLAIN)
    slopes = jax.jit(jax.grad(lambda extra: (model.apply(tree.join(extra, rest), TOKENS) ** 2).sum()))(extra)
    for path in tree.paths(slopes):
        leaf = functools.reduce(lambda branch, name: branch[name], path, slopes)
        rows = leaf if path[0] == "layers" else leaf[None]
        # A key's slope sums to nothing where softmax gives all keys the same value; not here.
        assert all(np.abs(row).max() > 1e-6 for row in rows), path


def test_scanned_layers_equal_unrolled_ones():
    params, logits = drawn_logits()
    scanned = jax.jit(with_all(decoder(**SIZES, unroll=False)).apply)(params, TOKENS)
    np.testing.assert_allclose(scanned, logits, rtol=1e-4, atol=1e-5)


def test_half_precision_is_near_and_gives_float32():
    params, logits = drawn_logits()
    half = jax.jit(with_all(decoder(**SIZES, dtype=jnp.bfloat16)).apply)(params, TOKENS)
    assert half.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(half - logits) < 0.05 * jnp.linalg.norm(logits)


def test_clients_side_by_side_each_have_their_own_extras_over_one_base():
    model = with_all(PLAIN)
    params, logits = drawn_logits()
    extra, base = tree.partition(params, is_extra)
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 0 * leaf]), extra)
    together = jax.jit(jax.vmap(lambda extra: model.apply(tree.join(extra, base), TOKENS)))(lanes)
    np.testing.assert_allclose(together[0], logits, rtol=1e-4, atol=1e-5)
    own = jax.jit(model.apply)(tree.join(jax.tree.map(lambda leaf: 2 * leaf, extra), base), TOKENS)
    np.testing.assert_allclose(together[1], own, rtol=1e-4, atol=1e-5)


def test_an_adapter_by_hand():
    layer, rng = Dense(4, 3, rngs=nnx.Rngs(0)), np.random.default_rng(0)
    graph, state = nnx.split(layer)
    x, down, d, up, u = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 4), (3, 2), (2,), (2, 3), (3,)))
    adapter = {"down": {"kernel": down, "bias": d}, "up": {"kernel": up, "bias": u}}
    y = np.asarray(layer(jnp.asarray(x)), np.float64)
    hidden = y @ down + d
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    have = merge(graph, {**nnx.to_pure_dict(state), "adapter": jax.tree.map(jnp.asarray, adapter)})(jnp.asarray(x))
    np.testing.assert_allclose(have, y + hidden @ up + u, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_a_prefix_by_hand(causal):
    attention, rng = SelfAttention(width=4, num_heads=2, causal=causal, rngs=nnx.Rngs(0)), np.random.default_rng(0)
    graph, state = nnx.split(attention)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), nnx.to_pure_dict(state))
    first = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("key", "value")}
    x, valid = rng.standard_normal((2, 5, 4)).astype(np.float32), np.ones((2, 5), bool)
    valid[1, 3:] = False
    have = merge(graph, jax.tree.map(jnp.asarray, {**params, "prefix": first}))(jnp.asarray(x), jnp.asarray(valid))
    for row in range(2):
        q, k, v = np.split(x[row] @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, axis=-1)
        k, v = np.concatenate([first["key"], k]), np.concatenate([first["value"], v])
        for at in range(5):
            seen = [True] * 3 + [valid[row, other] and (other <= at or not causal) for other in range(5)]
            heads = []
            for part in (slice(0, 2), slice(2, 4)):
                scores = np.exp(k[seen][:, part] @ q[at, part] / np.sqrt(2))
                heads.append(scores / scores.sum() @ v[seen][:, part])
            want = np.concatenate(heads) @ params["out"]["kernel"] + params["out"]["bias"]
            np.testing.assert_allclose(have[row, at], want, rtol=1e-4, atol=1e-5)


def test_features_times_the_head_are_the_logits():
    params, logits = drawn_logits()
    read = jax.jit(features(with_all(PLAIN)).apply)(params, TOKENS)
    assert read.shape == (3, 4, 8) and read.dtype == jnp.float32
    head = params["head"]
    kernel = head["kernel"] + 2.0 * head["lora"]["lora_a"] @ head["lora"]["lora_b"]
    np.testing.assert_allclose(read @ kernel, logits, rtol=1e-4, atol=1e-5)


def trained_names(model, patterns):
    return tree.paths(jax.eval_shape(ftx.tasks.freeze(ftx.tasks.next_token(model), patterns).init, jax.random.key(0))[0])


def test_patterns_choose_a_linear_probe_bitfit_and_each_kind_of_extra():
    assert trained_names(PLAIN, "head/*") == {("head", "kernel")}
    names = trained_names(PLAIN, "*bias")
    assert len(names) == 7 and {path[-1] for path in names} == {"bias"}
    for name in ("lora", "adapter", "prefix"):
        names = trained_names(with_all(PLAIN), f"*{name}*")
        assert names and all(name in path for path in names)


def headless(params, x, *, key=None):
    return x @ params["head"]["kernel"]


OWN = ftx.Model(lambda key: {"head": {"kernel": jnp.ones((2, 3))}}, headless)
WRONG = [
    (r"to match dense layers, such as head, layers/attention/out, .*, got '\*conv'", lambda: adapters(PLAIN, 2, where="*conv")),
    (r"to match dense layers, such as head, got '\*attention/out'", lambda: adapters(OWN, 2)),
    ("model to have attentions, got", lambda: prefix(OWN, 2)),
    ("to match attentions, such as layers/attention, got 'layers'", lambda: prefix(PLAIN, 2, where="layers")),
    ("attentions without 'prefix' only", lambda: prefix(prefix(PLAIN, 2), 2)),
    ("dense layers without 'adapter' only", lambda: adapters(adapters(PLAIN, 2), 2)),
    ("such as layers/attention/out, .*, got 'head'", lambda: features(decoder(**SIZES, tie_embeddings=True))),
    ("the model to give the 2 inputs of 'head', got", lambda: features(OWN).apply(OWN.init(None), jnp.ones((1, 2)))),
]


@pytest.mark.parametrize(("message", "call"), WRONG)
def test_wrong_places_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
