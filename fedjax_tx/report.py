"""Pictures of a run, from its records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    path = Path(check.instance("path", path, (str, Path), "a path"))
    if path.suffix != ".png":
        check.fail_value("path", "to end in .png", str(path))
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
