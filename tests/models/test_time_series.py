"""The time-series Transformer against NumPy, and its patches by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer as reference
import pytest
from numpy_transformer import draw_params

from fedjax_tx.models import time_series
from fedjax_tx.models.time_series import join_steps

SMALL = {"channels": 2, "num_layers": 2, "num_heads": 2, "width": 8, "max_length": 9, "unroll": False}
LENGTHS = np.array([7, 3, 1])


def draw_inputs(time: int = 7):
    series = np.random.default_rng(0).standard_normal((3, time, 2)).astype(np.float32)
    return {"series": series, "valid": np.arange(time) < LENGTHS[:, None]}


def test_a_length_that_is_no_multiple_of_the_patch_is_filled_up():
    series = jnp.arange(10.0).reshape(1, 5, 2)
    patches, valid = join_steps(series, None, 3)
    assert patches.tolist() == [[[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 0, 0]]] and valid is None
    patches, valid = join_steps(series, jnp.array([[True, True, False, False, False]]), 3)
    assert patches.tolist() == [[[0, 1, 2, 3, 0, 0], [0] * 6]] and valid.tolist() == [[True, False]]


@pytest.mark.parametrize(("horizon", "positions"), [(None, "learned"), (4, "sinusoidal")])
def test_outputs_equal_the_reference(horizon, positions):
    model = time_series(**SMALL, patch_length=2, positions=positions, **({"horizon": 4} if horizon else {"num_classes": 3}))
    inputs, drawn = draw_inputs(), draw_params(model)
    params = reference.in_float64(drawn)
    series = np.zeros((3, 8, 2))
    series[:, :7] = np.where(inputs["valid"][..., None], inputs["series"], 0)
    x = reference.dense(series.reshape(3, 4, 4), params["patch_embedding"])
    if positions == "learned":
        assert params["position_embedding"]["embedding"].shape == (5, 8)
        x = x + params["position_embedding"]["embedding"][:4]
    else:
        angles = np.arange(4)[:, None] / 10000 ** (2 * np.arange(4) / 8)
        x = x + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    counts = [4, 2, 1]  # patches with a valid step
    visible = np.broadcast_to((np.arange(4) < np.array(counts)[:, None])[:, None, :], (3, 4, 4))
    x = reference.norm(reference.layers(x, params["layers"], 2, visible), params["final_norm"], 1e-5)
    pooled = [row[count - 1] if horizon else row[:count].mean(0) for row, count in zip(x, counts, strict=True)]
    want = reference.dense(np.stack(pooled), params["head"])
    want = want.reshape(3, 4, 2) if horizon else want
    np.testing.assert_allclose(jax.jit(model.apply)(drawn, inputs), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "num_classes and horizon to be given one without the other, got \\(None, None\\)", {}),
        (ValueError, "num_classes and horizon to be given one", {"num_classes": 2, "horizon": 2}),
        (ValueError, "horizon >= 1, got 0", {"horizon": 0}),
        (ValueError, "width to be even", {"num_classes": 2, "width": 7, "num_heads": 1, "positions": "sinusoidal"}),
    ],
)
def test_wrong_arguments_are_named(error, message, options):
    with pytest.raises(error, match=message):
        time_series(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("error", "message", "series"),
    [
        (TypeError, "series to be floating-point", np.zeros((1, 4, 2), np.int32)),
        (ValueError, r"series of shape \[batch, time, 2\]", np.zeros((1, 4, 3), np.float32)),
        (ValueError, "series of 1 to max_length=9 steps, got 10", np.zeros((1, 10, 2), np.float32)),
    ],
)
def test_wrong_series_are_named(error, message, series, unchecked):
    model = time_series(**SMALL, num_classes=2)
    with pytest.raises(error, match=message):
        model.apply(draw_params(model), series)
