"""Every model, with inputs to run it on: the rows of ``test_model_properties.py``.

To add a model: its name, a function of (dtype) that makes a small one, and inputs of three examples. Where the inputs hold
``valid`` [batch, time], the laws of padding are tested too: outputs [batch, time, ...] count at valid positions only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_tx.models import decoder, encoder, tabular, time_series, vit
from fedjax_tx.types import Model

LAYERS = {"num_layers": 1, "num_heads": 2, "width": 8}
SIZES = {**LAYERS, "vocab_size": 11, "max_length": 8}
VALID = np.arange(6) < np.array([[6], [3], [1]])


class Row(NamedTuple):
    """A model's maker, and inputs for it.

    ``longer``: whether the inputs may be padded to more positions than they have. ``variant``: of another row's model, or one
    whose laws a file of its own tests too: its tests are slow ones, as each row compiles for several seconds.
    """

    make: Callable[[Any], Model]
    inputs: Any
    longer: bool = True
    variant: bool = False


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
}
