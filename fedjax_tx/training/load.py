"""What a run left in its directory, read back by itself: for plots, and to go on with its parameters elsewhere."""

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_tx import check, tree
from fedjax_tx.training import checkpoint, records
from fedjax_tx.training.directory import read_run_dir
from fedjax_tx.types import PyTree

_SERVER = "[0].server"
_STEP = re.compile(r"\[('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+)\]|\.(\w+)")


class SavedRun(NamedTuple):
    """A run as its directory holds it.

    round: rounds done at the checkpoint. params: the parameters then, NumPy arrays, as ``RunResult.params`` has them; what was a
    tuple or a list is a list. ledger: costs until then. history: a dict for each round, as ``RunResult.history``.
    summary: how it ended; None of one that has not ended yet. best: ``(metric, value, round, params)`` of ``keep_best``, or None.
    """

    round: int
    params: PyTree
    ledger: dict[str, int | float]
    history: list[dict[str, Any]]
    summary: dict[str, Any] | None
    best: tuple[str, float, int, PyTree] | None


def load_run(run_dir: str | Path) -> SavedRun:
    """Reads what ``ftx.run`` left in a directory, without making its experiment again. Changes nothing there.

    Works beside a run that is going on: what is read is its last checkpoint, and its history so far.

    Args:
      run_dir: the directory that was given to ``ftx.run``.

    Errors: ``ValueError`` if it holds no checkpoint, or its last is damaged (the same ``ftx.run`` goes on from the one before).

    Example:
      >>> import fedjax_tx as ftx, numpy as np, optax, tempfile
      >>> train = ftx.data.FederatedDataset.from_columns({"x": np.eye(4, dtype=np.float32), "y": np.arange(4)}, [0, 0, 1, 1])
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 4))
      >>> experiment = ftx.Experiment(
      ...     ftx.algorithms.fed_avg(task, optax.sgd(1.0)), train=train, cohorts=ftx.data.all_clients(),
      ...     local=ftx.data.LocalWork(batch_size=2))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     result = ftx.run(experiment, rounds=3, run_dir=directory, progress=False)
      ...     saved = load_run(directory)
      >>> saved.round, len(saved.history), sorted(saved.params) == sorted(result.params)
      (3, 3, True)
    """
    directory = read_run_dir(run_dir)
    if directory is None:
        check.fail_type("run_dir", "a path", run_dir)
    last = checkpoint.peek(directory / "checkpoints")
    if last is None:
        check.fail_value("run_dir", "to hold a checkpoint of ftx.run", str(directory))
    kept, best = checkpoint.peek(directory / "best"), None
    if kept is not None:
        ((metric, value),) = kept.notes["ledger"].items()
        best = (metric, float(value), int(kept.notes["round"]), _params(kept))
    done = int(last.notes["round"])
    history = records.read_lines(directory / "metrics.jsonl")
    summary = records.read_json(directory / "summary.json")
    return SavedRun(done, _params(last), last.notes["ledger"], history, summary, best)


def _params(saved: checkpoint.Saved) -> PyTree:
    """The server's parameters, trainable and frozen ones as one tree."""
    parts = [_subtree(saved, f"{_SERVER}.{name}") for name in ("params", "frozen")]
    return tree.join(*parts)


def _subtree(saved: checkpoint.Saved, prefix: str) -> PyTree:
    """The arrays whose names begin so, nested as their names say."""
    root: dict[Any, Any] = {}
    for name, array in saved.arrays.items():
        if name == prefix:
            return array
        if name.startswith(prefix):
            *path, last = [ast.literal_eval(key) if key else field for key, field in _STEP.findall(name[len(prefix) :])]
            node = root
            for step in path:
                node = node.setdefault(step, {})
            node[last] = array
    return _with_lists(root)


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    parts = {name: _with_lists(part) for name, part in node.items()}
    return list(parts.values()) if parts and all(isinstance(name, int) for name in parts) else parts
