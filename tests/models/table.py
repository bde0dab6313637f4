"""Every model, with inputs to run it on: the rows of ``test_model_properties.py``.

To add a model: its name, a function of (dtype) that makes a small one, and inputs of three examples. Where the inputs hold
``valid`` [batch, time], the laws of padding are tested too: outputs [batch, time, ...] count at valid positions only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_tx.models import cnn, decoder, encoder, logistic_regression, mlp, recurrent, resnet, tabular, time_series, vit
from fedjax_tx.types import Model

LAYERS = {"num_layers": 1, "num_heads": 2, "width": 8}
SIZES = {**LAYERS, "vocab_size": 11, "max_length": 8}
VALID = np.arange(6) < np.array([[6], [3], [1]])


class Row(NamedTuple):
    """A model's maker, and inputs for it.

    ``longer``: whether the inputs may be padded to more positions than they have. ``variant``: of another row's model, or one
    whose laws a file of its own tests too: its tests are slow ones, as each row compiles for several seconds. ``at_zero``: it
    draws no parameter at random.
    """

    make: Callable[[Any], Model]
    inputs: Any
    longer: bool = True
    variant: bool = False
    at_zero: bool = False


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)


def text() -> dict[str, np.ndarray]:
    return {"tokens": tokens(), "valid": VALID}


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def signal() -> dict[str, np.ndarray]:
    return {"series": numbers(3, 6, 2), "valid": VALID}


def row() -> dict[str, np.ndarray]:
    """A row without gaps, one without numbers, and one without a known category."""
    numeric, categorical = numbers(3, 2), np.array([[0, 3], [2, 1], [-1, 4]], np.int32)
    numeric[1] = np.nan
    return {"numeric": numeric, "categorical": categorical}


TABLE = {
    "decoder": Row(lambda dtype: decoder(**SIZES, dtype=dtype), tokens(), variant=True),
    "decoder, tied": Row(lambda dtype: decoder(**SIZES, dtype=dtype, tie_embeddings=True), tokens(), variant=True),
    "decoder, rotary and grouped": Row(lambda dtype: decoder(**SIZES, dtype=dtype, positions="rotary", num_kv_heads=1), tokens()),
    "encoder, classes": Row(
        lambda dtype: encoder(**SIZES, num_classes=3, pool="cls", pooler=True, num_segments=2, dtype=dtype), text(), variant=True
    ),
    "encoder, pre-norm": Row(lambda dtype: encoder(**SIZES, num_classes=3, norm="pre", dtype=dtype), text(), variant=True),
    "encoder, tokens": Row(lambda dtype: encoder(**SIZES, head="tokens", dtype=dtype), text()),
    "encoder, embeddings": Row(
        lambda dtype: encoder(**SIZES, head="embeddings", normalise=True, dtype=dtype), text(), variant=True
    ),
    "vit": Row(lambda dtype: vit(4, 2, 3, **LAYERS, channels=2, dtype=dtype), numbers(3, 4, 4, 2)),
    "vit, mean": Row(
        lambda dtype: vit((4, 6), 2, 3, **LAYERS, channels=1, pool="mean", dtype=dtype), numbers(3, 4, 6, 1), variant=True
    ),
    "time series, classes": Row(
        lambda dtype: time_series(2, **LAYERS, max_length=8, num_classes=3, patch_length=4, dtype=dtype), signal()
    ),
    "time series, forecast": Row(
        lambda dtype: time_series(2, **LAYERS, max_length=8, horizon=3, positions="sinusoidal", dtype=dtype),
        signal(),
        variant=True,
    ),
    "tabular": Row(lambda dtype: tabular(2, [3, 4], 3, **LAYERS, dtype=dtype), row()),
    "logistic regression": Row(lambda dtype: logistic_regression(3, 4, dtype=dtype), numbers(3, 3), at_zero=True),
    "mlp": Row(lambda dtype: mlp((3, 2), 4, [5], dtype=dtype), numbers(3, 3, 2)),
    "cnn, signals": Row(
        lambda dtype: cnn((6, 2), 4, [3], pool=2, padding="SAME", hidden_sizes=[], summary="mean", dtype=dtype),
        {"x": numbers(3, 6, 2), "valid": VALID},
    ),
    "cnn, images": Row(lambda dtype: cnn((6, 6, 1), 4, [2, 3], hidden_sizes=[5], dtype=dtype), numbers(3, 6, 6, 1)),
    "lstm": Row(
        lambda dtype: recurrent(num_features=2, num_classes=4, width=3, num_layers=1, dtype=dtype),
        {"x": numbers(3, 6, 2), "valid": VALID},
    ),
    "gru, tokens": Row(lambda dtype: recurrent(vocab_size=11, cell="gru", width=3, dtype=dtype), text(), variant=True),
    "resnet": Row(lambda dtype: resnet(3, 4, depth=8, width=4, num_groups=2, dtype=dtype), numbers(3, 4, 4, 3), variant=True),
}
