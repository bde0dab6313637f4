"""A million clients: how long does a data set take to open, how much memory, and what does a cohort of it cost the host?

Question: a study samples 1,000 clients a round from 10,000, 100,000 or 1,000,000. Does anything that happens in every round grow
with the population? Clients as in work C (log-normal sizes, median 16, sigma 1, clipped to 1..200; 60 features, here of 8 bits;
10 classes; logistic regression, batch 10, 1 epoch, shuffled): a million hold 26 million examples, 1.6 GB.

Each population is saved, and opened memory-mapped in two processes of their own: one opens it, schedules one cohort and tells its
memory; the other trains, with the data on the device, and times sampling and scheduling against the rounds that they feed.

Command: python experiments/benchmarks/million_clients.py
Time: about 2 minutes on 2 CPU cores; 1.8 GB of disk for the while. Score: the table it prints.
"""

import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from constant_memory import peak_bytes

import fedjax_tx as ftx
from fedjax_tx.data.cohort import as_cohort
from fedjax_tx.data.schedule import make_schedule, plan_capacity

CLASSES = 10


@dataclass(frozen=True)
class Settings:
    """What is measured.

    populations: how many clients the data sets have. lanes: of the rounds. repeats: rounds; the median is shown, and the lowest
    and highest. out: a JSON file for the figures.
    """

    populations: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    clients_per_round: int = 1_000
    lanes: int = 128
    repeats: int = 15
    smoke: bool = False
    out: Path | None = None
    features: int = 60
    batch_size: int = 10


def save_population(clients: int, features: int, directory: Path) -> None:
    """Writes a data set of random examples."""
    generator = np.random.default_rng(0)
    sizes = np.exp(np.log(16) + generator.standard_normal(clients)).round().clip(1, 200).astype(int)
    rows = int(sizes.sum())
    columns = {
        "x": generator.integers(-128, 128, (rows, features), np.int8),
        "y": generator.integers(0, CLASSES, rows, dtype=np.int32),
    }
    ftx.data.FederatedDataset.from_offsets(columns, np.append(0, np.cumsum(sizes))).save(directory)


def open_and_schedule(settings: Settings, directory: Path) -> dict[str, float]:
    """Opens a data set and schedules one cohort; returns how long opening took and this process's peak memory."""
    began = time.perf_counter()
    data = ftx.data.FederatedDataset.open(directory)
    opened = time.perf_counter() - began
    work = ftx.data.LocalWork(batch_size=settings.batch_size)
    source = ftx.data.uniform_cohorts(settings.clients_per_round)
    ids, _ = source.select(source.init(data.num_clients), np.random.default_rng(0), None)
    capacity = plan_capacity(data.client_sizes, work, ids.size, settings.lanes)
    make_schedule(as_cohort(ids, data.num_clients, ids.size), data.offsets, work, capacity, 0, 0)
    return {"open": opened, "peak": peak_bytes()}


def make_experiment(settings, data: ftx.data.FederatedDataset, cohorts: ftx.CohortSource, shuffle: bool = True) -> ftx.Experiment:
    """Federated averaging of a logistic regression."""

    def init(key):
        return {"w": jnp.zeros((settings.features, CLASSES)), "b": jnp.zeros(CLASSES)}

    def apply(params, x, *, key=None):
        return x.astype(jnp.float32) / 128 @ params["w"] + params["b"]

    return ftx.Experiment(
        ftx.algorithms.fed_avg(ftx.tasks.classification(ftx.Model(init, apply)), client_optimizer=optax.sgd(0.1)),
        train=data,
        cohorts=cohorts,
        local=ftx.data.LocalWork(batch_size=settings.batch_size, shuffle=shuffle),
    )


def time_rounds(settings: Settings, directory: Path) -> dict[str, list[float]]:
    """Trains some rounds, none planned ahead; returns the seconds of sampling and scheduling each, and of the whole round."""
    cohorts = ftx.data.uniform_cohorts(settings.clients_per_round)
    experiment = make_experiment(settings, ftx.data.FederatedDataset.open(directory), cohorts)
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=settings.lanes, rounds_per_call=1))
    state, _ = round_fn.run(round_fn.init(), 1, then=0)  # compiles
    seconds: dict[str, list[float]] = {"plan": [], "round": []}
    for _ in range(settings.repeats):
        began = time.perf_counter()
        round_fn.plan(state, 1)
        planned = time.perf_counter()
        state, _ = round_fn.run(state, 1, then=0)
        seconds["plan"].append(planned - began)
        seconds["round"].append(time.perf_counter() - planned)
    return seconds


def main(settings: Settings) -> dict:
    """Measures and prints the table."""
    if settings.smoke:
        settings = Settings((50,), 10, 2, 2, True, settings.out, 6, 4)
    rows = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool,  # a process for each task
    ):
        for clients in settings.populations:
            directory = Path(folder) / str(clients)
            save_population(clients, settings.features, directory)
            said = pool.submit(open_and_schedule, settings, directory).result()
            rows[str(clients)] = {**said, **pool.submit(time_rounds, settings, directory).result()}
    return report(settings, rows)


def report(settings: Settings, rows: dict) -> dict:
    """Prints a Markdown table and returns its figures."""
    print(f"\n{settings.clients_per_round} clients a round, {settings.lanes} lanes, {settings.repeats} rounds\n")
    print("| clients | open, ms | memory, MB | sampling and scheduling, ms (min–max) | of the round (min–max) |")
    print("|---|---|---|---|---|")
    for clients, row in rows.items():
        plan, share = 1e3 * np.array(row["plan"]), np.array(row["plan"]) / np.array(row["round"])
        print(
            f"| {int(clients):,} | {1e3 * row['open']:.1f} | {row['peak'] / 1e6:.0f} "
            f"| {np.median(plan):.2f} ({plan.min():.2f}–{plan.max():.2f}) "
            f"| {np.median(share):.3f} ({share.min():.3f}–{share.max():.3f}) |"
        )
    figures = {"rows": rows, "device": jax.devices()[0].platform}
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
