"""What a device can't hold of a data set, or the task can't use: refused by column and value, before anything compiles.

Columns in memory are looked at when a round or an evaluation is made. Those that are memory-mapped are looked at when they are
read: all of them where they go to the device, or the rows that a call is sent. What slips through all the same, such as a token
that is an input of a classifier, makes the client's loss and update NaN, so that it is left out and named.
"""

from collections.abc import Mapping

import jax
import numpy as np

from fedjax_tx import check
from fedjax_tx.simulation.experiment import Experiment
from fedjax_tx.simulation.lanes import batch_shapes
from fedjax_tx.simulation.round import resolve
from fedjax_tx.types import FederatedAlgorithm


def count_classes(algorithm: FederatedAlgorithm, columns: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns how many classes each column of labels may name: as many as the logits of the algorithm's task have.

    Nothing is computed, only shapes. Empty where the algorithm scores no task, or the task says nothing of labels.
    """
    task = algorithm.evaluation.trainer.task
    if task is None or not task.labels or not set(task.labels) <= set(columns):
        return {}
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = jax.eval_shape(batch_shapes(dict(columns), 1).zeros)
    outputs = jax.eval_shape(task.apply, *params, batch, None)
    return dict.fromkeys(task.labels, outputs["logits"].shape[-1])


def refuse_data(experiment: Experiment) -> None:
    """Raises ``ValueError`` for what ``refuse_values`` finds in the training data, memory-mapped columns read as well."""
    algorithm, columns = resolve(experiment.make_algorithm, experiment.hyper), experiment.train.columns
    refuse_values(columns, count_classes(algorithm, columns))


def refuse_values(columns: Mapping[str, np.ndarray], classes: Mapping[str, int]) -> None:
    """Raises ``ValueError`` for a column of integers that a device's integers can't hold, or for labels of no class.

    Columns of which no value can be wrong by their dtype are not read.
    """
    for name, column in columns.items():
        if column.dtype.kind not in "iu" or not column.size:
            continue
        own, held = np.iinfo(column.dtype), np.iinfo(jax.dtypes.canonicalize_dtype(column.dtype))
        fits = held.min <= own.min and own.max <= held.max
        if fits and name not in classes:
            continue
        low, high = int(column.min()), int(column.max())
        if not held.min <= low <= high <= held.max:
            expected = f"to hold integers that {held.dtype} can, as devices do"
            check.fail_value(f"column {name!r}", expected, low if low < held.min else high)
        if name in classes and not 0 <= low <= high < classes[name]:
            expected = f"to hold classes in 0..{classes[name] - 1}, those of the model's logits"
            check.fail_value(f"column {name!r}", expected, low if low < 0 else high)


def in_memory(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the columns that are not memory-mapped: to look at them reads no file."""
    return {name: column for name, column in columns.items() if not isinstance(column, np.memmap)}
