"""What a promise to every single patient costs four hospitals: DP-SGD on the federation of ``heart.py``.

Question: logistic regression on 13 findings, trained by four hospitals together such that no one, the server and the other
hospitals included, can tell from all that a hospital sends whether a patient's row was in it, up to (epsilon, delta). How much
accuracy does epsilon = 1 or 10 cost, and what is left of the gain over training alone at the same epsilon?

Data: as in heart.py, each hospital's findings on its own scale (of which no noise hides the means and deviations).

Method: DP-SGD at each hospital (``ftx.algorithms.dp_sgd``, arXiv 1607.00133): in every step each patient comes into the batch by
chance. The noise multiplier is the least by which the hospital with fewest patients keeps to epsilon; the others spend less, and
the report says how much. Rates and clipping norms are chosen by the log loss of a fifth of the patients, who are kept out; as
usual that choice is **not** accounted for. Alone: the same on one hospital's patients, with noise for its own number of them.

Command: pip install -e '.[medical,privacy]' && python experiments/heart_private.py
Hardware, time and scores: see README.md. It leaves sweeps, which go on if they were stopped, scores.json and scores.png.
"""

import json
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import heart
import numpy as np
import optax
import tyro
from heart_report import spread
from matplotlib.figure import Figure

import fedjax_tx as ftx

GRID = {"client_lr": (0.03, 0.1, 0.3, 1.0), "clip_norm": (0.3, 1.0, 3.0)}
TUNING_SEED = 1000


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. epsilons: the promises; infinity is clipping without noise. delta: of each.
      rounds, local_steps: how long all train. expected_batch: patients in a batch, on average.
      seeds: how many; they change start, batches and noise. tuning_seeds: to choose by. smoke: a tiny run.
    """

    run_dir: Path = Path("runs/heart_private")
    epsilons: tuple[float, ...] = (1.0, 10.0, math.inf)
    delta: float = 0.001
    rounds: int = 20
    local_steps: int = 5
    expected_batch: int = 16
    seeds: int = 20
    tuning_seeds: int = 5
    smoke: bool = False


SMOKE: dict[str, Any] = {"epsilons": (10.0,), "rounds": 2, "local_steps": 1, "seeds": 2, "tuning_seeds": 1}


def local_work(settings: Settings) -> ftx.data.LocalWork:
    """Drawn batches with room for every patient of the largest hospital, so that none is turned away."""
    return ftx.data.LocalWork(batch_size=200, steps=settings.local_steps, expected_batch=settings.expected_batch)


def spent(settings: Settings, noise: float, patients: int) -> float:
    """Returns the epsilon of a patient in a hospital of so many."""
    return ftx.privacy.epsilon_of_examples(noise, local_work(settings), patients, settings.rounds, settings.delta)


def noise_for(settings: Settings, epsilon: float, fewest: int) -> float:
    """Returns the noise multiplier by which a patient among ``fewest`` is promised epsilon."""
    if math.isinf(epsilon):
        return 0.0
    rate = min(1.0, settings.expected_batch / fewest)
    return ftx.privacy.calibrate_noise(epsilon, rate, settings.rounds * settings.local_steps, settings.delta)


def choose(settings: Settings, experiment: ftx.Experiment, validation: heart.Data, folder: Path) -> dict[str, float]:
    """Returns the rate and clipping norm of the lowest log loss of the validation patients, the mean of some seeds."""
    seeds = [TUNING_SEED + number for number in range(settings.tuning_seeds)]
    swept = ftx.sweep(
        experiment,
        settings.rounds,
        {**GRID, "seed": seeds},
        {"validation": validation},
        execution=heart.side_by_side(experiment, settings.rounds),
        run_dir=folder,
        evaluate_every=settings.rounds,
        settings_at_once=len(GRID["client_lr"]) * len(GRID["clip_norm"]),
        progress=False,
    )
    losses: dict[tuple[float, ...], list[float]] = {}
    for row in swept.rows:
        losses.setdefault(tuple(row[name] for name in GRID), []).append(row["validation/loss"])
    best = min(losses, key=lambda setting: np.mean(np.nan_to_num(losses[setting], nan=np.inf)))
    return dict(zip(GRID, best, strict=True))


def study(settings: Settings, epsilon: float, rows: heart.Data, test: heart.Data, folder: Path) -> dict[str, Any]:
    """Returns noise, epsilon by hospital, what was chosen, and the accuracies of each seed by hospital."""
    task = heart.make_task(heart.Settings(), "logistic")
    train, validation = heart.hold_out(rows)
    noise = noise_for(settings, epsilon, int(train.client_sizes.min()))

    def make(hyper):
        client = optax.sgd(hyper["client_lr"])
        return ftx.algorithms.dp_sgd(task, client, hyper["clip_norm"], hyper["noise"], settings.expected_batch)

    hyper = {"client_lr": GRID["client_lr"][0], "clip_norm": GRID["clip_norm"][0], "noise": noise}
    experiment = ftx.Experiment(
        make, hyper=hyper, train=train, cohorts=ftx.data.all_clients(), local=local_work(settings), seed=0
    )
    chosen = choose(settings, experiment, validation, folder / "choose")
    experiment = replace(experiment, hyper={**hyper, **chosen})
    return {
        "noise": noise,
        "epsilons": {
            name: spent(settings, noise, size) for name, size in zip(train.client_ids, train.client_sizes.tolist(), strict=True)
        },
        "chosen": chosen,
        "scores": heart.run_seeds(experiment, settings.rounds, test, settings.seeds, folder / "seeds"),
    }


def of(one: dict[str, Any], name: str) -> list[float]:
    """The accuracies of each seed, of a hospital or of all test patients."""
    return [scores[name] for scores in one["scores"]]


def report(told: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Prints two tables: accuracies, and what each hospital's patients were promised."""
    hospitals, lines = " | ".join(heart.HOSPITALS), "---|" * len(heart.HOSPITALS)
    print(f"\n| epsilon | way | all | {hospitals} |\n|---|---|---|{lines}")
    for epsilon, ways in told.items():
        together = ways["together"]
        print(f"| {epsilon} | together | {' | '.join(spread(of(together, name)) for name in ('accuracy', *heart.HOSPITALS))} |")
        print(f"| {epsilon} | alone | | {' | '.join(spread(of(ways[name], name)) for name in heart.HOSPITALS)} |")
    print(f"\n| epsilon | noise multiplier | rate | clipping norm | {hospitals} |\n|---|---|---|---|{lines}")
    for epsilon, ways in told.items():
        one = ways["together"]
        promised = " | ".join(f"{one['epsilons'][name]:.2f}" for name in heart.HOSPITALS)
        print(f"| {epsilon} | {one['noise']:.2f} | {one['chosen']['client_lr']} | {one['chosen']['clip_norm']} | {promised} |")


def draw(told: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Draws each hospital's accuracy against epsilon, together and alone."""
    figure = Figure(figsize=(3.2 * len(heart.HOSPITALS), 3.4), dpi=120, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(heart.HOSPITALS), sharey=True), heart.HOSPITALS, strict=True):
        for way, key, style in (("together", "together", "o-"), ("alone", name, "s--")):
            scores = [of(ways[key], name) for ways in told.values()]
            axes.errorbar(range(len(told)), np.mean(scores, 1), np.std(scores, 1), fmt=style, capsize=3, label=way)
        axes.set_xticks(range(len(told)), [f"ε = {epsilon}" for epsilon in told])
        axes.set_title(name)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy on its test patients")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


def main(settings: Settings) -> dict[str, dict[str, dict[str, Any]]]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    splits = ftx.data.load("heart")
    rows, test = (heart.view(part, ("x",)) for part in (splits.train, splits.test))
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for epsilon in settings.epsilons:
        run = partial(study, settings, epsilon)
        folder = settings.run_dir / f"epsilon_{epsilon:g}"
        told[f"{epsilon:g}"] = {"together": run(rows, test, folder / "together")}
        for number, name in enumerate(heart.HOSPITALS):
            told[f"{epsilon:g}"][name] = run(rows.select([number]), test.select([number]), folder / name)
    report(told)
    (settings.run_dir / "scores.json").write_text(json.dumps(told) + "\n")
    draw(told, settings.run_dir / "scores.png")
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
