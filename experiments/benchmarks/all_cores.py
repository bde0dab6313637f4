"""What do all cores of a CPU bring? Work A on one core, on all cores as one JAX device, and on all cores as a device each.

Question: JAX takes all cores of a CPU for one device whose matrix products share a thread pool. Is a round faster if each core is
a device that trains its own clients (``ftx.devices.use_all_cores()``), and how close does it come to the number of cores?

Work A is that of round_speed.py, one lane a device. How many devices a CPU has is settled when JAX starts, so each system is a
process of its own. They wait for their turn, one round at a time, so that no two run at once and a turn's ratios compare the
same cohort in the same minute. At the end their parameters are compared.

Command: python experiments/benchmarks/all_cores.py
Time: about 2 minutes on 2 CPU cores. Score: the table it prints.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from round_speed import Settings as Work
from round_speed import make_data

import fedjax_tx as ftx

ONE, SHARED, EACH, EACH_SHARED = "one core", "one device", "a device a core", "a device a core, shared pool"
SYSTEMS = (ONE, SHARED, EACH, EACH_SHARED)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    repeats: turns; the median is shown, and the lowest and highest. num_lanes: lanes a device. smoke: a tiny model, two turns.
    out: a JSON file for the figures.
    """

    repeats: int = 7
    num_lanes: int = 1
    smoke: bool = False
    out: Path | None = None


def make_experiment(smoke: bool, rounds: int) -> ftx.Experiment:
    """Work A; a smaller one for a smoke test."""
    small = {"vocab_size": 96, "num_layers": 1, "num_heads": 2, "width": 16, "max_length": 16}
    work = Work(clients=32, clients_per_round=6, model=small) if smoke else Work()
    task = ftx.tasks.next_token(ftx.models.decoder(**work.model))
    generator = np.random.default_rng(1)
    choose = [generator.choice(work.clients, work.clients_per_round, replace=False) for _ in range(rounds)]
    return ftx.Experiment(
        lambda hyper: ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(hyper["client_lr"])),
        hyper={"client_lr": 0.1},
        train=make_data(work),
        cohorts=ftx.data.fixed_cohorts(choose),
        local=ftx.data.LocalWork(batch_size=work.batch_size, shuffle=False),
    )


# ---- one system: a process that runs a round whenever it is told to


def work(system: str, smoke: bool, rounds: int, num_lanes: int) -> None:
    """Reads a line for each round and answers with its seconds; then reads where to leave its parameters."""
    if system == ONE:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if system in (EACH, EACH_SHARED):
        ftx.devices.use_all_cores()
    round_fn = ftx.make_round(make_experiment(smoke, rounds), ftx.Execution(num_lanes=num_lanes, rounds_per_call=1))
    state = round_fn.init()
    print(json.dumps({"devices": jax.local_device_count()}), flush=True)
    for _ in range(rounds):
        sys.stdin.readline()
        began = time.perf_counter()
        state, info = round_fn(state)
        jax.block_until_ready(state.device)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "examples": info.num_examples}), flush=True)
    np.savez(sys.stdin.readline().strip(), *jax.tree.leaves(jax.device_get(state.device.server.params)))
    print(json.dumps("done"), flush=True)


class System:
    """The process of a system, and what is said to it."""

    def __init__(self, name: str, settings: Settings, rounds: int):
        self.name = name
        request = json.dumps([name, settings.smoke, rounds, settings.num_lanes])
        flags = {} if name != EACH_SHARED else {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true"}
        command = [sys.executable, __file__, "--work", request]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **flags}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.says, self.hears = self.process.stdout, self.process.stdin
        self.devices = self.hear()["devices"]

    def hear(self):
        line = self.says.readline()
        if not line:
            raise RuntimeError(f"expected an answer of {self.name}, got its end, with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, line: str):
        self.hears.write(line + "\n")
        self.hears.flush()
        return self.hear()

    def end(self) -> None:
        self.hears.close()
        self.process.wait()


# ---- all systems in turn


def main(settings: Settings) -> dict:
    """Measures and prints the table."""
    if settings.smoke:
        settings = dataclasses.replace(settings, repeats=2)
    systems: dict[str, System] = {}
    try:
        for name in SYSTEMS:
            systems[name] = System(name, settings, settings.repeats + 1)
        seconds, examples = measure(systems, settings.repeats)
        params = [read_params(system) for system in systems.values()]
    finally:
        for system in systems.values():
            system.end()
    apart = max(float(np.abs(a - b).max()) for other in params[1:] for a, b in zip(params[0], other, strict=True))
    return report(settings, systems, seconds, examples, apart)


def measure(systems: dict[str, System], repeats: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Seconds of each system and examples, by turn; the order of the systems is turned round every time."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    examples = []
    for turn in range(-1, repeats):  # turn -1 compiles
        for name in list(systems)[:: 1 if turn % 2 else -1]:
            answer = systems[name].ask("round")
            if turn >= 0:
                seconds[name].append(answer["seconds"])
        if turn >= 0:
            examples.append(answer["examples"])
    return {name: np.array(values) for name, values in seconds.items()}, np.array(examples)


def read_params(system: System) -> list[np.ndarray]:
    """The parameters of a system after its last round."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "params.npz"
        system.ask(str(path))
        with np.load(path) as saved:
            return [saved[name] for name in saved.files]


def report(settings, systems, seconds, examples, apart) -> dict:
    """Prints a Markdown table and returns its figures."""
    cores = len(os.sched_getaffinity(0))
    print(f"\n{platform.machine()}, {cores} cores, {settings.num_lanes} lane(s) a device, {settings.repeats} turns\n")
    print("| work A on | devices | examples/s (min–max) | of one core (min–max) |")
    print("|---|---|---|---|")
    rows = {}
    for name, values in seconds.items():
        rate, ratio = examples / values, seconds[ONE] / values
        label = name if name == ONE else f"{cores} cores, {name}"
        print(
            f"| {label} | {systems[name].devices} | {np.median(rate):.0f} ({rate.min():.0f}–{rate.max():.0f}) "
            f"| {np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f}) |"
        )
        rows[name] = {"devices": systems[name].devices, "examples_per_second": rate.tolist(), "ratio": ratio.tolist()}
    print(f"\nlargest difference between their parameters after {settings.repeats + 1} rounds: {apart:.1e}")
    figures = {"rows": rows, "apart": apart}
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*json.loads(sys.argv[2]))
    else:
        main(tyro.cli(Settings, description=__doc__))
