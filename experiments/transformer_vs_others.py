"""Do Transformers stand up better to uneven data than other models? From iid to one class a client, on images, signals and text.

Question: as clients' labels become more uneven, does a federated Transformer lose less than a convolutional, recurrent or dense
network, once each has the Transformer's number of parameters, and once each has its arithmetic? Does a start from pretrained
weights, or a calibration of the classifier afterwards, change the answer?

Data and models: ``matched.py``. Who wrote or moved what is set aside here: examples are dealt among 20 clients, with shares of
classes drawn from Dir(alpha × all classes' shares) (``ftx.data.partition_dirichlet``), alpha from infinity (iid) to 0 (one class
a client, as far as it goes). A tenth is *public*, a tenth *validation*, a fifth *test*, each an iid draw. *Pretrained* starts are
those of the same model, trained on the public examples alone.

Method: federated averaging, 10 clients a round, one local epoch of Adam in batches of 10. In each cell (data, model, alpha,
start) the rate is the best of ``rates`` by validation loss in one run of all rounds, on a partition of its own; then three seeds,
each with its own partition. *Calibrated* is each of them after CCVR (arXiv 2106.05001). All that was tried is in cells/.

Command: pip install -e '.[vision,sensors,studies]' && python experiments/transformer_vs_others.py
Hardware, time and scores: see README.md. It leaves scores.md and scores.png; a finished cell stays, so a stopped run goes on.
"""

import functools
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
import tyro
from matched import KINDS, Columns, Kind, matched_models
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx.prng import host_generator

TUNING_SEED = 1000
EXECUTION = ftx.Execution(num_lanes=1)  # on each core; models so small gain nothing from clients side by side


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. data: of images, signals and text. alphas: of the partitions. seeds: of the runs.
      rates: of the clients' Adam, tried in each cell. rounds: of a run. clients, clients_per_round, batch_size: of all.
      pretraining_epochs: over the public examples. examples: at most so many of each data set.
      smoke: a tiny study, to see that everything runs.
    """

    run_dir: Path = Path("runs/transformer_vs_others")
    data: tuple[str, ...] = ("images", "signals", "text")
    alphas: tuple[float, ...] = (float("inf"), 1.0, 0.1, 0.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
    rounds: int = 60
    clients: int = 20
    clients_per_round: int = 10
    batch_size: int = 10
    pretraining_epochs: int = 30
    examples: int = 3000
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "data": ("images",), "alphas": (float("inf"), 0.0), "seeds": (0, 1), "rates": (0.003,), "rounds": 1, "clients": 4,
    "clients_per_round": 2, "pretraining_epochs": 1, "examples": 160,
}  # fmt: skip


class Parts(NamedTuple):
    """The examples, dealt once: those of clients, and the others as data sets of one client."""

    train: Columns
    public: ftx.data.FederatedDataset
    validation: ftx.data.FederatedDataset
    test: ftx.data.FederatedDataset


def deal(columns: Columns, most: int) -> Parts:
    """Draws the examples of each part, the same for all models."""
    order = host_generator(0, "parts").permutation(len(columns["y"]))[:most]
    ends = (np.array([0.1, 0.2, 0.4]) * len(order)).astype(int)
    public, validation, test, train = ({name: column[rows] for name, column in columns.items()} for rows in np.split(order, ends))

    def pooled(part: Columns) -> ftx.data.FederatedDataset:
        return ftx.data.FederatedDataset.from_columns(part, np.zeros(len(part["y"]), int))

    return Parts(train, pooled(public), pooled(validation), pooled(test))


def federate(settings: Settings, parts: Parts, alpha: float, seed: int) -> ftx.data.FederatedDataset:
    """Deals the clients' examples among them; all have as many, to one."""
    owners = ftx.data.partition_dirichlet(parts.train["y"], settings.clients, alpha, seed=seed)
    return ftx.data.FederatedDataset.from_columns(parts.train, owners)


class Subject(NamedTuple):
    """A model under study: its task, and its algorithms, made once so that all cells share their compiled programs."""

    parts: Parts
    make_algorithm: Callable[[Any], ftx.FederatedAlgorithm]
    calibration: ftx.FederatedAlgorithm


def make_subject(kind: Kind, parts: Parts, model: ftx.Model) -> Subject:
    """Returns a model with its algorithms."""
    task = ftx.tasks.classification(model, inputs=kind.inputs)

    def make_algorithm(hyper):
        return ftx.algorithms.fed_avg(task, optax.adam(hyper["rate"]))

    calibration = ftx.algorithms.ccvr(task, ftx.models.features(model), optax.adam(0.001), inputs=kind.inputs)
    return Subject(parts, make_algorithm, calibration)


def train(
    settings: Settings, subject: Subject, train: ftx.data.FederatedDataset, rate: float, seed: int, rounds: int, start: Any
):
    """Returns the run, scored at its end."""
    pooled = train.num_clients == 1
    experiment = ftx.Experiment(
        subject.make_algorithm,
        hyper={"rate": rate},
        train=train,
        cohorts=ftx.data.all_clients() if pooled else ftx.data.uniform_cohorts(settings.clients_per_round),
        local=ftx.data.LocalWork(batch_size=settings.batch_size, epochs=settings.pretraining_epochs if pooled else 1),
        seed=seed,
    )
    scored = {"validation": subject.parts.validation, "test": subject.parts.test}
    return experiment, ftx.run(experiment, rounds, scored, start, EXECUTION, evaluate_every=rounds, progress=False)


def pretrain(settings: Settings, subject: Subject) -> Any:
    """Returns the model trained on the public examples alone, at the best rate."""
    runs = [train(settings, subject, subject.parts.public, rate, TUNING_SEED, 1, None)[1] for rate in settings.rates]
    return min(runs, key=lambda run: run.history[-1]["validation/loss"]).params


def calibrate(settings: Settings, subject: Subject, experiment: ftx.Experiment, params: Any) -> float:
    """Returns the test accuracy after the classifier was calibrated on what clients tell of their features."""
    whole = replace(experiment, make_algorithm=subject.calibration, hyper={}, cohorts=ftx.data.all_clients())
    run = ftx.run(whole, 1, {"test": subject.parts.test}, params, EXECUTION, evaluate_every=1, progress=False)
    return run.history[-1]["test/accuracy"]


def study_cell(settings: Settings, subject: Subject, alpha: float, start: Any) -> dict[str, Any]:
    """Chooses the rate, trains with each seed, calibrates; returns all that was seen."""
    tuning = federate(settings, subject.parts, alpha, TUNING_SEED)
    tried = {
        rate: train(settings, subject, tuning, rate, TUNING_SEED, settings.rounds, start)[1].history[-1]["validation/loss"]
        for rate in settings.rates
    }
    best = min(tried, key=lambda rate: tried[rate])
    accuracies, calibrated = [], []
    for seed in settings.seeds:
        experiment, run = train(
            settings, subject, federate(settings, subject.parts, alpha, seed), best, seed, settings.rounds, start
        )
        accuracies.append(run.history[-1]["test/accuracy"])
        calibrated.append(calibrate(settings, subject, experiment, run.params))
    return {
        "rate": best,
        "tried": {f"{rate:g}": loss for rate, loss in tried.items()},
        "plain": accuracies,
        "calibrated": calibrated,
    }


def cells(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yields every cell, computed or read."""
    for data in settings.data:
        kind = KINDS[data]()
        parts = deal(kind.columns, settings.examples)
        for name, (model, costs) in matched_models(kind).items():
            subject = make_subject(kind, parts, model)
            pretrained = functools.cache(functools.partial(pretrain, settings, subject))
            for start, alpha in itertools.product(("scratch", "pretrained"), settings.alphas):
                names = {"data": data, "model": name, "alpha": f"{alpha:g}", "start": start}

                def compute(alpha=alpha, start=start, subject=subject, pretrained=pretrained):
                    return study_cell(settings, subject, alpha, pretrained() if start == "pretrained" else None)

                yield kept_cell(settings, {**names, **costs._asdict()}, compute)


def kept_cell(settings: Settings, names: dict[str, Any], compute: Callable[[], dict]) -> dict[str, Any]:
    """Returns a cell from its file, or computes and writes it."""
    own = {name: value for name, value in vars(settings).items() if name not in ("run_dir", "data", "alphas")}
    named = {**names, "settings": json.loads(json.dumps(own))}
    path = settings.run_dir / "cells" / re.sub(r"[^\w.]+", "_", "{data} {model} {alpha} {start}.json".format(**names))
    known = json.loads(path.read_text()) if path.exists() else {}
    if all(known.get(name) == value for name, value in named.items()):
        return known
    began = time.perf_counter()
    cell = {**named, **compute(), "seconds": time.perf_counter() - began}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(json.dumps(cell, indent=2) + "\n")
    path.with_suffix(".new").rename(path)
    scores = f"{spread(cell['plain'])}, calibrated {spread(cell['calibrated'])}"
    print("{data:8} {model:22} alpha {alpha:4} {start:11}".format(**names), scores, flush=True)
    return cell


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.3f}"


def table(settings: Settings, found: list[dict]) -> str:
    """A Markdown table: a row for each model and start, test accuracy by alpha, plain and calibrated."""
    alphas = [f"{alpha:g}" for alpha in settings.alphas]
    heads = [f"alpha {alpha}" for alpha in alphas] + [f"alpha {alpha}, calibrated" for alpha in alphas]
    lines = [f"| data | model | parameters | MFLOPs | start | {' | '.join(heads)} |", f"|{'---|' * (5 + len(heads))}"]
    rows: dict[tuple, dict[str, dict]] = {}
    for cell in found:
        rows.setdefault((cell["data"], cell["model"], cell["start"]), {})[cell["alpha"]] = cell
    for (data, model, start), by_alpha in rows.items():
        first = by_alpha[alphas[0]]
        scores = [spread(by_alpha[alpha][what]) for what in ("plain", "calibrated") for alpha in alphas]
        size = f"{first['num_parameters']:,} | {first['forward_flops'] / 1e6:.2f}"
        lines.append(f"| {data} | {model} | {size} | {start} | {' | '.join(scores)} |")
    return "\n".join(lines) + "\n"


def draw(settings: Settings, found: list[dict]) -> None:
    """Draws test accuracy against alpha: a row for each start, a column for each kind of data, a line for each model."""
    alphas = [f"{alpha:g}" for alpha in settings.alphas]
    starts = ("scratch", "pretrained")
    figure = Figure(figsize=(5 * len(settings.data), 8), dpi=120, layout="constrained")
    grid = figure.subplots(len(starts), len(settings.data), squeeze=False, sharey="col")
    for column, data in enumerate(settings.data):
        names = list(dict.fromkeys(cell["model"] for cell in found if cell["data"] == data))
        for row, start in enumerate(starts):
            axes = grid[row][column]
            for number, name in enumerate(names):
                of_model = {
                    cell["alpha"]: cell for cell in found if (cell["data"], cell["model"], cell["start"]) == (data, name, start)
                }
                for what, style in (("plain", "-"), ("calibrated", ":")):
                    means = [np.mean(of_model[alpha][what]) for alpha in alphas]
                    label = name if what == "plain" else None
                    axes.plot(
                        range(len(alphas)), means, style, color=f"C{number}", label=label, linewidth=2 if number == 0 else 1
                    )
                points = [(place, value) for place, alpha in enumerate(alphas) for value in of_model[alpha]["plain"]]
                axes.plot(*zip(*points, strict=True), "o", color=f"C{number}", fillstyle="none", markersize=4)
            axes.set_xticks(range(len(alphas)), ["iid" if alpha == "inf" else f"α {alpha}" for alpha in alphas])
            axes.set(title=f"{data}, {start}", ylabel="test accuracy")
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle("From iid to one class a client\ndotted: the classifier calibrated afterwards; a ring is a seed")
    figure.savefig(settings.run_dir / "scores.png")


def main(settings: Settings) -> list[dict]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    found = list(cells(settings))
    told = table(settings, found)
    (settings.run_dir / "scores.md").write_text(told)
    draw(settings, found)
    print(f"\n{told}\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return found


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
