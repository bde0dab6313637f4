"""How much sooner is a sweep as one program than the same program reused setting by setting?

Question: 16 learning rates of one experiment, side by side (``ftx.sweep``) against one after another (the round function of one
run, compiled once, its learning rate traced): seconds for the whole sweep the first time, with compilation, and in the steady
state. Work C is all overhead: 1,000 of 100,000 clients a round, log-normal sizes (median 16, sigma 1, clip 1..200), logistic
regression of 60 features to 10 classes, batch 10, one epoch. Work A is all arithmetic: the decoder of ``round_speed.py`` and its
512 clients, but 8 of them a round. Both sides run on the same number of lanes, and their last training losses agree.

Command: python experiments/benchmarks/sweep_speed.py
Time: about 10 minutes on 2 CPU cores. Score: the table it prints.
"""

import dataclasses
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import round_speed
import tyro

import fedjax_tx as ftx


@dataclass(frozen=True)
class Settings:
    """What is measured.

    works: which. num_settings: learning rates, from 0.01 to 0.1. at_once: how many side by side (of several, only the first
    shows its whole compilation: the others find parts of it done). repeats: turns; the median is
    shown, and the lowest and highest. rounds_c, rounds_a: rounds of a sweep. lanes_c, lanes_a: lanes of each run.
    out: a JSON file for the figures.
    """

    works: tuple[Literal["C", "A"], ...] = ("C", "A")
    num_settings: int = 16
    at_once: tuple[int | Literal["auto"], ...] = ("auto",)
    repeats: int = 7
    smoke: bool = False
    out: Path | None = None
    rounds_c: int = 10
    rounds_a: int = 1
    lanes_c: int | Literal["auto"] = "auto"
    lanes_a: int | Literal["auto"] = "auto"
    clients_c: int = 100_000
    cohort_c: int = 1_000
    cohort_a: int = 8


SMOKE = Settings(num_settings=2, repeats=2, smoke=True, rounds_c=2, lanes_c=2, lanes_a=1, clients_c=50, cohort_c=5, cohort_a=2)


def make_work_c(settings: Settings) -> ftx.Experiment:
    """Many tiny clients and a logistic regression."""
    generator = np.random.default_rng(0)
    sizes = np.exp(np.log(16) + generator.standard_normal(settings.clients_c)).round().clip(1, 200).astype(int)
    x = generator.standard_normal((sizes.sum(), 60), dtype=np.float32)
    y = generator.integers(0, 10, sizes.sum(), dtype=np.int32)
    offsets, ids = np.append(0, np.cumsum(sizes)), np.arange(settings.clients_c)
    data = ftx.data.FederatedDataset.from_offsets({"x": x, "y": y}, offsets, ids)

    def init(key):
        return {"w": 0.01 * jax.random.normal(key, (60, 10)), "b": jax.numpy.zeros(10)}

    model = ftx.Model(init, lambda params, x, *, key=None: x @ params["w"] + params["b"])
    return make_experiment(ftx.tasks.classification(model), data, settings.clients_c, settings.cohort_c, 10)


def make_work_a(settings: Settings) -> ftx.Experiment:
    """Few clients and a decoder."""
    model = {"vocab_size": 96, "num_layers": 1, "num_heads": 2, "width": 16, "max_length": 16}
    work = round_speed.Settings(clients=16, model=model) if settings.smoke else round_speed.Settings()
    task = ftx.tasks.next_token(ftx.models.decoder(**work.model))
    return make_experiment(task, round_speed.make_data(work), work.clients, settings.cohort_a, work.batch_size)


def make_experiment(task: ftx.Task, data, num_clients: int, cohort: int, batch_size: int) -> ftx.Experiment:
    """FedAvg with plain SGD on fixed cohorts, in stored order."""
    generator = np.random.default_rng(1)
    return ftx.Experiment(
        lambda hyper: ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(hyper["client_lr"])),
        hyper={"client_lr": 0.1},
        train=data,
        cohorts=ftx.data.fixed_cohorts([generator.choice(num_clients, cohort, replace=False) for _ in range(64)]),
        local=ftx.data.LocalWork(batch_size=batch_size, shuffle=False),
    )


def run_one_by_one(round_fn: ftx.simulation.RoundFunction, rates: list[float], rounds: int) -> np.ndarray:
    """Reuses the program of one run for each rate; returns the last training losses."""
    losses = []
    for rate in rates:
        experiment = dataclasses.replace(round_fn.experiment, hyper={"client_lr": rate})
        one = dataclasses.replace(round_fn, experiment=experiment)
        state = one.init()
        while state.round < rounds:
            state, infos = one.run(state, min(one.rounds_per_call, rounds - state.round))
        losses.append(infos[-1].metrics["loss"])
    return np.array(losses)


def measure(settings: Settings, experiment: ftx.Experiment, lanes, rounds: int) -> dict[str, Any]:
    """Seconds of both ways, turn by turn; turn -1 compiles."""
    rates = np.geomspace(0.01, 0.1, settings.num_settings).tolist()
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=lanes))
    execution = ftx.Execution(num_lanes=round_fn.num_lanes)
    jax.clear_caches()  # the search for lanes has compiled what is timed below

    def sweep(at_once) -> np.ndarray:
        result = ftx.sweep(
            experiment,
            rounds,
            {"client_lr": rates},
            execution=execution,
            evaluate_every=rounds,
            settings_at_once=at_once,
            progress=False,
        )
        return np.array([history[-1]["train/loss"] for history in result.history])

    ways: dict[str, Callable[[], np.ndarray]] = {"one by one": partial(run_one_by_one, round_fn, rates, rounds)}
    ways |= {str(at_once): partial(sweep, at_once) for at_once in settings.at_once}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(-1, settings.repeats):
        losses = {}
        for name, way in ways.items():
            began = time.perf_counter()
            losses[name] = way()
            seconds[name].append(time.perf_counter() - began)
        for name, found in losses.items():
            np.testing.assert_allclose(found, losses["one by one"], rtol=1e-3, err_msg=name)
    return {"lanes": round_fn.num_lanes, "rounds": rounds, "seconds": seconds}


def report(figures: dict[str, Any]) -> None:
    """Prints a Markdown table."""
    print(f"\n{platform.machine()}, {jax.device_count()} {jax.devices()[0].platform} device(s)\n")
    print("| work | lanes | settings side by side | s (min–max) | × sooner (min–max) | s with compilation | × sooner with it |")
    print("|---|---|---|---|---|---|---|")
    for work, found in figures.items():
        base = np.array(found["seconds"]["one by one"])
        for name, values in found["seconds"].items():
            steady, ratio = np.array(values[1:]), base[1:] / np.array(values[1:])
            print(
                f"| {work} | {found['lanes']} | {name} | {np.median(steady):.2f} ({steady.min():.2f}–{steady.max():.2f}) "
                f"| {np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f}) | {values[0]:.2f} | {base[0] / values[0]:.2f} |"
            )


def main(settings: Settings) -> dict[str, Any]:
    """Measures and prints the table."""
    if settings.smoke:
        settings = dataclasses.replace(SMOKE, works=settings.works, out=settings.out)
    figures: dict[str, Any] = {}
    for work in settings.works:
        if work == "C":
            figures[work] = measure(settings, make_work_c(settings), settings.lanes_c, settings.rounds_c)
        else:
            figures[work] = measure(settings, make_work_a(settings), settings.lanes_a, settings.rounds_a)
    report(figures)
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
