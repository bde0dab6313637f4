"""The models that Transformers are compared with: equal to sums written out, and blind to what is padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx.models import cnn, logistic_regression, mlp, recurrent, resnet
from fedjax_tx.models.cnn import max_pool
from fedjax_tx.models.resnet import GroupNorm

DRAW = np.random.default_rng(0)
KEY = jax.random.key(0)


def numbers(*shape):
    return jnp.asarray(DRAW.standard_normal(shape), jnp.float32)


def redrawn(model):
    """Parameters of the model's shapes, biases and gains random too."""
    return jax.tree.map(lambda leaf: 0.5 * numbers(*leaf.shape), jax.eval_shape(model.init, KEY))


def run(model, params, inputs):
    return np.array(jax.jit(model.apply)(params, inputs))


def affine(x, layer):
    return x @ np.array(layer["kernel"]) + np.array(layer.get("bias", 0.0))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_a_perceptron_is_its_products():
    model, x = mlp((2, 3), 4, [5, 7]), numbers(3, 2, 3)
    params = redrawn(model)
    hidden = np.maximum(affine(np.array(x).reshape(3, 6), params["hidden_0"]), 0)
    hidden = np.maximum(affine(hidden, params["hidden_1"]), 0)
    np.testing.assert_allclose(run(model, params, x), affine(hidden, params["head"]), rtol=1e-5, atol=1e-5)


def test_logistic_regression_is_one_layer():
    model, x = logistic_regression(3, 4), numbers(2, 3)
    params = redrawn(model)
    assert params.keys() == {"head"}
    np.testing.assert_allclose(run(model, params, x), affine(np.array(x), params["head"]), rtol=1e-5, atol=1e-5)


def pooled_by_hand(x, size):
    """Windows of ``size`` along axis 1, the last one smaller where it must be."""
    return np.stack([x[:, start : start + size].max(1) for start in range(0, x.shape[1], size)], axis=1)


def test_a_network_of_convolutions_over_signals_is_its_loops():
    model = cnn((7, 2), 3, [4, 5], kernel_size=3, pool=2, padding="SAME", hidden_sizes=[6])
    params, x = redrawn(model), numbers(2, 7, 2)
    hidden = np.array(x)
    for number in range(2):
        layer = params[f"convolution_{number}"]
        padded = np.pad(hidden, [(0, 0), (1, 1), (0, 0)])
        windows = [padded[:, time : time + 3].reshape(2, -1) for time in range(hidden.shape[1])]
        flat = np.array(layer["kernel"]).reshape(-1, layer["kernel"].shape[-1])
        hidden = np.maximum(np.stack([window @ flat for window in windows], 1) + np.array(layer["bias"]), 0)
        hidden = pooled_by_hand(hidden, 2)
    assert hidden.shape == (2, 2, 5)
    hidden = np.maximum(affine(hidden.reshape(2, -1), params["hidden_0"]), 0)
    np.testing.assert_allclose(run(model, params, x), affine(hidden, params["head"]), rtol=1e-4, atol=1e-4)


def test_a_pool_of_images_takes_squares_and_what_is_left_at_an_end():
    x = np.abs(np.array(numbers(2, 5, 3, 2)))
    want = pooled_by_hand(pooled_by_hand(x, 2).swapaxes(1, 2), 2).swapaxes(1, 2)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), 2), want)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_padding_behind_a_signal_changes_no_logit_of_a_convolutional_network(padding):
    model = cnn((7, 2), 3, [4, 5], kernel_size=3, pool=(2, 1), padding=padding, hidden_sizes=[], summary="mean")
    params, x = redrawn(model), numbers(2, 7, 2)
    longer = jnp.concatenate([x, 100 * numbers(2, 6, 2)], axis=1)
    valid = jnp.broadcast_to(jnp.arange(13) < 7, (2, 13))
    want = run(model, params, {"x": x, "valid": jnp.ones((2, 7), bool)})
    np.testing.assert_allclose(run(model, params, {"x": longer, "valid": valid}), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(model, params, x), want, rtol=1e-5, atol=1e-5)
    assert np.abs(run(model, params, longer) - want).max() > 0.1


def lstm_by_hand(layer, x):
    hidden = cell = np.zeros((len(x), layer["recurrent"]["kernel"].shape[0]))
    outputs = []
    for time in range(x.shape[1]):
        i, f, g, o = np.split(affine(x[:, time], layer["input"]) + affine(hidden, layer["recurrent"]), 4, axis=-1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs, 1)


def gru_by_hand(layer, x):
    hidden, outputs = np.zeros((len(x), layer["recurrent"]["kernel"].shape[0])), []
    for time in range(x.shape[1]):
        r, z, n = np.split(affine(x[:, time], layer["input"]), 3, axis=-1)
        held_r, held_z, held_n = np.split(affine(hidden, layer["recurrent"]), 3, axis=-1)
        r, z = sigmoid(r + held_r), sigmoid(z + held_z)
        hidden = (1 - z) * np.tanh(n + r * held_n) + z * hidden
        outputs.append(hidden)
    return np.stack(outputs, 1)


@pytest.mark.parametrize(("cell", "by_hand"), [("lstm", lstm_by_hand), ("gru", gru_by_hand)])
def test_recurrent_layers_are_their_equations_and_padding_changes_nothing(cell, by_hand):
    model = recurrent(num_features=3, num_classes=4, cell=cell, width=5, num_layers=2)
    params, x = redrawn(model), numbers(2, 4, 3)
    states = by_hand(params["layer_1"], by_hand(params["layer_0"], np.array(x)))
    want = affine(states[:, -1], params["head"])
    np.testing.assert_allclose(run(model, params, x), want, rtol=1e-4, atol=1e-5)
    places = np.array([0, 2, 3, 5])  # padding in between too
    longer = 100 * numbers(2, 7, 3)
    longer, valid = longer.at[:, places].set(x), jnp.zeros((2, 7), bool).at[:, places].set(True)
    np.testing.assert_allclose(run(model, params, {"x": longer, "valid": valid}), want, rtol=1e-4, atol=1e-5)
    assert np.abs(run(model, params, longer) - want).max() > 0.01


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_nan_where_a_series_is_not_valid_reaches_neither_logits_nor_gradients(cell):
    model = recurrent(num_features=3, num_classes=4, cell=cell, width=5, num_layers=1)
    valid = jnp.arange(4) < jnp.array([[3], [4]])
    x = numbers(2, 4, 3)
    filled = [jnp.where(valid[..., None], x, fill) for fill in (jnp.nan, 0.0)]
    squares = jax.jit(jax.value_and_grad(lambda params, x: jnp.square(model.apply(params, {"x": x, "valid": valid})).sum()))
    params = redrawn(model)
    jax.tree.map(np.testing.assert_array_equal, squares(params, filled[0]), squares(params, filled[1]))


def test_a_recurrent_language_model_sees_no_later_token():
    model = recurrent(vocab_size=7, width=5, num_layers=1)
    params, tokens = redrawn(model), jnp.array([[1, 2, 3, 4, 5]])
    moved = np.abs(run(model, params, tokens) - run(model, params, tokens.at[0, 2].set(6)))[0].max(-1)
    assert moved[:2].max() == 0.0 and moved[2:].min() > 0.0


def test_the_forget_gate_starts_open():
    params = jax.jit(recurrent(vocab_size=7, width=3, num_layers=1).init)(KEY)
    assert params["layer_0"]["input"]["bias"].tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6


def test_group_norm_is_over_space_and_a_group_of_one_example():
    x = np.array(numbers(2, 3, 2, 6)) + 5
    want = np.empty_like(x)
    for example in range(2):
        for group in range(3):
            part = x[example, :, :, 2 * group : 2 * group + 2]
            want[example, :, :, 2 * group : 2 * group + 2] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    np.testing.assert_allclose(GroupNorm(6, num_groups=3)(jnp.asarray(x)), want, rtol=1e-4, atol=1e-5)


def test_a_residual_network_with_silent_branches_is_its_shortcuts():
    model = resnet(3, 4, depth=8, width=4, num_groups=2)
    params, x = redrawn(model), numbers(2, 4, 4, 3)
    for name in ("stage_0_block_0", "stage_1_block_0", "stage_2_block_0"):
        params[name]["convolution_1"]["kernel"] = jnp.zeros_like(params[name]["convolution_1"]["kernel"])

    def norm(x, layer):
        return np.maximum(np.array(GroupNorm(x.shape[-1], 2)(jnp.asarray(x))) * np.array(layer["scale"]) + layer["bias"], 0)

    kernel = np.array(params["convolution"]["kernel"])
    padded = np.pad(np.array(x), [(0, 0), (1, 1), (1, 1), (0, 0)])
    hidden = sum(padded[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3))
    for stage in (1, 2):  # the first block's shortcut is the identity, the others' take every second pixel
        block = params[f"stage_{stage}_block_0"]
        hidden = norm(hidden, block["norm_0"])[:, ::2, ::2] @ np.array(block["shortcut"]["kernel"])[0, 0]
    want = affine(norm(hidden, params["final_norm"]).mean((1, 2)), params["head"])
    np.testing.assert_allclose(run(model, params, x), want, rtol=1e-4, atol=1e-4)


def test_a_residual_network_has_the_parameters_of_its_paper():
    # 0.27 M, table 6 of arXiv 1512.03385, whose shortcuts have none: here 16 * 32 + 32 * 64 more.
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(resnet(3, 10, depth=20).init, KEY)))
    assert round((count - 16 * 32 - 32 * 64) / 1e6, 2) == 0.27


MODELS = {
    "mlp": (lambda dtype: mlp(3, 4, [5], dtype=dtype), numbers(2, 3)),
    "cnn": (lambda dtype: cnn((6, 6, 1), 4, [2, 3], hidden_sizes=[5], dtype=dtype), numbers(2, 6, 6, 1)),
    "lstm": (lambda dtype: recurrent(vocab_size=4, width=3, num_layers=1, dtype=dtype), jnp.array([[0, 1, 3]])),
    "gru": (lambda dtype: recurrent(vocab_size=4, cell="gru", width=3, num_layers=1, dtype=dtype), jnp.array([[0, 1, 3]])),
    "resnet": (lambda dtype: resnet(3, 4, depth=8, width=4, num_groups=2, dtype=dtype), numbers(2, 4, 4, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_gives_float32_logits_near_the_others(name):
    make, x = MODELS[name]
    params = redrawn(make(jnp.float32))
    full, half = (jax.jit(make(dtype).apply)(params, x) for dtype in (jnp.float32, jnp.bfloat16))
    assert half.dtype == full.dtype == jnp.float32
    gap = np.abs(np.array(half - full)).max()
    assert 0 < gap < 0.05 * np.abs(np.array(full)).max() + 0.01


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (mlp(3, 2), np.ones((2, 4)), "expected x of shape"),
        (cnn((6, 6, 1), 2), np.ones((2, 5, 6, 1)), "expected x of shape"),
        (cnn((6, 6, 1), 2), {"x": np.ones((2, 6, 6, 1)), "valid": np.ones((2, 6), bool)}, "valid"),
        (recurrent(vocab_size=4), np.ones((2, 5)), "expected tokens to be integers"),
        (recurrent(num_features=2, num_classes=2), np.ones((2, 5, 3)), "expected x of shape"),
        (resnet(3, 2, depth=8), np.ones((2, 4, 4, 1)), "expected x of shape"),
    ],
)
def test_inputs_that_do_not_fit_are_named(model, inputs, message, unchecked):
    with pytest.raises((TypeError, ValueError), match=message):
        jax.eval_shape(lambda: model.apply(model.init(KEY), inputs))
