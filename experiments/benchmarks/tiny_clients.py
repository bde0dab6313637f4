"""Many tiny clients: what does a round cost when there is nothing but overhead? Work C, against the bare arithmetic.

Question: how far is a round of many small clients from the time that its arithmetic takes as one big jitted computation, how
much of it is the host's, and which lane count is best? Work C: 100,000 clients of log-normal sizes (median 16, sigma 1, clipped
to 1..200 examples), 1,000 of them a round, drawn uniformly; logistic regression of 60 features on 10 classes, batch 10, 1 epoch.

The bare arithmetic has no clients, schedule, metrics or checks: batches lie ready on the device, clients lie side by side
(``vmap``), one ``scan`` makes their steps, and a weighted sum of what they moved is the update. Clients are sorted by size and
cut into groups, each padded to its longest: all together, by powers of two of their steps, or one group for each number of
steps; the best of the three counts. The loop over clients calls one jitted step for each batch, as a script would.

All are timed in turn on the same cohort, and compared by the ratio within a turn; all end at the same parameters to 1e-4.

Command: python experiments/benchmarks/tiny_clients.py
Time: about a minute on 2 CPU cores. Score: the tables it prints.
"""

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fedjax_tx as ftx
from fedjax_tx.simulation.round import run_rounds

RATE = 0.1
TOLERANCE = 1e-4
GROUPINGS = ("all together", "powers of two", "each number of steps")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    lanes: lane counts to compare; the choice of ``num_lanes="auto"`` is added. repeats: turns; the median is shown, and the
    lowest and highest. shuffle: whether clients go through their examples in a new order. out: a JSON file for the figures.
    """

    lanes: tuple[int, ...] = (16, 64, 128, 256, 1000)
    repeats: int = 7
    shuffle: bool = False
    smoke: bool = False
    out: Path | None = None
    clients: int = 100_000
    clients_per_round: int = 1_000
    features: int = 60
    classes: int = 10
    batch_size: int = 10


def make_data(settings: Settings) -> ftx.data.FederatedDataset:
    """Random features and classes for clients of log-normal sizes."""
    generator = np.random.default_rng(0)
    sizes = np.exp(np.log(16) + generator.standard_normal(settings.clients)).round().clip(1, 200).astype(int)
    rows = int(sizes.sum())
    columns = {
        "x": generator.standard_normal((rows, settings.features), np.float32),
        "y": generator.integers(0, settings.classes, rows, dtype=np.int32),
    }
    return ftx.data.FederatedDataset.from_offsets(columns, np.append(0, np.cumsum(sizes)))


def make_task(settings: Settings) -> ftx.Task:
    """A logistic regression."""

    def init(key):
        return {"w": jnp.zeros((settings.features, settings.classes)), "b": jnp.zeros(settings.classes)}

    return ftx.tasks.classification(ftx.Model(init, lambda params, x, *, key=None: x @ params["w"] + params["b"]))


def make_experiment(settings: Settings, data: ftx.data.FederatedDataset) -> ftx.Experiment:
    """Federated averaging of a logistic regression."""
    task = make_task(settings)
    return ftx.Experiment(
        lambda hyper: ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(hyper["client_lr"])),
        hyper={"client_lr": RATE},
        train=data,
        cohorts=ftx.data.uniform_cohorts(settings.clients_per_round),
        local=ftx.data.LocalWork(batch_size=settings.batch_size, shuffle=settings.shuffle),
    )


def step(params, x, y, mask):
    """One step of SGD on the real rows of a batch; none moves nothing."""

    def loss(params):
        values = optax.softmax_cross_entropy_with_integer_labels(x @ params["w"] + params["b"], y)
        return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)

    return jax.tree.map(lambda leaf, slope: leaf - RATE * slope, params, jax.grad(loss)(params))


@jax.jit
def bare_round(params, groups):
    """The round's arithmetic and nothing else; ``groups`` are (x, y, mask [step, client, batch ...], size [client])."""
    total, weight = jax.tree.map(jnp.zeros_like, params), 0.0
    for *batches, sizes in groups:
        start = jax.tree.map(lambda leaf, sizes=sizes: jnp.broadcast_to(leaf, (sizes.size, *leaf.shape)), params)
        end, _ = jax.lax.scan(lambda local, batch: (jax.vmap(step)(local, *batch), None), start, tuple(batches))
        moved = jax.tree.map(lambda leaf, before: jnp.tensordot(sizes, before - leaf, 1), end, start)  # noqa: B023
        total, weight = jax.tree.map(jnp.add, total, moved), weight + sizes.sum()
    return jax.tree.map(lambda leaf, moved: leaf - moved / weight, params, total)


def make_groups(settings: Settings, plan, columns: dict, grouping: str) -> list:
    """Lays the batches of a planned cohort side by side; short batches and clients are masked."""
    rows, steps = client_rows(plan)
    order = np.argsort(-steps, kind="stable")
    keys = {"all together": 0 * steps, "powers of two": np.ceil(np.log2(steps)), "each number of steps": steps}[grouping]
    groups = []
    for key in np.unique(keys):
        members = [client for client in order if keys[client] == key]
        longest = int(steps[members[0]])
        taken = np.zeros((longest, len(members), settings.batch_size), np.int64)
        mask = np.zeros(taken.shape, bool)
        for place, client in enumerate(members):
            own = np.arange(longest * settings.batch_size) < len(rows[client])
            mask[:, place] = own.reshape(longest, -1)
            taken[:, place][mask[:, place]] = rows[client]
        sizes = np.array([len(rows[client]) for client in members], np.float32)
        groups.append(jax.device_put((columns["x"][taken], columns["y"][taken], mask, sizes)))
    return groups


def client_rows(plan) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns for each client of a planned round the rows of its epoch in order, and how many steps it makes."""
    schedule = plan.schedules[0][0]
    size = plan.cohorts[0].ids.size
    ends = np.cumsum(schedule.num_examples[:size])
    return np.split(schedule.order[: ends[-1]], ends[:-1]), schedule.num_steps[:size]


def make_client_loop(settings: Settings, plan, columns: dict):
    """Returns ``loop(params) -> params``: clients one by one, a call of a jitted step for each batch."""
    rows, _ = client_rows(plan)
    one_step = jax.jit(step)
    add = jax.jit(lambda total, before, after, size: jax.tree.map(lambda t, a, b: t + size * (a - b), total, before, after))
    position = np.arange(settings.batch_size)

    def loop(params):
        total = jax.tree.map(jnp.zeros_like, params)
        for own in rows:
            local = params
            for first in range(0, len(own), settings.batch_size):
                taken = own[np.minimum(first + position, len(own) - 1)]
                local = one_step(local, columns["x"][taken], columns["y"][taken], first + position < len(own))
            total = add(total, params, local, np.float32(len(own)))
        examples = sum(map(len, rows))
        return jax.tree.map(lambda leaf, moved: leaf - moved / examples, params, total)

    return loop


def main(settings: Settings) -> dict:
    """Measures and prints the tables."""
    if settings.smoke:
        settings = Settings((2, 4), 2, settings.shuffle, True, settings.out, 50, 5, 6, 3, 4)
    data = make_data(settings)
    experiment = make_experiment(settings, data)
    began = time.perf_counter()
    auto = ftx.make_round(experiment)
    chosen = time.perf_counter() - began
    print(f"num_lanes='auto' chose {auto.num_lanes} in {chosen:.0f} s")
    lanes = sorted({*settings.lanes, auto.num_lanes})
    rounds = {count: ftx.make_round(experiment, ftx.Execution(num_lanes=count, rounds_per_call=1)) for count in lanes}
    seconds, useful = measure(settings, data, rounds)
    parts = measure_parts(settings, rounds[auto.num_lanes])
    return report(settings, seconds, useful, parts, auto.num_lanes)


def measure(settings, data, rounds) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Times everything turn by turn on the cohort of round 0, and compares the parameters that come out."""
    a_round = next(iter(rounds.values()))
    start = a_round.init()
    params, plan = start.device.server.params, a_round.plan(start, 1)
    systems: dict[str, Any] = {}
    for grouping in GROUPINGS:
        groups = make_groups(settings, plan, data.columns, grouping)
        systems[f"bare, {grouping}"] = lambda groups=groups: bare_round(params, groups)
    for count, round_fn in rounds.items():
        systems[f"{count} lanes"] = lambda round_fn=round_fn: round_fn.run(start, 1, then=0)[0].device.server.params
    loop = make_client_loop(settings, plan, data.columns)
    systems["loop over clients"] = lambda: loop(params)
    useful = {f"{count} lanes": round_fn.run(start, 1, then=0)[1][0].useful for count, round_fn in rounds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    wanted = jax.block_until_ready(systems["bare, all together"]())
    for turn in range(-1, settings.repeats):  # turn -1 compiles
        for name, system in systems.items():
            began = time.perf_counter()
            end = jax.block_until_ready(system())
            took = time.perf_counter() - began
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), end, wanted)
            if turn >= 0:
                seconds[name].append(took)
    return {name: np.array(values) for name, values in seconds.items()}, useful


def measure_parts(settings, round_fn) -> dict[str, np.ndarray]:
    """Times the parts of a round: sampling and scheduling, handing over to the device, the device, reading what it says."""
    state = round_fn.init()
    parts: dict[str, list[float]] = {"sampling and scheduling": [], "handing over": [], "device": [], "whole round": []}
    for turn in range(-1, settings.repeats):
        ticks = [time.perf_counter()]
        plan = round_fn.plan(state, 1)
        ticks.append(time.perf_counter())
        maker, batch_sizes, *arrays = round_fn.arguments(state, plan)
        arrays = jax.block_until_ready(jax.device_put(arrays))
        ticks.append(time.perf_counter())
        jax.block_until_ready(run_rounds(maker, batch_sizes, *arrays))
        ticks.append(time.perf_counter())
        state, _ = round_fn(state)
        ticks.append(time.perf_counter())
        if turn >= 0:
            for name, took in zip(parts, np.diff(ticks), strict=True):
                parts[name].append(took)
    return {name: np.array(values) for name, values in parts.items()}


def report(settings, seconds, useful, parts, auto_lanes) -> dict:
    """Prints two Markdown tables and returns their figures."""
    bare = min((name for name in seconds if name.startswith("bare")), key=lambda name: np.median(seconds[name]))
    print(f"\n{platform.machine()}, {jax.device_count()} {jax.devices()[0].platform} device(s), {settings.repeats} turns\n")
    print(f"| system | ms a round (min–max) | times `{bare}` (min–max) | useful slots |\n|---|---|---|---|")
    rows = {}
    for name, took in seconds.items():
        ratio = took / seconds[bare]
        label = f"{name} (auto)" if name == f"{auto_lanes} lanes" else name
        print(
            f"| {label} | {1e3 * np.median(took):.1f} ({1e3 * took.min():.1f}–{1e3 * took.max():.1f}) "
            f"| {np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f}) | {useful.get(name, ''):.4} |"
        )
        rows[name] = {"seconds": took.tolist(), "ratio": ratio.tolist(), "useful": useful.get(name)}
    print(f"\n| part of a round at {auto_lanes} lanes | ms (min–max) | of the whole (min–max) |\n|---|---|---|")
    for name, took in parts.items():
        share = took / parts["whole round"]
        print(
            f"| {name} | {1e3 * np.median(took):.2f} ({1e3 * took.min():.2f}–{1e3 * took.max():.2f}) "
            f"| {np.median(share):.3f} ({share.min():.3f}–{share.max():.3f}) |"
        )
    figures = {"rows": rows, "bare": bare, "auto": auto_lanes, "parts": {name: took.tolist() for name, took in parts.items()}}
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
