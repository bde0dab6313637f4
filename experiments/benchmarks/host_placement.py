"""Does the host's work overlap the devices'? Cohorts of a million clients, with the data on the device and in host memory.

Question: while a round runs, the next one's clients are drawn and packed, and with ``placement="host"`` their rows are gathered
from a memory-mapped file and sent. How much of that lies within the time in which the device is busy, what does planning ahead
save, and what does it cost to leave the data with the host? Data and model of ``million_clients.py``.

Three systems take turns on the same rounds: data on the device with nothing planned ahead; data on the device; data with the
host. They are compared by the ratio within a turn and end at the same parameters, bit for bit. A thread of the benchmark's own
waits for each round's result and notes when it is there: the device is busy from the dispatch until then.

The same is read from a trace of JAX's profiler, over a few more rounds: how much of the host's span "prepare the next call" lies
within the spans in which the CPU device executes a program.

Memory is that of a process with one of the placements: its peak (VmHWM: pages of the mapped file that were touched count, though
the system may take them back at any time) and what is its own at the end (RssAnon). On CPU the device's memory is the process's.

Command: python experiments/benchmarks/host_placement.py
Time: about a minute on 2 CPU cores; 1.8 GB of disk for the while. Linux only. Score: the tables it prints.
"""

import json
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from million_clients import make_experiment, save_population

import fedjax_tx as ftx
from fedjax_tx.simulation import rounds

Placement = Literal["device", "host"]
PREPARING, EXECUTING = "prepare the next call", "ThunkExecutor::Execute"  # the second is XLA's name for a program on a CPU device
SYSTEMS: dict[str, tuple[Placement, int]] = {"device, nothing ahead": ("device", 0), "device": ("device", 1), "host": ("host", 1)}


@dataclass(frozen=True)
class Settings:
    """What is measured.

      clients: of the data set. lanes: of the rounds. repeats: turns; the median is shown, and the lowest and highest.
      memory_rounds: how many rounds the processes train whose memory is told. traced_rounds: under the profiler.
    out: a JSON file for the figures.
    """

    clients: int = 1_000_000
    clients_per_round: int = 1_000
    lanes: int = 128
    repeats: int = 21
    memory_rounds: int = 5
    traced_rounds: int = 5
    smoke: bool = False
    out: Path | None = None
    features: int = 60
    batch_size: int = 10


class Clock:
    """Notes when the device is busy and when the host prepares the next call, by standing before the two functions."""

    def __init__(self):
        self.busy: list[tuple[float, float]] = []
        self.prepared: list[tuple[float, float]] = []
        self.waiting: list[threading.Thread] = []
        self._run, self._prepare = rounds.run_rounds, rounds.prepare_ahead

    def __enter__(self):
        self._stand(self.run_rounds, self.prepare_ahead)
        return self

    def __exit__(self, *raised):
        self._stand(self._run, self._prepare)

    def _stand(self, run: Any, prepare: Any) -> None:
        rounds.run_rounds, rounds.prepare_ahead = run, prepare

    def run_rounds(self, *arguments):
        """Dispatches, and has a thread wait for the end."""
        result = self._run(*arguments)
        began = time.perf_counter()

        def wait():
            jax.block_until_ready(result)
            self.busy.append((began, time.perf_counter()))

        self.waiting = [threading.Thread(target=wait)]
        self.waiting[0].start()
        return result

    def prepare_ahead(self, *arguments):
        """Prepares a call, and notes from when to when."""
        began = time.perf_counter()
        ahead = self._prepare(*arguments)
        self.prepared.append((began, time.perf_counter()))
        return ahead


def make_cohorts(settings: Settings, name: str) -> ftx.CohortSource:
    """The cohort source of a row of the table."""
    if name == "poisson":
        return ftx.data.poisson_cohorts(settings.clients_per_round / settings.clients)
    return ftx.data.uniform_cohorts(settings.clients_per_round)


def time_systems(settings: Settings, directory: Path, cohorts: str, shuffle: bool) -> dict[str, dict[str, list[float]]]:
    """Trains some rounds with each system in turn.

    Returns for each: the seconds of each round, of preparing the next, and how much of that the device was busy; and examples.
    """
    sys.setswitchinterval(1e-4)  # the waiting thread is to notice the end at once
    experiment = make_experiment(settings, ftx.data.FederatedDataset.open(directory), make_cohorts(settings, cohorts), shuffle)
    round_fns, states = {}, {}
    for name, (placement, _) in SYSTEMS.items():
        round_fns[name] = ftx.make_round(
            experiment, ftx.Execution(num_lanes=settings.lanes, rounds_per_call=1, mesh=None, placement=placement)
        )
        states[name] = round_fns[name].init()
    told: dict[str, dict[str, list[float]]] = {
        name: {"round": [], "prepare": [], "overlap": [], "examples": []} for name in SYSTEMS
    }
    for turn in range(-2, settings.repeats):  # the first compiles, the second fills what was prepared ahead
        for name, (_, then) in SYSTEMS.items():
            with Clock() as clock:
                began = time.perf_counter()
                states[name], (info,) = round_fns[name].run(states[name], 1, then)
                took = time.perf_counter() - began
                clock.waiting[0].join()
            if turn >= 0:
                told[name]["round"].append(took)
                told[name]["examples"].append(float(info.num_examples))
            if turn >= 0 and then:
                (prepared,), (busy,) = clock.prepared, clock.busy
                both = min(prepared[1], busy[1]) - max(prepared[0], busy[0])
                told[name]["prepare"].append(prepared[1] - prepared[0])
                told[name]["overlap"].append(max(0.0, both))
    first, *others = (jax.device_get(state.device) for state in states.values())
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)
    return told


def trace_overlap(settings: Settings, directory: Path, placement: Placement) -> dict[str, float]:
    """Trains some rounds under JAX's profiler; returns the seconds of preparing the next calls, and of these within execution."""
    experiment = make_experiment(settings, ftx.data.FederatedDataset.open(directory), make_cohorts(settings, "uniform"))
    execution = ftx.Execution(num_lanes=settings.lanes, rounds_per_call=1, mesh=None, placement=placement)
    round_fn = ftx.make_round(experiment, execution)
    state, _ = round_fn(round_fn.init())
    prepare = rounds.prepare_ahead

    def annotated(*arguments):
        with jax.profiler.TraceAnnotation(PREPARING):
            return prepare(*arguments)

    rounds.prepare_ahead = annotated
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(settings.traced_rounds):
                state, _ = round_fn(state)
        rounds.prepare_ahead = prepare
        (trace,) = Path(folder).rglob("*.xplane.pb")
        spans = read_spans(trace)
    busy = join_spans(spans[EXECUTING])
    within = sum(max(0.0, min(end, last) - max(start, first)) for start, end in spans[PREPARING] for first, last in busy)
    return {"prepare": sum(end - start for start, end in spans[PREPARING]), "overlap": within}


def read_spans(trace: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns from when to when, in seconds, the host prepared and the device executed, by a trace."""
    spans: dict[str, list[tuple[float, float]]] = {PREPARING: [], EXECUTING: []}
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in spans:
                    spans[event.name].append((event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9))
    return spans


def join_spans(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the same times without overlaps: a program's span holds those of its loops' bodies."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def measure_memory(settings: Settings, directory: Path, placement: Placement) -> dict[str, int]:
    """Trains some rounds in this process; returns its peak and its own memory, in bytes."""
    experiment = make_experiment(settings, ftx.data.FederatedDataset.open(directory), make_cohorts(settings, "uniform"))
    execution = ftx.Execution(num_lanes=settings.lanes, rounds_per_call=1, mesh=None, placement=placement)
    round_fn = ftx.make_round(experiment, execution)
    state = round_fn.init()
    for _ in range(settings.memory_rounds):
        state, _ = round_fn(state)
    status = Path("/proc/self/status").read_text()
    return {name: 1024 * int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) for name in ("VmHWM", "RssAnon")}  # type: ignore[index]


def main(settings: Settings) -> dict:
    """Measures and prints the tables."""
    if settings.smoke:
        settings = Settings(50, 10, 2, 2, 1, 2, True, settings.out, 6, 4)
    rows: dict[str, dict] = {}
    memory: dict[str, dict] = {}
    traced: dict[str, dict] = {}
    placements: tuple[Placement, ...] = ("device", "host")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool,  # a process for each task
    ):
        directory = Path(folder) / "clients"
        save_population(settings.clients, settings.features, directory)
        for placement in placements:
            memory[placement] = pool.submit(measure_memory, settings, directory, placement).result()
            traced[placement] = pool.submit(trace_overlap, settings, directory, placement).result()
        for cohorts, shuffle in (("uniform", False), ("uniform", True), ("poisson", True)):
            label = f"{cohorts}, {'shuffled' if shuffle else 'stored order'}"
            rows[label] = pool.submit(time_systems, settings, directory, cohorts, shuffle).result()
    return report(settings, rows, memory, traced)


def spread(values: np.ndarray, digits: int) -> str:
    """Median (lowest–highest)."""
    return f"{np.median(values):.{digits}f} ({values.min():.{digits}f}–{values.max():.{digits}f})"


def report(settings: Settings, rows: dict, memory: dict, traced: dict) -> dict:
    """Prints Markdown tables and returns their figures."""
    device = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    print(f"\n{settings.clients_per_round} of {settings.clients:,} clients a round, {settings.repeats} turns, {device}\n")
    print("| cohorts | data | round, ms (min–max) | examples/s over those on the device, nothing ahead (min–max) "
          "| preparing the next, ms (min–max) | of the round (min–max) | of it while the device is busy |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for label, told in rows.items():
        speed = {name: np.array(one["examples"]) / np.array(one["round"]) for name, one in told.items()}
        base = speed["device, nothing ahead"]
        for name, one in told.items():
            took, prepare = 1e3 * np.array(one["round"]), 1e3 * np.array(one["prepare"])
            ahead = f"{spread(prepare, 2)} | {spread(prepare / took, 3)}" if prepare.size else "– | –"
            overlap = f"{sum(one['overlap']) / sum(one['prepare']):.3f}" if prepare.size else "–"
            print(f"| {label} | {name} | {spread(took, 1)} | {spread(speed[name] / base, 3)} | {ahead} | {overlap} |")
    print("\n| data | peak memory, MB | own memory at the end, MB |\n|---|---|---|")
    for placement, one in memory.items():
        print(f"| {placement} | {one['VmHWM'] / 1e6:.0f} | {one['RssAnon'] / 1e6:.0f} |")
    print("\n| data | preparing the next call, ms a round | of it while the device executes, by the profiler |\n|---|---|---|")
    for placement, one in traced.items():
        print(f"| {placement} | {1e3 * one['prepare'] / settings.traced_rounds:.2f} | {one['overlap'] / one['prepare']:.3f} |")
    figures = {"rows": rows, "memory": memory, "traced": traced, "device": device}
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
