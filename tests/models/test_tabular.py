"""The FT-Transformer against NumPy; what is missing by its laws."""

import jax
import numpy as np
import numpy_transformer as reference
import pytest
from numpy_transformer import draw_params

from fedjax_tx.models import tabular

SMALL = {"num_layers": 2, "num_heads": 2, "width": 8, "unroll": False}
NUMERIC = np.array([[0.5, -1.0], [np.nan, 2.0], [0.1, np.nan]], np.float32)
CATEGORICAL = np.array([[0, 3], [2, 0], [-1, 4]], np.int32)


def test_outputs_equal_the_reference():
    model = tabular(2, [3, 4], 3, **SMALL)
    drawn = draw_params(model)
    params = reference.in_float64(drawn)
    tables = np.split(params["category_embedding"]["embedding"], [3])
    tokens = np.zeros((3, 5, 8))
    tokens[:, 0] = params["class_token"]["embedding"]
    for row in range(3):
        for number, value in enumerate(NUMERIC[row]):
            told = value * params["numeric"]["slope"][number] + params["numeric"]["bias"][number]
            tokens[row, 1 + number] = params["missing"]["embedding"][number] if np.isnan(value) else told
        for number, value in enumerate(CATEGORICAL[row]):
            known = 0 <= value < len(tables[number])
            told = tables[number][value] + params["category_bias"]["embedding"][number] if known else None
            tokens[row, 3 + number] = told if known else params["missing"]["embedding"][2 + number]
    x = reference.layers(tokens, params["layers"], 2, np.ones((3, 5, 5), bool))
    want = reference.dense(np.maximum(reference.norm(x[:, 0], params["final_norm"], 1e-5), 0), params["head"])
    have = jax.jit(model.apply)(drawn, {"numeric": NUMERIC, "categorical": CATEGORICAL})
    np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5)


def test_tables_of_one_kind_have_the_parameters_of_that_kind_only():
    numbers, categories = tabular(2, [], 1, **SMALL), tabular(0, [3, 4], 1, **SMALL)
    drawn = [jax.eval_shape(model.init, jax.random.key(0)) for model in (numbers, categories)]
    assert "numeric" in drawn[0] and "category_embedding" not in drawn[0] and drawn[0]["missing"]["embedding"].shape == (2, 8)
    assert "numeric" not in drawn[1] and drawn[1]["category_embedding"]["embedding"].shape == (7, 8)
    assert jax.eval_shape(numbers.apply, drawn[0], {"numeric": NUMERIC}).shape == (3, 1)
    assert jax.eval_shape(categories.apply, drawn[1], {"categorical": CATEGORICAL}).shape == (3, 1)


@pytest.mark.parametrize(
    ("error", "message", "inputs"),
    [
        (ValueError, r"inputs to be \['categorical', 'numeric'\], got \['numeric'\]", {"numeric": NUMERIC}),
        (TypeError, "categorical to be integers", {"numeric": NUMERIC, "categorical": NUMERIC}),
        (ValueError, r"numeric of shape \[batch, 2\], got \(3, 1\)", {"numeric": NUMERIC[:, :1], "categorical": CATEGORICAL}),
    ],
)
def test_wrong_rows_are_named(error, message, inputs, unchecked):
    model = tabular(2, [3, 4], 1, **SMALL)
    with pytest.raises(error, match=message):
        model.apply(draw_params(model), inputs)


def test_a_table_without_features_is_refused():
    with pytest.raises(ValueError, match="num_numeric >= 1 where there are no categories"):
        tabular(0, [], 1)
