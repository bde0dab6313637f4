"""Tasks: losses and metrics by hand, padding by its laws, errors by their messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx.models import decoder
from fedjax_tx.tasks import classification, next_token, regression
from fedjax_tx.types import Model

LINEAR = Model(lambda key: jax.random.normal(key, (3, 2)), lambda params, x, *, key=None: x @ params)
DECODER = decoder(vocab_size=5, num_layers=1, num_heads=1, width=4, max_length=4)


def numpy_cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(labels)[..., None], -1)[..., 0]


def test_next_token_by_hand():
    # Two inputs, three tokens; the probability of the right one is 1/2, then 1/4 in row 0; then 1/3 twice, wrongly.
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]))
    batch = {"tokens": jnp.array([[2, 0, 1], [0, 2, 1]])}
    task = next_token(DECODER)
    value, weight = task.loss({"logits": logits}, batch)
    np.testing.assert_allclose(value, [(np.log(2) + np.log(4)) / 2, np.log(3)], rtol=1e-6)
    np.testing.assert_array_equal(weight, [1.0, 1.0])
    accuracy, weight = task.metrics({"logits": logits}, batch)["accuracy"]
    np.testing.assert_array_equal(accuracy, [0.5, 0.0])
    np.testing.assert_array_equal(weight, [1.0, 1.0])


def test_next_token_with_padding_by_hand():
    probabilities = jnp.array([[[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.9, 0.1]]] * 3)
    batch = {"tokens": jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])}
    outputs, task = {"logits": jnp.log(probabilities)}, next_token(DECODER, pad_id=0)
    value, weight = task.loss(outputs, batch)
    first = (-np.log(0.8) - np.log(0.5)) / 2
    whole = -(np.log(0.8) + np.log(0.5) + 2 * np.log(0.1)) / 4
    np.testing.assert_allclose(value, [first, whole, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(weight, [0.5, 1.0, 0.0])
    accuracy, weight = task.metrics(outputs, batch)["accuracy"]
    np.testing.assert_array_equal(accuracy, [0.5, 0.25, 0.0])  # equal logits go to the first token, here the wrong one
    np.testing.assert_array_equal(weight, [0.5, 1.0, 0.0])


def test_next_token_reads_inputs_and_targets_one_apart():
    task = next_token(DECODER, column="text")
    params, frozen = jax.jit(task.init)(jax.random.key(0))
    assert frozen == ()
    batch = {"text": jnp.array([[1, 2, 3, 4, 0], [4, 3, 2, 1, 1]])}
    outputs = task.apply(params, frozen, batch, None)
    np.testing.assert_array_equal(outputs["logits"], DECODER.apply(params, batch["text"][:, :-1]))
    want = numpy_cross_entropy(outputs["logits"], batch["text"][:, 1:]).mean(1)
    np.testing.assert_allclose(task.loss(outputs, batch)[0], want, rtol=1e-6)


def test_padding_gives_no_gradient_and_stays_finite():
    task = next_token(DECODER, pad_id=0)
    params, frozen = jax.jit(task.init)(jax.random.key(0))

    def total(params, tokens):
        value, weight = task.loss(task.apply(params, frozen, {"tokens": tokens}, None), {"tokens": tokens})
        return jnp.sum(value * weight)

    text = jnp.array([[1, 2, 3, 0, 0]])
    gradient_of = jax.jit(jax.grad(total))
    gradient = gradient_of(params, jnp.concatenate([text, jnp.zeros_like(text)]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    alone = gradient_of(params, text)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, alone)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient_of(params, jnp.zeros_like(text))))


def test_padding_told_by_a_column_counts_as_padding_told_by_a_token():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 5))
    tokens = jnp.array([[1, 1, 1, 0, 0], [1, 2, 3, 4, 1], [1, 0, 0, 0, 0]])
    by_token, by_column = next_token(DECODER, pad_id=0), next_token(DECODER, valid="real")
    for marks in (tokens != 0, (tokens != 0).astype(jnp.int32)):
        both = [(by_token, {"tokens": tokens}), (by_column, {"tokens": tokens, "real": marks})]
        scores = [(task.loss({"logits": logits}, batch), task.metrics({"logits": logits}, batch)) for task, batch in both]
        jax.tree.map(np.testing.assert_array_equal, *scores)


def test_a_token_that_fills_up_may_be_a_target_elsewhere():
    batch = {"tokens": jnp.array([[2, 0, 1, 0]]), "valid": jnp.array([[True, True, True, False]])}
    _, weight = next_token(DECODER, valid="valid").loss({"logits": jnp.zeros((1, 3, 5))}, batch)
    np.testing.assert_allclose(weight, [2 / 3])


def test_narrow_tokens_are_what_wide_ones_are():
    wide = jnp.array([[1, 2, 1, 1, 1]])
    model = Model(lambda key: {}, lambda params, tokens, *, key=None: jax.nn.one_hot(tokens, 258))
    task = next_token(model, pad_id=257)
    losses = [
        task.loss(task.apply({}, (), batch, None), batch) for batch in ({"tokens": wide}, {"tokens": wide.astype(jnp.uint8)})
    ]
    np.testing.assert_array_equal(*losses)
    np.testing.assert_array_equal(losses[1][1], [1.0])  # in uint8, 257 would be the token 1


def test_infinite_loss_at_padding_is_not_seen():
    logits = jnp.array([[[0.0, 0.0], [-jnp.inf, 0.0]]])
    batch = {"tokens": jnp.array([[1, 1, 0]])}
    value, weight = next_token(DECODER, pad_id=0).loss({"logits": logits}, batch)
    np.testing.assert_allclose(value, [np.log(2)], rtol=1e-6)
    np.testing.assert_array_equal(weight, [0.5])


def test_the_key_reaches_the_model():
    task = next_token(decoder(vocab_size=5, num_layers=1, num_heads=1, width=4, max_length=4, dropout=0.5))
    params, frozen = jax.jit(task.init)(jax.random.key(0))
    batch = {"tokens": jnp.array([[1, 2, 3, 4, 0]])}
    drawn, plain = (task.apply(params, frozen, batch, key)["logits"] for key in (jax.random.key(1), None))
    assert np.any(drawn != plain)


def test_classification_by_hand():
    task = classification(LINEAR, inputs="image", labels="label")
    batch = {"image": jnp.eye(3), "label": jnp.array([0, 1, 0])}
    params = jnp.log(jnp.array([[0.75, 0.25], [0.25, 0.75], [0.1, 0.9]]))
    outputs = task.apply(params, (), batch, None)
    value, weight = task.loss(outputs, batch)
    np.testing.assert_allclose(value, -np.log([0.75, 0.75, 0.1]), rtol=1e-6)
    np.testing.assert_array_equal(weight, np.ones(3))
    accuracy, weight = task.metrics(outputs, batch)["accuracy"]
    np.testing.assert_array_equal(accuracy, [1.0, 1.0, 0.0])
    np.testing.assert_array_equal(weight, np.ones(3))


def test_booleans_are_two_classes():
    task, outputs = classification(LINEAR), {"logits": jnp.array([[0.0, 1.0], [2.0, 0.0]])}
    truth = jnp.array([True, False])
    scores = [(task.loss(outputs, {"y": y}), task.metrics(outputs, {"y": y})) for y in (truth, truth.astype(jnp.int32))]
    jax.tree.map(np.testing.assert_array_equal, *scores)


@pytest.mark.parametrize("make", [classification, regression])
def test_a_list_of_columns_reaches_the_model_as_a_dict(make):
    seen = []
    model = Model(lambda key: (), lambda params, inputs, *, key=None: seen.append(inputs) or jnp.zeros((2, 3)))
    batch = {"tokens": jnp.ones((2, 4)), "valid": jnp.ones((2, 4), bool), "y": jnp.zeros(2, jnp.int32)}
    make(model, inputs=["tokens", "valid"]).apply((), (), batch, None)
    make(model, inputs=["tokens"]).apply((), (), batch, None)
    make(model, inputs="tokens").apply((), (), batch, None)
    assert seen[0] == {"tokens": batch["tokens"], "valid": batch["valid"]}
    assert seen[1] == {"tokens": batch["tokens"]} and seen[2] is batch["tokens"]
    with pytest.raises(ValueError, match="batch to have a column 'mask'"):
        make(model, inputs=["tokens", "mask"]).apply((), (), batch, None)


def test_regression_by_hand():
    task = regression(LINEAR)
    batch = {"x": jnp.eye(3)[:2], "y": jnp.array([[1.0, 4.0], [0.0, 0.0]])}
    outputs = task.apply(jnp.array([[1.0, 2.0], [3.0, 1.0], [0.0, 0.0]]), (), batch, None)
    value, weight = task.loss(outputs, batch)
    np.testing.assert_allclose(value, [2.0, 5.0], rtol=1e-6)
    np.testing.assert_array_equal(weight, np.ones(2))
    assert task.metrics(outputs, batch) == {}


def test_bfloat16_logits_give_a_float32_loss():
    batch = {"x": jnp.ones((2, 3)), "y": jnp.array([0, 1])}
    value, _ = classification(LINEAR).loss({"logits": jnp.ones((2, 2), jnp.bfloat16)}, batch)
    assert value.dtype == jnp.float32


def test_loss_equals_itself_under_jit_and_vmap():
    task = classification(LINEAR)
    params = jax.vmap(lambda key: task.init(key)[0])(jax.random.split(jax.random.key(0), 4))
    batch = {"x": jnp.arange(24.0).reshape(4, 2, 3) / 24, "y": jnp.array([[0, 1]] * 4)}

    def loss(params, batch):
        return task.loss(task.apply(params, (), batch, None), batch)[0]

    alone = [loss(params[lane], jax.tree.map(lambda leaf: leaf[lane], batch)) for lane in range(4)]  # noqa: B023
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(params, batch), jnp.stack(alone), rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "message", "make", "options"),
    [
        (TypeError, "model", next_token, {"model": "gpt"}),
        (TypeError, "model", classification, {"model": None}),
        (TypeError, "model", regression, {"model": 3}),
        (TypeError, "pad_id", next_token, {"pad_id": 0.0}),
        (ValueError, "expected pad_id >= 0, got -100", next_token, {"pad_id": -100}),
        (TypeError, "column", next_token, {"column": 3}),
        (TypeError, "valid", next_token, {"valid": 3}),
        (ValueError, "expected valid to be None where pad_id is given", next_token, {"valid": "valid", "pad_id": 0}),
        (TypeError, "inputs", classification, {"inputs": 3}),
        (TypeError, "labels", classification, {"labels": None}),
        (TypeError, "inputs", regression, {"inputs": ["x", 3]}),
        (TypeError, "targets", regression, {"targets": 1}),
    ],
)
def test_wrong_arguments_are_named(error, message, make, options):
    with pytest.raises(error, match=message):
        make(**{"model": LINEAR, **options})


def test_wrong_batches_are_named():
    with pytest.raises(ValueError, match=r"batch to have a column 'tokens', got \['x', 'y'\]"):
        next_token(DECODER).apply({}, (), {"x": jnp.ones(1), "y": jnp.ones(1)}, None)
    with pytest.raises(ValueError, match=r"batch to have a column 'label', got \['x'\]"):
        classification(LINEAR, labels="label").loss({"logits": jnp.ones((1, 2))}, {"x": jnp.ones((1, 3))})
    with pytest.raises(TypeError, match="column 'tokens' to be integers, got .*float32"):
        next_token(DECODER).apply({}, (), {"tokens": jnp.ones((1, 5))}, None)
    with pytest.raises(ValueError, match=r"column 'tokens' of shape \[batch, time \+ 1\] with time >= 1, got \(2, 1\)"):
        next_token(DECODER).apply({}, (), {"tokens": jnp.ones((2, 1), jnp.int32)}, None)
    with pytest.raises(TypeError, match="column 'y' to be integers"):
        classification(LINEAR).loss({"logits": jnp.ones((1, 2))}, {"y": jnp.ones(1)})
    for logits, y, message in (
        ((2, 2), (2, 1), r"column 'y' of shape \(2,\), one class an example, got \(2, 1\)"),
        ((2, 4, 2), (2,), r"the model's logits of shape \[batch, class\], got \(2, 4, 2\)"),
        ((2, 4, 2), (2, 4), r"the model's logits of shape \[batch, class\], got \(2, 4, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            classification(LINEAR).loss({"logits": jnp.ones(logits)}, {"y": jnp.zeros(y, jnp.int32)})
    with pytest.raises(ValueError, match="expected pad_id < 5, the number of tokens that the model has, got 5"):
        next_token(DECODER, pad_id=5).loss({"logits": jnp.ones((1, 4, 5))}, {"tokens": jnp.ones((1, 5), jnp.int32)})
    tokens = {"tokens": jnp.ones((1, 5), jnp.int32)}
    for real, error, message in ((jnp.ones((1, 4)), TypeError, "to be booleans"), (jnp.ones((1, 4), bool), ValueError, "shape")):
        with pytest.raises(error, match=f"column 'real' .*{message}"):
            next_token(DECODER, valid="real").loss({"logits": jnp.ones((1, 4, 5))}, {**tokens, "real": real})
    with pytest.raises(ValueError, match=r"output of 'y''s shape \(4,\), got \(4, 1\)"):
        regression(LINEAR).loss({"logits": jnp.ones((4, 1))}, {"y": jnp.ones(4)})
