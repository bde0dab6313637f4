"""Pictures of a run and of a sweep, from their records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedjax_tx import check

_GROUPS = ("server", "aggregation")


def plot_curves(history: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> Path:
    """Draws every metric of a run against rounds, a panel for each metric, and writes a PNG.

    Evaluation sets come with a band from the 10th to the 90th percentile of the clients' own means.

    Args:
      history: ``result.history``, or the lines of ``metrics.jsonl``. path: where the PNG goes. title: above all panels.

    Errors: ``ValueError`` if no record holds a metric.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> plot_curves([{"round": 1, "train/loss": 2.0}, {"round": 2, "train/loss": 1.0}], f"{folder}/curves.png").name
      'curves.png'
    """
    check.instance("history", history, (list, tuple), "a list of records")
    for number, record in enumerate(history):
        check.mapping(f"history[{number}]", record)
    path = _check_path(path)
    check.instance("title", title, str, "a string")
    names = dict.fromkeys(name for record in history for name in record if name.count("/") == 1)
    metrics: dict[str, list[str]] = {}
    for name in names:
        group, metric = name.split("/")
        if group not in _GROUPS:
            metrics.setdefault(metric, []).append(name)
    if not metrics:
        check.fail_value("history", "to hold a metric such as 'train/loss'", sorted(names))
    figure = Figure(figsize=(5.5 * len(metrics), 4), dpi=120, layout="constrained")
    for axes, (metric, series) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True):
        for name in series:
            _draw(axes, history, name)
        axes.set(xlabel="round", ylabel=metric)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    if title:
        figure.suptitle(title)
    figure.savefig(path)
    return path


def _draw(axes, history, name: str) -> None:
    rows = [record for record in history if name in record]
    rounds = [record["round"] for record in rows]
    sparse = len(rows) < len(history)
    line = axes.plot(rounds, [record[name] for record in rows], label=name.split("/")[0], marker="o" if sparse else "", ms=3)
    low, high = f"{name}/client_p10", f"{name}/client_p90"
    if rows and low in rows[0]:
        band = [[record[edge] for record in rows] for edge in (low, high)]
        label = f"{name.split('/')[0]}, 10–90 % of clients"
        axes.fill_between(rounds, *band, alpha=0.15, color=line[0].get_color(), linewidth=0, label=label)


def plot_heatmap(table: Any, path: str | Path, x: str, y: str, metric: str, title: str = "") -> Path:
    """Draws a metric of a sweep over two of its hyperparameters and writes a PNG.

    A cell shows the mean over all settings that have its two values (over the seeds, for one); nan if one of them diverged.

    Args:
      table: ``result.table`` of a sweep, or any columns by name. path: where the PNG goes. x, y, metric: names of columns.

    Errors: ``ValueError`` for a name that is no column.

    Example:
      >>> import tempfile
      >>> columns = {"client_lr": [0.1, 0.1, 1.0, 1.0], "mu": [0, 1, 0, 1], "test/loss": [2.0, 2.5, 1.0, 1.5]}
      >>> plot_heatmap(columns, f"{tempfile.mkdtemp()}/heat.png", "client_lr", "mu", "test/loss").name
      'heat.png'
    """
    if not (hasattr(table, "keys") and hasattr(table, "__getitem__")):
        check.fail_type("table", "a pandas DataFrame, or a dict of columns", table)
    path = _check_path(path)
    columns = {}
    for argument, name in {"x": x, "y": y, "metric": metric}.items():
        check.one_of(argument, name, list(table.keys()))
        columns[argument] = np.asarray(table[name])
    check.instance("title", title, str, "a string")
    across, up = np.unique(columns["x"]), np.unique(columns["y"])
    means = np.full((len(up), len(across)), np.nan)
    for row, column in np.ndindex(means.shape):
        here = columns["metric"][(columns["x"] == across[column]) & (columns["y"] == up[row])]
        means[row, column] = here.mean() if here.size else np.nan
    _draw_cells(means, across, up, (x, y, metric), title).savefig(path)
    return path


def _draw_cells(means: np.ndarray, across: np.ndarray, up: np.ndarray, names: tuple[str, str, str], title: str) -> Figure:
    figure = Figure(figsize=(2.5 + 0.8 * len(across), 1.8 + 0.6 * len(up)), dpi=120, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(means, origin="lower", aspect="auto")
    middle = np.nanmean(image.get_clim())
    for row, column in np.ndindex(means.shape):
        dark = means[row, column] < middle
        axes.text(column, row, f"{means[row, column]:.3g}", ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
    axes.set_yticks(range(len(up)), [f"{value:g}" for value in up])
    axes.set(xlabel=names[0], ylabel=names[1], title=title)
    figure.colorbar(image, label=names[2])
    return figure


def _check_path(path: str | Path) -> Path:
    path = Path(check.instance("path", path, (str, Path), "a path"))
    if path.suffix != ".png":
        check.fail_value("path", "to end in .png", str(path))
    return path
