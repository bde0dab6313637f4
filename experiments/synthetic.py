"""Slow clients: is it better to hear what they have, and to hold clients near the server? FedProx's first figure, made again.

Question: 30 devices of whom 10 take part in a round and 0, 50 or 90 % of those can't finish their 20 epochs in time. FedAvg drops
them. FedProx (arXiv 1812.06127, figures 1 and 9) takes what they have (mu = 0), and adds mu / 2 times the squared distance from
the server's parameters to their loss (mu = 1). Does the order of the paper's curves come out?

Data: its Synthetic(1, 1), drawn by ``ftx.data.load("synthetic")`` with three seeds of the generator: 60 features, 10 classes, a
linear model and inputs of each device's own. Nothing is downloaded.

Method: as in the paper and its authors' code: softmax regression, SGD at 0.01 in batches of 10, uniform cohorts, means weighted
by numbers of examples, 200 rounds; a straggler stops after 1 to 19 whole epochs. Who takes part and who straggles is the same
for all methods. No rate is tuned: 0.01 and mu = 1 are the paper's. All draws (data, cohorts, shuffles, parameters) are ours.

Command: python experiments/synthetic.py (23 minutes on 2 busy CPU cores, commit 7d3ecff). It leaves sweeps, which go on if they
were stopped, scores.json and scores.png (``experiments/figures/synthetic.png``). One number a draw of the data, training losses
over all 30 devices; where nobody straggles FedAvg is mu = 0:

    stragglers  method    loss, mean of 200 rounds   loss, last 50 rounds    test accuracy, last 50
    0 %         mu = 0    0.462, 2.236, 0.562        0.221, 2.363, 0.383     0.915, 0.562, 0.863
    0 %         mu = 1    0.479, 0.800, 0.517        0.202, 0.663, 0.326     0.940, 0.768, 0.881
    50 %        FedAvg    0.480, 1.856, 0.526        0.192, 1.758, 0.357     0.931, 0.610, 0.872
    50 %        mu = 0    0.453, 1.902, 0.539        0.216, 1.937, 0.364     0.918, 0.592, 0.866
    50 %        mu = 1    0.481, 0.800, 0.518        0.206, 0.667, 0.326     0.940, 0.768, 0.884
    90 %        FedAvg    1.497, 1.693, 0.992        0.413, 1.508, 0.394     0.866, 0.619, 0.863
    90 %        mu = 0    0.452, 1.566, 0.522        0.208, 1.665, 0.341     0.923, 0.614, 0.876
    90 %        mu = 1    0.485, 0.805, 0.520        0.211, 0.674, 0.327     0.942, 0.758, 0.884

What comes out: mu = 1 is hardly touched by stragglers, and in the last rounds better than FedAvg in the mean of the draws at each
fraction, most where FedAvg does not settle (the second draw), but not in every draw (the first at 50 %). With 90 % stragglers
FedAvg is the worst of the three over the run in all draws, by far in the first hundred rounds. What does not: with 50 %
stragglers, to hear them (mu = 0) is no better than to drop them. Each draw was run once.
"""

import json
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import fedjax_tx as ftx

CURVES = {"loss": "all/loss", "accuracy": "test/accuracy"}


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. data_seeds: of the generator; each names its cohorts and shuffles too.
      stragglers: fractions of a round's clients. mus: of FedProx, 0 among them. rounds, clients_per_round, epochs, batch_size,
      client_rate: the paper's. evaluate_every: rounds. last_rounds: over which scores are averaged. smoke: a few rounds.
    """

    run_dir: Path = Path("runs/synthetic")
    data_seeds: tuple[int, ...] = (0, 1, 2)
    stragglers: tuple[float, ...] = (0.0, 0.5, 0.9)
    mus: tuple[float, ...] = (0.0, 1.0)
    rounds: int = 200
    clients_per_round: int = 10
    epochs: int = 20
    batch_size: int = 10
    client_rate: float = 0.01
    evaluate_every: int = 5
    last_rounds: int = 50
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "data_seeds": (0,),
    "stragglers": (0.0, 0.9),
    "rounds": 2,
    "epochs": 2,
    "evaluate_every": 1,
    "last_rounds": 2,
}


@cache
def make_algorithm(client_rate: float):
    """Returns ``make(hyper)``, FedProx with ``hyper["mu"]``. One object: compiled once."""
    task = ftx.tasks.classification(ftx.models.logistic_regression(60, 10))
    return lambda hyper: ftx.algorithms.fed_prox(task, optax.sgd(client_rate), hyper["mu"])


def make_cohorts(settings: Settings, fraction: float, drop: bool) -> ftx.CohortSource:
    """Returns uniform cohorts of which a fraction stops after some of its epochs but the last, or is dropped."""

    def whole_epochs(generator, count):
        return generator.integers(1, settings.epochs, count) / settings.epochs

    return ftx.data.with_stragglers(ftx.data.uniform_cohorts(settings.clients_per_round), fraction, whole_epochs, drop)


def run(settings: Settings, seed: int, fraction: float, drop: bool) -> dict[str, dict[str, list[float]]]:
    """Returns the curves of FedAvg, which drops stragglers, or of FedProx at every mu, which does not."""
    data = ftx.data.load("synthetic", alpha=1.0, beta=1.0, seed=seed)
    mus = (0.0,) if drop else settings.mus
    swept = ftx.sweep(
        ftx.Experiment(
            make_algorithm(settings.client_rate),
            hyper={"mu": 0.0},
            train=data.train,
            cohorts=make_cohorts(settings, fraction, drop),
            local=ftx.data.LocalWork(batch_size=settings.batch_size, epochs=settings.epochs),
            seed=seed,
        ),
        settings.rounds,
        {"mu": mus},
        {"all": data.train, "test": data.test},
        execution=ftx.Execution(num_lanes=settings.clients_per_round, mesh=None),
        run_dir=settings.run_dir / f"seed_{seed}_stragglers_{fraction:g}{'_dropped' if drop else ''}",
        evaluate_every=settings.evaluate_every,
    )
    names = ["FedAvg"] if drop else [f"FedProx, mu = {mu:g}" for mu in mus]
    return {name: read_curves(history) for name, history in zip(names, swept.history, strict=True)}


def read_curves(history: list[dict]) -> dict[str, list[float]]:
    """Returns the rounds at which all data was evaluated, the loss on all devices' training data and the test accuracy."""
    scored = [line for line in history if "all/loss" in line]
    return {"round": [line["round"] for line in scored]} | {
        name: [line[field] for line in scored] for name, field in CURVES.items()
    }


def study(settings: Settings, seed: int, fraction: float) -> dict[str, dict[str, list[float]]]:
    """Returns the curves of all methods; where nobody straggles, FedAvg is FedProx at mu = 0."""
    proximal = run(settings, seed, fraction, drop=False)
    averaged = run(settings, seed, fraction, drop=True) if fraction else {"FedAvg": proximal["FedProx, mu = 0"]}
    return averaged | proximal


def late_mean(settings: Settings, curves: dict[str, list[float]], name: str, last_rounds: int) -> float:
    """Returns the mean of a curve over the last of the rounds."""
    late = np.array(curves["round"]) > settings.rounds - last_rounds
    return float(np.mean(np.array(curves[name])[late]))


def report(settings: Settings, told: dict[float, list[dict]]) -> None:
    """Prints the table, a row a method and a number a seed, and draws the picture."""
    print(f"\nmeans over the last {settings.last_rounds} rounds, or all; one number a seed of the data\n")
    print("| stragglers | method | training loss, all rounds | training loss | test accuracy |\n|---|---|---|---|---|")
    for fraction, seeds in told.items():
        for method in seeds[0]:
            columns = [("loss", settings.rounds), *((name, settings.last_rounds) for name in CURVES)]
            found = [[late_mean(settings, one[method], name, last) for one in seeds] for name, last in columns]
            cells = [", ".join(f"{value:.3f}" for value in of_seeds) for of_seeds in found]
            print(f"| {fraction:.0%} | {method} | {' | '.join(cells)} |")
    figure = Figure(figsize=(3.6 * len(told), 6), dpi=100, layout="constrained")
    panels = figure.subplots(len(CURVES), len(told), sharex=True, sharey="row", squeeze=False)
    for column, (fraction, seeds) in zip(panels.T, told.items(), strict=True):
        for panel, name in zip(column, CURVES, strict=True):
            for number, method in enumerate(seeds[0]):
                rounds, values = seeds[0][method]["round"], np.array([one[method][name] for one in seeds])
                style = {"color": f"C{number}", "linestyle": "--" if number == 0 else "-"}
                panel.plot(rounds, values.T, **style, linewidth=0.5, alpha=0.4)
                panel.plot(rounds, values.mean(0), **style, linewidth=1.5, label=method)
            panel.grid(alpha=0.3)
        column[0].set(title=f"{fraction:.0%} stragglers", yscale="log")
        column[0].set_yticks([0.2, 0.5, 1, 2, 4], ["0.2", "0.5", "1", "2", "4"])
        column[0].minorticks_off()
        column[-1].set(xlabel="round")
    for row, label in zip(panels, ("training loss, all devices", "test accuracy"), strict=True):
        row[0].set_ylabel(label)
    panels[-1, 0].legend(frameon=False, fontsize=8)
    figure.suptitle("Synthetic(1, 1), 10 of 30 devices a round: mean and each of three draws of the data")
    figure.savefig(settings.run_dir / "scores.png")


def main(settings: Settings) -> dict[float, list[dict]]:
    """Runs the study; returns the curves, for each fraction of stragglers a list over seeds."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    told = {fraction: [study(settings, seed, fraction) for seed in settings.data_seeds] for fraction in settings.stragglers}
    (settings.run_dir / "scores.json").write_text(json.dumps({f"{key:g}": value for key, value in told.items()}) + "\n")
    report(settings, told)
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
