"""Pictures of a run and of a sweep, from their records, and of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fedjax_tx import check
from fedjax_tx.data import FederatedDataset, describe
from fedjax_tx.data.description import Labels

_GROUPS = ("server", "aggregation")
_MOST_CLIENTS, _MOST_NAMES = 200, 40


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
    values = _numbers(rows, name)
    line = axes.plot(rounds, values, label=name.split("/")[0], marker="o" if sparse else "", ms=3)
    low, high = f"{name}/client_p10", f"{name}/client_p90"
    if rows and low in rows[0]:
        band = [_numbers(rows, edge) for edge in (low, high)]
        label = f"{name.split('/')[0]}, 10–90 % of clients"
        axes.fill_between(rounds, *band, alpha=0.15, color=line[0].get_color(), linewidth=0, label=label)


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A metric's values; a file of records has null for what is not finite."""
    return [float("nan") if record[name] is None else record[name] for record in rows]


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


def plot_clients(data: FederatedDataset, path: str | Path, *, labels: str | None = "y", title: str = "") -> Path:
    """Draws who holds what and writes a PNG: each client's shares of the classes as a row of a heat map, beside it its size.

    Clients are in the order of the data set; of more than 200, as many spread evenly over it. ``ftx.data.describe`` says it in
    words.

    Args:
      data: a whole data set with at least one client. path: where the PNG goes. labels: the column of classes, integers; None:
        sizes only. title: above all.

    Errors: ``TypeError``, ``ValueError`` as ``describe`` has them.

    Example:
      >>> import tempfile
      >>> data = FederatedDataset.from_columns({"y": np.array([0, 1, 1, 2])}, [0, 0, 1, 1])
      >>> plot_clients(data, f"{tempfile.mkdtemp()}/clients.png").name
      'clients.png'
    """
    described = describe(data, labels=labels)
    path = _check_path(path)
    check.instance("title", title, str, "a string")
    shown = _spread(data.num_clients, _MOST_CLIENTS)
    widths = [1.6] if labels is None else [2.5, 1.0]
    height = min(max(0.2 * len(shown), 3.5), 8)
    figure = Figure(figsize=(3.5 * sum(widths), height), dpi=120, layout=ConstrainedLayoutEngine(wspace=0.06))
    *left, right = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
    sizes = data.client_sizes[shown]
    right.barh(range(len(shown)), sizes, height=1 if len(shown) > _MOST_NAMES else 0.8)
    right.set(xlabel="examples", ylim=(len(shown) - 0.5, -0.5))
    right.set_title(f"{data.num_clients:,} clients, {data.num_examples:,} examples", fontsize=10)
    if sizes.max() > 20 * max(np.median(sizes), 1):
        right.set_xscale("log")
    if labels is not None and described.labels is not None:
        _draw_shares(left[0], data.select(shown), labels, described.labels)
        right.tick_params(left=False)
    named = _spread(len(shown), _MOST_NAMES)
    first = (*left, right)[0]
    first.set_yticks(named, [str(data.client_ids[shown[place]])[:20] for place in named], fontsize=7)
    first.set_ylabel("client" if len(shown) == data.num_clients else f"{len(shown)} of {data.num_clients:,} clients")
    if title:
        figure.suptitle(title)
    figure.savefig(path)
    return path


def _draw_shares(axes, data: FederatedDataset, labels: str, described: Labels) -> None:
    owner, classes = np.repeat(np.arange(data.num_clients), data.client_sizes), described.classes
    counts = np.zeros((data.num_clients, len(classes)))
    np.add.at(counts, (owner, np.searchsorted(classes, data.columns[labels])), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    root = PowerNorm(0.5, vmin=0)  # small shares are seen beside one that is whole
    image = axes.imshow(shares, aspect="auto", interpolation="nearest", cmap="Blues", norm=root)
    axes.figure.colorbar(image, ax=axes, label="share of the client's examples", pad=0.01)
    named = _spread(len(classes), 31)
    axes.set_xticks(named, [str(classes[place]) for place in named], fontsize=7)
    axes.set_xlabel(f"class ({labels})")
    axes.set_title(f"label skew {described.skew:.2f}, by chance {described.skew_by_chance:.2f}", fontsize=10)


def _spread(total: int, most: int) -> np.ndarray:
    """At most so many of 0 ... total - 1, evenly."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(int))


def _check_path(path: str | Path) -> Path:
    path = Path(check.instance("path", path, (str, Path), "a path"))
    if path.suffix != ".png":
        check.fail_value("path", "to end in .png", str(path))
    return path
