"""Where will a vehicle be in four seconds: a Transformer against an LSTM, a federated fleet against each vehicle alone.

Question: vehicles of three towns learn to predict their own next four seconds from the last three. What does a vehicle gain from
the fleet, does the fleet's model hold in a town that nobody of it has driven in, and does it matter which network it is?

Data: simulated with highway-env (MIT), see ``fedjax_tx/data/sources/fleet.py``: 16 vehicles in each of four towns that
differ in density and style, four trips of a minute each. Trips 1 and 2 train, 3 chooses, 4 is test; one town is unseen.

Method: the error is the distance in metres between where the vehicle is and where it was said to be, 4 seconds ahead and in the
mean over 1, 2, 3 and 4. "Straight on" keeps the present velocity: the number to beat. Federated averaging, 16 vehicles a round,
Adam at the clients, an epoch a round. "Alone": each vehicle trains a model of its own from a start of its own; "then its own"
goes on from the federated model (``ftx.algorithms.fine_tune``, both). Rates, and epochs of the latter two, are the best on trip 3
with the first seed. Both networks have about 26,000 parameters.

Command: pip install -e '.[driving]' && python experiments/fleet.py
Hardware, time and scores: see README.md. It leaves runs, which go on if they were stopped, scores.json and scores.png.
"""

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx.data.sources import fleet

SCALES = (20.0, 2.0, 2.0, 1.0, 1.0, 1.0, 50.0, 5.0, 50.0, 5.0, 50.0, 5.0)
"""About the size of each channel: constants, learned from nobody's data."""


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. models: of transformer and lstm. unseen: the town that is left out. seeds: of the runs.
      rounds, clients_per_round, rates: of federated averaging. own_rates: tried by each vehicle. alone_epochs, own_epochs: tried,
        alone and after federated averaging. vehicles: of each town. seconds: of a trip. batch_size: windows of a local step.
      smoke: a tiny fleet, to see that everything runs.
    """

    run_dir: Path = Path("runs/fleet")
    models: tuple[str, ...] = ("transformer", "lstm")
    unseen: str = "suburb"
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 200
    clients_per_round: int = 16
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    own_rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003)
    alone_epochs: tuple[int, ...] = (3, 10, 30)
    own_epochs: tuple[int, ...] = (1, 5)
    vehicles: int = 16
    seconds: int = 60
    batch_size: int = 16
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "models": ("transformer",), "seeds": (0,), "rounds": 1, "clients_per_round": 2, "rates": (0.003,), "own_rates": (0.003,),
    "alone_epochs": (1,), "own_epochs": (1,), "vehicles": 2, "seconds": 12,
}  # fmt: skip


class Data(NamedTuple):
    """Vehicles of the towns that train, trip by trip, and all trips of the town that is unseen."""

    train: ftx.data.FederatedDataset
    choice: ftx.data.FederatedDataset
    test: ftx.data.FederatedDataset
    unseen: ftx.data.FederatedDataset


def load_data(settings: Settings) -> Data:
    """Simulates the fleet."""
    splits = ftx.data.load("fleet", vehicles=settings.vehicles, seconds=settings.seconds, unseen=[settings.unseen])
    print("\n".join(f"{count:>10,}  {what}" for what, count in splits.report.items()))
    early = splits.train.columns["trip"] < 2
    train, choice = ftx.data.keep_rows(splits.train, early), ftx.data.keep_rows(splits.train, ~early)
    return Data(train, choice, splits.test, splits.unseen)


def make_task(settings: Settings, name: str) -> ftx.Task:
    """Returns the task of one of the networks: squared error in metres; metrics ``error_4s`` and ``error``, distances."""
    channels, outputs = len(fleet.CHANNELS), 2 * len(fleet.HORIZONS)
    if name == "transformer":
        size = (1, 1, 8) if settings.smoke else (2, 4, 32)
        inner = ftx.models.time_series(channels, *size, fleet.HISTORY, num_classes=outputs)
    else:
        inner = ftx.models.recurrent(num_features=channels, num_classes=outputs, width=74, num_layers=1)

    def apply(params, x, *, key=None):
        return inner.apply(params, x / jnp.array(SCALES), key=key).reshape(len(x), -1, 2)

    def metrics(outputs, batch):
        distance = jnp.linalg.norm(outputs["logits"] - batch["y"], axis=-1)
        one = jnp.ones(len(distance))
        return {"error_4s": (distance[:, -1], one), "error": (distance.mean(axis=1), one)}

    return ftx.tasks.regression(ftx.Model(inner.init, apply))._replace(metrics=metrics)


class Study(NamedTuple):
    """A network and its two methods, made once so that all runs share compiled programs."""

    settings: Settings
    data: Data
    together: Any
    alone: Any
    folder: Path

    def run(self, name: str, method: Any, cohorts: Any, rounds: int, epochs: int, rate: float, seed: int, start: Any = None):
        """Returns the run of a method, scored at its end."""
        work = ftx.data.LocalWork(batch_size=self.settings.batch_size, epochs=epochs)
        experiment = ftx.Experiment(method, hyper={"rate": rate}, train=self.data.train, cohorts=cohorts, local=work, seed=seed)
        return ftx.run(
            experiment,
            rounds,
            {name: getattr(self.data, name) for name in ("choice", "test", "unseen")},
            start,
            ftx.Execution(num_lanes=2),
            self.folder / f"{name}_{rate:g}_{epochs}_seed_{seed}",
            evaluate_every=rounds,
            progress=False,
        )


def mean_error(run: Any, part: str, metric: str = "error") -> float:
    """Mean over the windows of a part, in metres."""
    value, weight = run.client_metrics[part][metric]
    return float(np.average(value, weights=weight))


def choose(tried: dict[Any, Any]) -> Any:
    """Returns the key of the run whose error on the third trips is least."""
    return min(tried, key=lambda key: mean_error(tried[key], "choice"))


def study_model(settings: Settings, name: str, data: Data) -> dict[str, Any]:
    """Everything about one network: errors [seed] by method, part and metric."""
    task = make_task(settings, name)

    def together(hyper):
        return ftx.algorithms.fed_avg(task, optax.adam(hyper["rate"]))

    def alone(hyper):
        return ftx.algorithms.fine_tune(task, optax.adam(hyper["rate"]))

    study = Study(settings, data, together, alone, settings.run_dir / name)
    cohorts, everybody = ftx.data.uniform_cohorts(settings.clients_per_round), ftx.data.all_clients()
    chosen: dict[str, Any] = {}
    told: dict[str, Any] = {"chosen": chosen, "tried": {}}

    def best_of(method: str, choices: Sequence, run: Any) -> Any:
        """Runs all choices with the first seed, and after that the best of them alone."""
        tried = {choice: run(*choice) for choice in ([chosen[method]] if method in chosen else choices)}
        if method not in chosen:
            told["tried"][method] = {str(choice): mean_error(one, "choice") for choice, one in tried.items()}
        chosen[method] = choose(tried)
        return tried[chosen[method]]

    for seed in settings.seeds:

        def federated(rate, seed=seed):
            return study.run("federated", together, cohorts, settings.rounds, 1, rate, seed)

        common = best_of("federated", [(rate,) for rate in settings.rates], federated)

        def lone(rate, epochs, seed=seed):
            return study.run("alone", alone, everybody, 1, epochs, rate, seed)

        def own(rate, epochs, seed=seed, start=common.params):
            return study.run("own", alone, everybody, 1, epochs, rate, seed, start)

        runs = {
            "federated": common,
            "alone": best_of("alone", list(itertools.product(settings.own_rates, settings.alone_epochs)), lone),
            "then its own": best_of("then its own", list(itertools.product(settings.own_rates, settings.own_epochs)), own),
        }
        for method, run in runs.items():
            for part, metric in itertools.product(("test", "unseen"), ("error", "error_4s")):
                told.setdefault(f"{method}, {part}, {metric}", []).append(mean_error(run, part, metric))
            told.setdefault(f"{method}, vehicles", []).append(run.client_metrics["test"]["error_4s"][0].tolist())
        print(f"{name}, seed {seed}: 4 s ahead {mean_error(common, 'test', 'error_4s'):.2f} m, federated", flush=True)
    return told


def straight_on(data: ftx.data.FederatedDataset) -> dict[str, float]:
    """Errors of keeping the present velocity."""
    distance = np.linalg.norm(data.columns["y"], axis=-1)
    return {"error": float(distance.mean()), "error_4s": float(distance[:, -1].mean())}


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.2f}"


def table(settings: Settings, data: Data, told: dict[str, dict]) -> str:
    """A Markdown table: metres, on the vehicles' own next trips and in the town that is unseen."""
    lines = [
        f"| network | trained | own next trip, 4 s | own next trip, mean | {settings.unseen}, 4 s | {settings.unseen}, mean |"
    ]
    lines.append(f"|{'---|' * 6}")
    plain = {part: straight_on(getattr(data, part)) for part in ("test", "unseen")}
    numbers = [f"{plain[part][metric]:.2f}" for part in ("test", "unseen") for metric in ("error_4s", "error")]
    lines.append(f"| straight on | | {' | '.join(numbers)} |")
    for name, one in told.items():
        for method in ("federated", "then its own", "alone"):
            # A vehicle that never trained has no model of its own: it is scored with what training began at.
            parts = ("test", "unseen") if method == "federated" else ("test",)
            scores = [spread(one[f"{method}, {part}, {metric}"]) for part in parts for metric in ("error_4s", "error")]
            lines.append(f"| {name} | {method} | {' | '.join(scores + [''] * (4 - len(scores)))} |")
    return "\n".join(lines) + "\n"


def draw(settings: Settings, data: Data, told: dict[str, dict]) -> None:
    """Draws each vehicle's error: that of its own model against that of the fleet's."""
    figure = Figure(figsize=(5 * len(told), 4.6), dpi=120, layout="constrained")
    towns = data.test.client_ids // 1000
    for axes, (name, one) in zip(figure.subplots(1, len(told), squeeze=False)[0], told.items(), strict=True):
        means = {method: np.mean(one[f"{method}, vehicles"], axis=0) for method in ("federated", "then its own", "alone")}
        for number, town in enumerate(fleet.TOWNS):
            of_town = towns == number
            if of_town.any():
                color = f"C{number}"
                axes.plot(means["federated"][of_town], means["alone"][of_town], "o", color=color, label=f"{town}, alone")
                axes.plot(
                    means["federated"][of_town], means["then its own"][of_town], "x", color=color, label=f"{town}, then its own"
                )
        most = 1.05 * max(mean.max() for mean in means.values())
        axes.plot([0, most], [0, most], "k-", linewidth=0.8)
        axes.set(title=name, xlabel="the fleet's model: metres, 4 s ahead", ylabel="the vehicle's own model")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle("A point is a vehicle on its next trip; above the line the fleet's model is better")
    figure.savefig(settings.run_dir / "scores.png")


def main(settings: Settings) -> dict[str, dict]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    data = load_data(settings)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    told = {name: study_model(settings, name, data) for name in settings.models}
    (settings.run_dir / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    draw(settings, data, told)
    print(f"\n{table(settings, data, told)}")
    for name, one in told.items():
        print(f"{name}: chosen {one['chosen']}")
    print(f"{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
