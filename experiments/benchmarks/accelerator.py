"""How fast are rounds on an accelerator, and how many lanes are best there?

Question: examples a second of the works A (a decoder, all 512 clients a round), B (a convolutional network, all 200 clients) and
C (logistic regression, 1,000 of 100,000 clients), and of U (A's decoder, 1,024 clients of 32 examples each, so that no lane runs
dry), by the number of lanes, against plain loops of the same steps on the same batches, which have no clients, no aggregation and
no metrics:

* as one program, a ``scan`` over the batches, or a loop whose length is traced, as the lanes' is; this one as XLA compiles it by
  itself, and with the options that the library gives its programs on a GPU (``fedjax_tx/simulation/program.py``);
* as a Python script has it, a jitted step a batch;
* in PyTorch, a step a batch, where PyTorch and a GPU for it are installed: a whole federated round, since PyTorch has no lanes.

All run in turn, a round each (16 rounds of work C in one call); ratios are within a turn. A round is timed as a user's loop
sees it, with the host's part. All numbers of lanes end at the same parameters, up to the precision of the products: by how much
they differ is in the table, as a share of how far the round moved them. Work A is also trained with products in full float32 and
with bfloat16.

Command: python experiments/benchmarks/accelerator.py
Time: 6 minutes on an H200 where its programs are kept compiled, at first longer. Score: the tables it prints.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tiny_clients
import tyro
import works

import fedjax_tx as ftx
from fedjax_tx.simulation.program import Program

sys.path.append(str(Path(__file__).parent / "peers"))
import ours  # noqa: E402

RATE = works.LEARNING_RATE
LANES: dict[str, tuple[int, ...]] = {
    "A": (1, 8, 32, 64),
    "B": (1, 8, 32, 128),
    "C": (1, 8, 32, 128, 512),
    "U": (1, 8, 32, 128, 512),
}
ROUNDS_PER_CALL = {"A": 1, "B": 1, "C": 16, "U": 1}
SMALL: dict[str, dict[str, Any]] = {
    "A": {"clients": 12, "layers": 1, "width": 32, "length": 8},
    "B": {"clients": 6, "channels": (2, 3), "hidden": 4},
}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    works: which. lanes: lane counts to compare, by default ``LANES``. repeats: turns; the median is shown, and the lowest and
    highest. precisions: whether work A is also run in full float32 and in bfloat16, at the largest number of lanes.
    torch: whether a loop in PyTorch is timed, where it can be. out: a JSON file for the figures.
    """

    works: tuple[Literal["A", "B", "C", "U"], ...] = ("A", "B", "C", "U")
    lanes: tuple[int, ...] = ()
    repeats: int = 7
    precisions: bool = True
    torch: bool = True
    smoke: bool = False
    out: Path | None = None


class Problem(NamedTuple):
    """A work: its experiment, what is learned, its first parameters (None: drawn), and what an example's training costs."""

    name: str
    experiment: ftx.Experiment
    task: ftx.Task
    params: Any
    flops: int
    work: works.Work | None = None


def make_problem(name: str, smoke: bool, dtype=jnp.float32) -> Problem:
    """Makes work ``name``."""
    if name == "C":
        settings = tiny_clients.Settings(clients=50, clients_per_round=5) if smoke else tiny_clients.Settings()
        experiment = tiny_clients.make_experiment(settings, tiny_clients.make_data(settings))
        return Problem(name, experiment, tiny_clients.make_task(settings), None, 4 * settings.features * settings.classes)
    work = read_work("B" if name == "B" else "A", smoke)
    if name == "U":
        clients, size = (4, 16) if smoke else (1024, 32)
        rows = np.arange(clients * size) % work.offsets[-1]
        work = work._replace(columns={"tokens": work.columns["tokens"][rows]}, offsets=np.arange(clients + 1) * size)
    work = work._replace(cohorts=np.arange(work.sizes.size, dtype=np.int32)[None])
    inputs = work.columns["x"] if name == "B" else work.columns["tokens"][:, :-1]
    flops = ftx.models.describe(ours.make_model(work), inputs).training_flops
    return Problem(name, ours.make_experiment(work, dtype), ours.make_task(work, dtype), ours.to_params(work), flops, work)


def read_work(name: str, smoke: bool) -> works.Work:
    """Makes the arrays of works.py, or small ones."""
    make = works.make_transformer_work if name == "A" else works.make_convolution_work
    arrays: dict[str, Any] = make(**(SMALL[name] | {"per_round": 4} if smoke else {}))
    with tempfile.TemporaryDirectory() as directory:
        np.savez(Path(directory) / "work.npz", **arrays)
        return works.read(Path(directory) / "work.npz", name)


# ---- plain loops


def make_batches(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rows [step, batch], how many of them are real [step]) of the batches that the first cohort makes in turn."""
    round_fn = ftx.make_round(problem.experiment, ftx.Execution(num_lanes=1, mesh=None, taper=0))
    schedule = round_fn.plan(round_fn.init(init_params=problem.params), 1).schedules[0][0]
    used = schedule.count[:, 0] > 0
    first, count = schedule.first[used, 0], schedule.count[used, 0]
    position = np.arange(problem.experiment.local.batch_size)
    return schedule.order[first[:, None] + np.minimum(position, count[:, None] - 1)], count


def make_plain_loops(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Returns the plain loops over the batches of the first cohort; each call runs one from the first parameters."""
    columns = {name: jnp.asarray(column) for name, column in problem.experiment.train.columns.items()}
    params = jax.tree.map(jnp.asarray, problem.task.init(jax.random.key(0))[0] if problem.params is None else problem.params)
    rows, count = (jnp.asarray(array) for array in make_batches(problem))
    position, steps = jnp.arange(rows.shape[1]), np.int32(len(rows))

    def step(params, columns, rows, count):
        batch = {name: column[rows] for name, column in columns.items()}
        gradient = jax.grad(lambda params: ftx.clients.batch_loss(problem.task, params, (), batch, position < count, None)[0])
        return jax.tree.map(lambda leaf, slope: leaf - RATE * slope, params, gradient(params))

    def scan(params, columns, rows, count):
        return jax.lax.scan(lambda params, batch: (step(params, columns, *batch), None), params, (rows, count))[0]

    def traced(params, columns, rows, count, steps):
        return jax.lax.fori_loop(0, steps, lambda at, params: step(params, columns, rows[at], count[at]), params)

    given = params, columns, rows, count
    if problem.name == "U":
        return {"plain loop, scan": partial(jax.jit(scan), *given)}
    scanned, plain, options, one_step = jax.jit(scan), jax.jit(traced), Program(traced), jax.jit(step)

    def script():
        local = params
        for at in range(steps):
            local = one_step(local, columns, rows[at], count[at])
        return local

    return {
        "plain loop, scan": lambda: scanned(*given),
        "plain loop, traced length": lambda: plain(*given, steps),
        "plain loop, traced length, the library's options": lambda: options(*given, steps),
        "plain loop, a jitted step a batch": script,
    }


def make_torch_loop(problem: Problem) -> Callable[[], Any] | None:
    """Returns a federated round in PyTorch on its GPU, one client after another; None without these, and of works C and U."""
    try:
        import torch
        from models_torch import client_rows, make_columns, make_network, train_epoch
        from torch.nn.utils import parameters_to_vector, vector_to_parameters
    except ImportError:
        return None
    work = problem.work
    if work is None or problem.name == "U" or not torch.cuda.is_available():
        return None
    torch.set_float32_matmul_precision("high")  # TF32, as XLA's products
    network, columns = make_network(work).cuda(), tuple(column.cuda() for column in make_columns(work))
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, fused=True)
    server = parameters_to_vector(network.parameters()).detach()

    def loop():
        total = torch.zeros_like(server)
        for client in work.cohorts[0].tolist():
            vector_to_parameters(server.clone(), network.parameters())
            train_epoch(network, optimizer, client_rows(work, columns, client), work.batch_size)
            total.add_(parameters_to_vector(network.parameters()).detach(), alpha=int(work.sizes[client]))
        torch.cuda.synchronize()
        return total / int(work.sizes.sum())

    return loop


# ---- rounds


class Rounds:
    """Rounds at a number of lanes, as a user's loop runs them: the next one is planned while the device is busy."""

    def __init__(self, problem: Problem, num_lanes: int, precision: str | None = None):
        self.precision, self.rounds = precision, ROUNDS_PER_CALL[problem.name]
        with self._products():
            execution = ftx.Execution(num_lanes=num_lanes, rounds_per_call=self.rounds)
            self.round_fn = ftx.make_round(problem.experiment, execution)
        self.state = self.round_fn.init(init_params=problem.params)
        self.start = jax.device_get(self.state.device.server.params)
        self.infos: list[ftx.simulation.RoundInfo] = []

    def _products(self):
        return jax.default_matmul_precision(self.precision) if self.precision else contextlib.nullcontext()

    def __call__(self):
        with self._products():
            self.state, self.infos = self.round_fn.run(self.state, self.rounds)
        return self.state.device.server.params


def measure(problem: Problem, settings: Settings) -> list[dict[str, Any]]:
    """Seconds of all ways, turn by turn; the turn before compiles."""
    ways: dict[str, Any] = make_plain_loops(problem)
    most = problem.experiment.cohorts.max_clients(problem.experiment.train.num_clients)
    lanes = [count for count in settings.lanes or LANES[problem.name] if count <= most]
    ways |= {named(count): Rounds(problem, count) for count in lanes}
    if problem.name == "A" and settings.precisions:
        narrow = make_problem("A", settings.smoke, jnp.bfloat16)
        ways[f"{named(lanes[-1])}, float32 products"] = Rounds(problem, lanes[-1], "float32")
        ways[f"{named(lanes[-1])}, bfloat16"] = Rounds(narrow, lanes[-1])
    if settings.torch and (loop := make_torch_loop(problem)) is not None:
        ways["PyTorch, a step a batch"] = loop
    plain_counts = make_batches(problem)[1]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    counts: dict[str, list[int]] = {name: [] for name in ways}
    ends: dict[str, Any] = {}
    for _ in range(-1, settings.repeats):  # the first compiles
        for name, way in ways.items():
            began = time.perf_counter()
            ends.setdefault(name, jax.block_until_ready(way()))
            seconds[name].append(time.perf_counter() - began)
            is_rounds = isinstance(way, Rounds)
            counts[name].append(sum(info.num_examples for info in way.infos) if is_rounds else int(plain_counts.sum()))
    rows = []
    for name, way in ways.items():
        fewest = ends[named(lanes[0])]
        about = about_rounds(way, ends[name], fewest) if isinstance(way, Rounds) else {"ticks": len(plain_counts)}
        timed = {"first": seconds[name][0], "seconds": seconds[name][1:], "examples": counts[name][1:]}
        rows.append({"way": name, "flops": problem.flops, **timed, **about})
    return rows


def named(lanes: int) -> str:
    return "1 lane" if lanes == 1 else f"{lanes} lanes"


def about_rounds(way: Rounds, end, fewest) -> dict[str, Any]:
    """What only rounds have: useful slots, and how far their parameters are from those of the fewest lanes."""
    found, expected, start = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(p)]) for p in (end, fewest, way.start))
    apart = np.abs(found - expected).max() / np.abs(expected - start).max()
    schedules = way.round_fn.plan(way.state, way.rounds).schedules[0]
    ticks = sum(int(schedule.num_ticks.max()) for schedule in schedules)
    return {"useful": float(np.mean([info.useful for info in way.infos])), "apart": float(apart), "ticks": ticks}


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Prints a work's Markdown table."""
    rates = {row["way"]: np.array(row["examples"]) / np.array(row["seconds"]) for row in rows}
    shown = ("examples/s (min–max)", "of the plain loop (min–max)", "µs a tick", "TFLOP/s", "useful slots", "apart", "first, s")
    print(f"\n| work {name} | {' | '.join(shown)} |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        rate, seconds = rates[row["way"]], np.median(row["seconds"])
        ratio = rate / rates["plain loop, scan"]
        about = f"{row['useful']:.2f} | {row['apart']:.0e}" if "useful" in row else " | "
        print(
            f"| {row['way']} | {np.median(rate):,.0f} ({rate.min():,.0f}–{rate.max():,.0f}) "
            f"| {np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f}) | {1e6 * seconds / row['ticks']:.0f} "
            f"| {1e-12 * row['flops'] * np.median(rate):.2f} | {about} | {row['first']:.1f} |",
            flush=True,
        )


def main(settings: Settings) -> dict[str, Any]:
    """Measures and prints the tables."""
    if settings.smoke:
        settings = dataclasses.replace(settings, lanes=(1, 4), repeats=2)
    device = jax.devices()[0]
    print(f"{device.device_kind}, JAX {jax.__version__}, {settings.repeats} turns", flush=True)
    figures: dict[str, Any] = {"device": device.device_kind}
    for name in settings.works:
        figures[name] = measure(make_problem(name, settings.smoke), settings)
        report(name, figures[name])
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
