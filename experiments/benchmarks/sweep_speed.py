"""How much sooner is a sweep as one program than the same program reused setting by setting?

Question: 16 learning rates of one experiment, side by side (``ftx.sweep``) against one after another (the round function of one
run, compiled once, its learning rate traced), which runs on one device, and on all with its lanes spread over them. Seconds for
the whole sweep the first time, with compilation and with each way's own choice of lanes and of settings side by side, and in the
steady state, with those choices. Work C is all overhead: 1,000 of 100,000 clients a round, log-normal sizes (median 16, sigma 1,
clip 1..200), logistic regression of 60 features to 10 classes, batch 10, one epoch. Work A is all arithmetic: the decoder of
``round_speed.py`` and its 512 clients, but 8 of them a round. All ways end at the same training losses. What the better of the
two baselines takes is set against the sweep, turn by turn.

The floor of work C is the bare arithmetic of its batches in all settings: two products and a softmax a step, on parameters that
have the settings on their last axis, as one jitted loop on each device, without clients, weights, metrics or masks.

Command: python experiments/benchmarks/sweep_speed.py
Time: about 10 minutes on 2 CPU cores. Score: the tables it prints.
"""

import dataclasses
import json
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import round_speed
import tyro

import fedjax_tx as ftx


@dataclass(frozen=True)
class Settings:
    """What is measured.

    works: which. num_settings: learning rates, from 0.01 to 0.1. repeats: turns; the median is shown, and the lowest and highest.
    rounds_c, rounds_a: rounds of a sweep. lanes_c, lanes_a: lanes of each run. out: a JSON file for the figures.
    """

    works: tuple[Literal["C", "A"], ...] = ("C", "A")
    num_settings: int = 16
    repeats: int = 7
    smoke: bool = False
    out: Path | None = None
    rounds_c: int = 30
    rounds_a: int = 1
    lanes_c: int | Literal["auto"] = "auto"
    lanes_a: int | Literal["auto"] = "auto"
    clients_c: int = 100_000
    cohort_c: int = 1_000
    cohort_a: int = 8


SMOKE = Settings(num_settings=2, repeats=2, smoke=True, rounds_c=2, lanes_c=2, lanes_a=1, clients_c=50, cohort_c=5, cohort_a=2)


def make_work_c(settings: Settings, directory: str) -> ftx.Experiment:
    """Many tiny clients and a logistic regression; their data is written to the directory."""
    generator = np.random.default_rng(0)
    sizes = np.exp(np.log(16) + generator.standard_normal(settings.clients_c)).round().clip(1, 200).astype(int)
    x = generator.standard_normal((sizes.sum(), 60), dtype=np.float32)
    y = generator.integers(0, 10, sizes.sum(), dtype=np.int32)
    offsets, ids = np.append(0, np.cumsum(sizes)), np.arange(settings.clients_c)
    ftx.data.FederatedDataset.from_offsets({"x": x, "y": y}, offsets, ids).save(directory)
    data = ftx.data.FederatedDataset.open(directory)  # memory-mapped, which a CPU's devices read in place

    def init(key):
        return {"w": 0.01 * jax.random.normal(key, (60, 10)), "b": jnp.zeros(10)}

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


class OneByOne:
    """Reuses the program of one run for each rate; the first call compiles and chooses lanes."""

    def __init__(self, experiment: ftx.Experiment, rates: list[float], rounds: int, execution: ftx.Execution):
        self.experiment, self.rates, self.rounds, self.execution = experiment, rates, rounds, execution
        self.round_fn: ftx.simulation.RoundFunction | None = None

    def __call__(self) -> np.ndarray:
        if self.round_fn is None:
            self.round_fn = ftx.make_round(self.experiment, self.execution)
        losses = []
        for rate in self.rates:
            experiment = dataclasses.replace(self.experiment, hyper={"client_lr": rate})
            one = dataclasses.replace(self.round_fn, experiment=experiment)
            state = one.init()
            while state.round < self.rounds:
                state, infos = one.run(state, min(one.rounds_per_call, self.rounds - state.round))
            losses.append(infos[-1].metrics["loss"])
        return np.array(losses)

    def choice(self) -> str:
        assert self.round_fn is not None
        return f"{self.round_fn.num_lanes} lanes a device"


class SideBySide:
    """``ftx.sweep``; the first call compiles and chooses, later ones go by its choices."""

    def __init__(self, experiment: ftx.Experiment, rates: list[float], rounds: int, execution: ftx.Execution):
        self.experiment, self.rates, self.rounds, self.execution = experiment, rates, rounds, execution
        self.at_once: int | Literal["auto"] = "auto"

    def __call__(self) -> np.ndarray:
        common: dict[str, Any] = {"evaluate_every": self.rounds, "progress": False}
        with tempfile.TemporaryDirectory() as directory:
            choices: dict[str, Any] = {"execution": self.execution, "settings_at_once": self.at_once, "run_dir": directory}
            result = ftx.sweep(self.experiment, self.rounds, {"client_lr": self.rates}, **choices, **common)
            chosen = json.loads((Path(directory) / "sweep.json").read_text())["execution"]
        self.at_once = chosen["settings_at_once"]
        self.execution = dataclasses.replace(self.execution, num_lanes=chosen["num_lanes"])
        return np.array([history[-1]["train/loss"] for history in result.history])

    def choice(self) -> str:
        return f"{self.at_once} settings a device, {self.execution.num_lanes} lanes each"


def measure(settings: Settings, experiment: ftx.Experiment, lanes, rounds: int) -> dict[str, Any]:
    """Seconds of all ways, turn by turn; turn -1 compiles and chooses."""
    rates = np.geomspace(0.01, 0.1, settings.num_settings).tolist()
    one, spread = (ftx.Execution(num_lanes=lanes, mesh=mesh) for mesh in (None, "auto"))
    ways: dict[str, Any] = {"one by one": OneByOne(experiment, rates, rounds, one)}
    if jax.device_count() > 1:
        ways["one by one, all devices"] = OneByOne(experiment, rates, rounds, spread)
    ways["sweep"] = SideBySide(experiment, rates, rounds, spread)
    jax.clear_caches()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, settings.repeats):
        losses = {}
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            losses[name] = ways[name]()
            seconds[name].append(time.perf_counter() - began)
        for name, found in losses.items():
            np.testing.assert_allclose(found, losses["one by one"], rtol=1e-3, err_msg=name)
    choices = {name: way.choice() for name, way in ways.items()}
    return {"rounds": rounds, "seconds": seconds, "choices": choices}


def measure_floor(settings: Settings, experiment: ftx.Experiment) -> dict[str, Any]:
    """The bare arithmetic of a round's batches in all settings, on one device: seconds of one step of one setting."""
    features, classes, batch, lanes, steps = 60, 10, experiment.local.batch_size, 16, 8 if settings.smoke else 256
    count = settings.num_settings
    x = jax.random.normal(jax.random.key(0), (steps, lanes, batch, features))
    hot = jax.nn.one_hot(jax.random.randint(jax.random.key(1), (steps, lanes, batch), 0, classes), classes)

    @jax.jit
    def run(w, b, rates):
        def step(number, params):
            w, b = params
            logits = jnp.einsum("lbf,lfcs->lbcs", x[number], w) + b[:, None]
            raised = jnp.exp(logits - logits.max(2, keepdims=True))
            slope = (raised / raised.sum(2, keepdims=True) - hot[number][..., None]) / batch
            return w - rates * jnp.einsum("lbf,lbcs->lfcs", x[number], slope), b - rates * slope.sum(1)

        return jax.lax.fori_loop(0, steps, step, (w, b))

    given = jnp.zeros((lanes, features, classes, count)), jnp.zeros((lanes, classes, count)), jnp.geomspace(0.01, 0.1, count)
    seconds = []
    for _ in range(-1, settings.repeats):
        began = time.perf_counter()
        jax.block_until_ready(run(*given))
        seconds.append((time.perf_counter() - began) / (steps * lanes * count))
    numbers = features * classes + classes
    flops = 4 * batch * features * classes
    moved = 4 * (2 * numbers + 3 * batch * classes + batch * features / count)  # parameters there and back, logits, the batch
    return {"seconds": seconds[1:], "flops": flops, "bytes": moved}


def count_steps(experiment: ftx.Experiment, rounds: int) -> int:
    """Steps of all clients in some rounds of one setting."""
    plan_rounds = ftx.make_round(experiment, ftx.Execution(num_lanes=1, rounds_per_call=rounds, mesh=None))
    plan = plan_rounds.plan(plan_rounds.init(), rounds)
    return sum(int(schedule.num_steps.sum()) for schedule in plan.schedules[0])


def report(figures: dict[str, Any], floor: dict[str, Any] | None) -> None:
    """Prints Markdown tables."""
    print(f"\n{platform.machine()}, {jax.device_count()} {jax.devices()[0].platform} device(s)\n")
    print("| work | way | chosen | s (min–max) | × sooner than the better baseline (min–max) | s with compilation | × with it |")
    print("|---|---|---|---|---|---|---|")
    for work, found in figures.items():
        baselines = [values for name, values in found["seconds"].items() if name.startswith("one by one")]
        best = np.array(min(baselines, key=lambda values: np.median(values[1:])))
        first = min(values[0] for values in baselines)
        for name, values in found["seconds"].items():
            steady, ratio = np.array(values[1:]), best[1:] / np.array(values[1:])
            print(
                f"| {work} | {name} | {found['choices'][name]} "
                f"| {np.median(steady):.2f} ({steady.min():.2f}–{steady.max():.2f}) "
                f"| {np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f}) | {values[0]:.2f} | {first / values[0]:.2f} |"
            )
    if floor is not None:
        step = np.median(floor["seconds"])
        print(
            f"\nfloor of work C: {1e6 * step:.2f} µs a step of a setting on one device "
            f"({floor['flops']:,} operations, {floor['bytes']:,.0f} bytes; {1e-9 * floor['flops'] / step:.1f} GFLOP/s)"
        )
        if "steps" in figures["C"]:
            devices, settings = jax.device_count(), figures["C"]["settings"]
            bound = step * figures["C"]["steps"] * settings / devices
            for name, values in figures["C"]["seconds"].items():
                print(f"{name}: {np.median(values[1:]) / bound:.2f} times the floor on {devices} device(s)")


def main(settings: Settings) -> dict[str, Any]:
    """Measures and prints the table."""
    if settings.smoke:
        settings = dataclasses.replace(SMOKE, works=settings.works, out=settings.out)
    figures: dict[str, Any] = {}
    floor = None
    for work in settings.works:
        if work == "C":
            with tempfile.TemporaryDirectory() as directory:
                experiment = make_work_c(settings, str(Path(directory) / "data"))
                figures[work] = measure(settings, experiment, settings.lanes_c, settings.rounds_c)
                figures[work] |= {"steps": count_steps(experiment, settings.rounds_c), "settings": settings.num_settings}
                floor = measure_floor(settings, experiment)
        else:
            figures[work] = measure(settings, make_work_a(settings), settings.lanes_a, settings.rounds_a)
    report(figures, floor)
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    main(tyro.cli(Settings, description=__doc__))
