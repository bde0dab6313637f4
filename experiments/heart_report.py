"""Tables and figure of the study of heart disease (experiments/heart.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedjax_tx.data.sources import heart

HOSPITALS = tuple(heart.HOSPITALS)
SCORES = ("accuracy", "loss", "calibration_error")

# Published: mean and standard deviation of the accuracy on the pooled test over the five seeds of the authors' result files.
PUBLISHED = {
    "fed_avg": (0.748, 0.027),
    "fed_prox": (0.748, 0.027),
    "fed_adam": (0.779, 0.015),
    "fed_yogi": (0.779, 0.015),
    "fed_adagrad": (0.779, 0.015),
    "pooled": (0.795, 0.003),
}


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.{digits}f}"


def report_published(told: dict[str, list[dict[str, float]]], ill: dict[str, float]) -> None:
    """Prints the first table: ours beside the published scores; ``ill``: the share of test patients who are."""
    print(f"\n| training | pooled test, published | pooled test | {' | '.join(HOSPITALS)} |\n|{'---|' * (3 + len(HOSPITALS))}")
    for name, rows in told.items():
        there = "{:.3f} ± {:.3f}".format(*PUBLISHED[name]) if name in PUBLISHED else ""
        cells = [spread([row[one] for row in rows]) for one in ("pooled", *HOSPITALS)]
        cells[0] = cells[0] if name in PUBLISHED else ""  # hospitals alone have no model of all
        print(f"| {name} | {there} | {' | '.join(cells)} |")
    print(f"| always ill | | {' | '.join(f'{ill[one]:.3f}' for one in ('pooled', *HOSPITALS))} |")


def report_compared(told: dict[str, dict[str, Any]]) -> None:
    """Prints the tables of the second part: scores, then what each hospital gains over training alone, seed by seed."""
    print("\n| model | training | rates; rounds | accuracy | log loss | calibration error |\n|---|---|---|---|---|---|")
    for model, ways in told.items():
        for way, one in ways.items():
            chosen = one["chosen"]
            what = f"{', '.join(f'{rate:g}' for rate in chosen['rates'].values())}; {chosen['rounds']}"
            name = "alone" if way == "alone" else f"federated, {way} scale"
            print(f"| {model} | {name} | {what} | {' | '.join(scores(one['plain']))} |")
            if "calibrated" in one:
                what = f"T = {spread(one['temperature'], 2)}"
                print(f"| {model} | {name}, with temperature | {what} | {' | '.join(scores(one['calibrated']))} |")
    print(f"\n| model | training | {' | '.join(HOSPITALS)} |\n|{'---|' * (2 + len(HOSPITALS))}")
    for model, ways in told.items():
        print(f"| {model} | alone | {' | '.join(spread([row[name] for row in ways['alone']['plain']]) for name in HOSPITALS)} |")
        for way in list(ways)[1:]:
            print(f"| {model} | gain, {way} scale | {' | '.join(spread(gains(ways, way, name)) for name in HOSPITALS)} |")


def scores(rows: list[dict[str, float]]) -> list[str]:
    """The scores of all test patients."""
    return [spread([row[score] for row in rows]) for score in SCORES]


def gains(ways: dict[str, Any], way: str, hospital: str) -> list[float]:
    """Accuracy of the federated model less that of the hospital's own, by seed."""
    return [there[hospital] - here[hospital] for there, here in zip(ways[way]["plain"], ways["alone"]["plain"], strict=True)]


def draw(
    published: dict[str, list[dict[str, float]]], compared: dict[str, dict[str, Any]], sizes: Sequence[int], path: Path
) -> None:
    """Draws the three comparisons; ``sizes``: test patients of each hospital."""
    figure = Figure(figsize=(14, 4.2), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
    names = [name for name in PUBLISHED if name in published]
    places = np.arange(len(names))
    means, deviations = np.transpose([PUBLISHED[name] for name in names])
    found = np.array([[row["pooled"] for row in published[name]] for name in names])
    jitter = np.random.default_rng(0).uniform(0.1, 0.3, found.shape)
    left.errorbar(places - 0.2, means, deviations, fmt="ks", capsize=4, label="published: mean ± deviation of 5 seeds")
    left.plot((places[:, None] + jitter).ravel(), found.ravel(), "o", color="C0", alpha=0.3, label="ours: a seed")
    left.plot(places + 0.2, found.mean(1), "_", color="C3", markersize=20, markeredgewidth=2, label="ours: mean")
    left.set_xticks(places, [name.replace("_", "\n") for name in names])
    left.set(ylabel="accuracy on the pooled test", title="The published benchmark")
    markers = {"alone": "x", "own": "o", "common": "s"}
    for number, (model, ways) in enumerate(compared.items()):
        for way, one in ways.items():
            shift = 0.2 * number + (0.08 if way == "common" else 0) - 0.14
            style = {"fmt": markers[way], "color": f"C{number}", "capsize": 3, "markersize": 5}
            label = f"{model}, alone" if way == "alone" else f"{model}, {way} scale"
            if way != "alone":
                gained = [gains(ways, way, name) for name in HOSPITALS]
                at = np.arange(len(HOSPITALS)) + shift
                middle.errorbar(at, np.mean(gained, axis=1), np.std(gained, axis=1), label=label, **style)
            losses = [[row["loss"] for row in one[kind]] for kind in ("plain", "calibrated") if kind in one]
            at = np.array([0] if way == "alone" else [1, 2]) + shift
            right.errorbar(at, np.mean(losses, axis=1), np.std(losses, axis=1), label=label, **style)
    middle.axhline(0, color="grey", linewidth=0.8)
    middle.set_xticks(range(len(sizes)), [f"{name}\n{size} patients" for name, size in zip(HOSPITALS, sizes, strict=True)])
    middle.set(ylabel="accuracy: federated less alone", title="What a hospital gains, ± deviation over seeds")
    right.set_xticks(range(3), ["alone", "federated", "federated,\ntemperature"])
    right.set(ylabel="log loss of all test patients", title="Are the probabilities right?")
    right.set_xlim(-0.5, 2.5)
    for axes, place in ((left, "lower right"), (middle, "upper left"), (right, "upper right")):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, loc=place)
    figure.savefig(path)


def differences(folder: Path) -> list[str]:
    """Returns in words where the package's rows differ from those of UCI's files; an empty list where they agree."""
    theirs, ours = heart.read_folder(folder), heart.read_package()
    if len(theirs) != len(ours):
        return [f"{len(ours)} rows against {len(theirs)}"]
    same = (theirs == ours) | (theirs.isna() & ours.isna())
    return [
        f"row {row}, {name}: {ours.at[row, name]} against {theirs.at[row, name]}"
        for row, name in zip(*np.where(~same), strict=True)
    ]
