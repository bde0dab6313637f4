"""Does memory grow with the cohort? Peak resident memory of rounds of 100, 1,000 and 10,000 clients.

Question: updates are added up as they come, so a round of 10,000 clients should need no more memory than one of 100. Does it? A
network of two hidden layers on 64 features (100,234 parameters); 10,000 clients of 8 examples each, one batch a client, plain
federated averaging on 8 lanes. The data set is the same in all settings; the cohort is its first 100, 1,000 or 10,000 clients.
Side by side, the updates of 10,000 clients alone would be 4.0 GB.

Each setting runs in a process of its own, in turn, for three rounds; the system says the process's peak. Linux only.

Command: python experiments/benchmarks/constant_memory.py
Time: about 2 minutes on 2 CPU cores. Score: the table it prints.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fedjax_tx as ftx

FEATURES, CLASSES, EXAMPLES = 64, 10, 8
ROUNDS = 3


@dataclass(frozen=True)
class Settings:
    """What is measured.

    cohorts: clients a round; the first is what the others are compared with. hidden: widths of the hidden layers. repeats: turns.
    out: a JSON file for the figures.
    """

    cohorts: tuple[int, ...] = (100, 1_000, 10_000)
    hidden: tuple[int, ...] = (512, 128)
    lanes: int = 8
    repeats: int = 7
    smoke: bool = False
    out: Path | None = None


def make_model(hidden: tuple[int, ...]) -> ftx.Model:
    """A plain network of dense layers with rectified units."""
    widths = (FEATURES, *hidden, CLASSES)

    def init(key):
        keys = jax.random.split(key, len(widths) - 1)
        return {
            f"layer{number}": {"w": jax.random.normal(k, (rows, columns)) / np.sqrt(rows), "b": jnp.zeros(columns)}
            for number, (k, rows, columns) in enumerate(zip(keys, widths, widths[1:], strict=False))
        }

    def apply(params, x, *, key=None):
        for number in range(len(widths) - 1):
            layer = params[f"layer{number}"]
            x = x @ layer["w"] + layer["b"]
            x = jax.nn.relu(x) if number < len(widths) - 2 else x
        return x

    return ftx.Model(init, apply)


def make_data(clients: int) -> ftx.data.FederatedDataset:
    """Random features and classes, as many for each client."""
    generator = np.random.default_rng(0)
    columns = {
        "x": generator.standard_normal((clients * EXAMPLES, FEATURES), np.float32),
        "y": generator.integers(0, CLASSES, clients * EXAMPLES, dtype=np.int32),
    }
    return ftx.data.FederatedDataset.from_offsets(columns, EXAMPLES * np.arange(clients + 1))


def run_cohort(settings: Settings, clients: int) -> dict[str, int]:
    """Runs some rounds of that many clients in this process; returns its peak memory and the number of parameters."""
    task = ftx.tasks.classification(make_model(settings.hidden))
    experiment = ftx.Experiment(
        ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(0.1)),
        train=make_data(max(settings.cohorts)),
        cohorts=ftx.data.fixed_cohorts([np.arange(clients)]),
        local=ftx.data.LocalWork(batch_size=EXAMPLES),
    )
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=settings.lanes))
    state = round_fn.init()
    for _ in range(ROUNDS):
        state, info = round_fn(state)
    if info.num_clients != clients:
        raise ValueError(f"expected {clients} clients to take part, got {info.num_clients}")
    return {"peak": peak_bytes(), "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.device.server.params))}


def peak_bytes() -> int:
    """Returns the peak resident memory of this process; ``getrusage`` would count the parent that it was forked from."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main(settings: Settings) -> dict:
    """Measures and prints the table."""
    if settings.smoke:
        settings = Settings((4, 40), (8,), 2, 1, True, settings.out)
    peaks: dict[int, list[int]] = {clients: [] for clients in settings.cohorts}
    # A worker serves one task: every figure is a fresh process's.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for _ in range(settings.repeats):
            for clients, values in peaks.items():
                said = pool.submit(run_cohort, settings, clients).result()
                values.append(said["peak"])
    return report(settings, peaks, said["parameters"])


def report(settings: Settings, peaks: dict[int, list[int]], parameters: int) -> dict:
    """Prints a Markdown table and returns its figures."""
    print(f"\n{parameters:,} parameters, {settings.lanes} lanes, {settings.repeats} turns\n")
    print("| clients a round | peak MB (min–max) | of the smallest cohort's (min–max) |\n|---|---|---|")
    smallest = np.array(peaks[settings.cohorts[0]])
    rows = {}
    for clients, values in peaks.items():
        megabytes, ratio = np.array(values) / 1e6, np.array(values) / smallest
        print(
            f"| {clients:,} | {np.median(megabytes):.0f} ({megabytes.min():.0f}–{megabytes.max():.0f}) "
            f"| {np.median(ratio):.3f} ({ratio.min():.3f}–{ratio.max():.3f}) |"
        )
        rows[str(clients)] = {"peak": values, "ratio": ratio.tolist()}
    figures = {"rows": rows, "parameters": parameters}
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
