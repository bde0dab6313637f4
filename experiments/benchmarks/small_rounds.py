"""Rounds with next to nothing in them: how much of the host's time does each take?

Question: ten clients of ten examples, logistic regression of 20 features on 2 classes, one epoch in batches of 10, 64 rounds in a
call of the compiled program. What a round takes beyond the program's own time is the host's: drawing and packing cohorts, handing
them over, and reading what the rounds said. Is that at most 1 ms?

In each turn the same 64 rounds run three times: as the bare compiled program on arguments that lie ready, and through
``round_fn.run``, with the next call planned meanwhile and with nothing planned ahead. What these take beyond the program, over
64, is the host's time a round. The parts are timed alone.

Command: python experiments/benchmarks/small_rounds.py
Time: half a minute on 2 CPU cores. Score: the table it prints.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fedjax_tx as ftx
from fedjax_tx.simulation.round import run_rounds
from fedjax_tx.simulation.rounds import read_infos


@dataclass(frozen=True)
class Settings:
    """What is measured.

    clients: of the data set, all of which take part. rounds_per_call: rounds of a call. repeats: turns; the median is shown, and
    the lowest and highest. out: a JSON file for the figures.
    """

    clients: int = 10
    examples: int = 10
    features: int = 20
    lanes: int = 10
    rounds_per_call: int = 64
    repeats: int = 21
    smoke: bool = False
    out: Path | None = None


def make_experiment(settings: Settings) -> ftx.Experiment:
    """Federated averaging of a logistic regression on random examples."""
    generator = np.random.default_rng(0)
    rows = settings.clients * settings.examples
    x, y = generator.standard_normal((rows, settings.features), np.float32), generator.integers(0, 2, rows)

    def init(key):
        return {"w": jnp.zeros((settings.features, 2)), "b": jnp.zeros(2)}

    task = ftx.tasks.classification(ftx.Model(init, lambda params, x, *, key=None: x @ params["w"] + params["b"]))
    return ftx.Experiment(
        ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(0.1)),
        train=ftx.data.FederatedDataset.from_columns({"x": x, "y": y}, np.repeat(np.arange(settings.clients), settings.examples)),
        cohorts=ftx.data.uniform_cohorts(settings.clients),
        local=ftx.data.LocalWork(batch_size=settings.examples),
    )


PARTS = ("the program alone", "reading", "planning", "handing over", "whole, nothing ahead", "whole, planning ahead")


def measure(settings: Settings) -> dict[str, np.ndarray]:
    """Seconds a round of each part and of the whole, by turn."""
    count = settings.rounds_per_call
    execution = ftx.Execution(num_lanes=settings.lanes, rounds_per_call=count, mesh=None)
    experiment = make_experiment(settings)
    round_fn, alone = (ftx.make_round(experiment, execution) for _ in range(2))
    state = round_fn.init()
    seconds: dict[str, list[float]] = {name: [] for name in PARTS}
    for turn in range(-2, settings.repeats):  # the first compiles, the second fills what was prepared ahead
        plan = alone.plan(state, count)
        maker, batch_sizes, *arrays, mesh = alone.arguments(state, plan)
        arrays = jax.block_until_ready(jax.device_put(arrays))
        ticks = [time.perf_counter()]
        _, output = jax.block_until_ready(run_rounds(maker, batch_sizes, *arrays, mesh))
        ticks.append(time.perf_counter())
        read_infos(state.round, plan, jax.device_get(output))
        ticks.append(time.perf_counter())
        alone.plan(state, count)
        ticks.append(time.perf_counter())
        jax.block_until_ready(jax.device_put(alone.prepare(plan).schedules))
        ticks.append(time.perf_counter())
        alone.run(state, count, then=0)
        ticks.append(time.perf_counter())
        state, _ = round_fn.run(state, count)
        ticks.append(time.perf_counter())
        if turn >= 0:
            for name, took in zip(PARTS, np.diff(ticks), strict=True):
                seconds[name].append(took / count)
    return {name: np.array(values) for name, values in seconds.items()}


def main(settings: Settings) -> dict:
    """Measures and prints the table."""
    if settings.smoke:
        settings = Settings(3, 4, 5, 2, 3, 2, True, settings.out)
    seconds = measure(settings)
    for name in ("planning ahead", "nothing ahead"):
        seconds[f"the host's time, {name}"] = seconds[f"whole, {name}"] - seconds["the program alone"]
    print(f"\n{settings.clients} clients, {settings.rounds_per_call} rounds a call, {settings.repeats} turns, "
          f"{jax.devices()[0].platform}\n\n| a round | ms (min–max) |\n|---|---|")  # fmt: skip
    for name, took in seconds.items():
        print(f"| {name} | {1e3 * np.median(took):.3f} ({1e3 * took.min():.3f}–{1e3 * took.max():.3f}) |")
    figures = {"seconds": {name: took.tolist() for name, took in seconds.items()}, "device": jax.devices()[0].platform}
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
