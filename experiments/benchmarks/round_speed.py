"""How fast is a round? Work A: a small decoder on log-normal client sizes, by lane count, against a plain loop.

Question: what does the federated machinery cost over a plain jitted loop of the same model on the same batches, and which lane
count is best? Work A: 512 clients with log-normal sizes (median 32, sigma 1, clipped to 4..512 examples), 32 of them a round,
one epoch at batch 8; decoder of 2 layers, width 128, 4 heads, 64 tokens, 96 symbols (429,568 parameters); plain SGD.

The plain loop is one jitted ``scan`` of SGD steps over the very batches that the round's clients make (short ones masked); it
has no clients, no start, no aggregation. Everything is timed in turn, a round each, and compared by the ratio within a turn.

Command: python experiments/benchmarks/round_speed.py
Time: about 6 minutes on 2 CPU cores. Score: the table it prints.
"""

import json
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fedjax_tx as ftx


@dataclass(frozen=True)
class Settings:
    """What is measured.

    lanes: lane counts to compare; the choice of ``num_lanes="auto"`` is added. repeats: turns; the median is shown, and the
    lowest and highest. out: a JSON file for the figures.
    """

    lanes: tuple[int, ...] = (1, 2, 4, 8, 32)
    repeats: int = 7
    smoke: bool = False
    out: Path | None = None
    clients: int = 512
    clients_per_round: int = 32
    batch_size: int = 8
    model: dict[str, Any] = field(
        default_factory=lambda: {"vocab_size": 96, "num_layers": 2, "num_heads": 4, "width": 128, "max_length": 64}
    )


def make_data(settings: Settings) -> ftx.data.FederatedDataset:
    """Random tokens for clients of log-normal sizes."""
    generator = np.random.default_rng(0)
    sizes = np.exp(np.log(32) + generator.standard_normal(settings.clients)).round().clip(4, 512).astype(int)
    length, vocab_size = settings.model["max_length"], settings.model["vocab_size"]
    tokens = generator.integers(0, vocab_size, (sizes.sum(), length + 1), dtype=np.int32)
    return ftx.data.FederatedDataset.from_columns({"tokens": tokens}, np.repeat(np.arange(settings.clients), sizes))


def make_plain_loop(task: ftx.Task, learning_rate: float):
    """Returns the speed of light: ``loop(params, tokens[step, batch, time], mask[step, batch]) -> params``."""

    def loss(params, tokens, mask):
        return ftx.clients.batch_loss(task, params, (), {"tokens": tokens}, mask, None)[0]

    def step(params, batch):
        gradient = jax.grad(loss)(params, *batch)
        return jax.tree.map(lambda leaf, slope: leaf - learning_rate * slope, params, gradient), None

    return jax.jit(lambda params, tokens, mask: jax.lax.scan(step, params, (tokens, mask))[0])


def round_batches(data: ftx.data.FederatedDataset, clients: np.ndarray, batch_size: int):
    """Returns (tokens, mask) of all batches that these clients make; short ones repeat their first row."""
    tokens, masks = [], []
    for client in clients:
        rows = data.client(int(client))["tokens"]
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            mask = np.arange(batch_size) < len(batch)
            tokens.append(np.concatenate([batch, np.repeat(batch[:1], batch_size - len(batch), 0)]))
            masks.append(mask)
    return jnp.asarray(np.stack(tokens)), jnp.asarray(np.stack(masks))


def main(settings: Settings) -> dict:
    """Measures and prints the table."""
    if settings.smoke:
        small = {"vocab_size": 96, "num_layers": 1, "num_heads": 2, "width": 16, "max_length": 16}
        settings = Settings((1, 2), 2, True, settings.out, 32, 4, settings.batch_size, small)
    data = make_data(settings)
    task = ftx.tasks.next_token(ftx.models.decoder(**settings.model))
    generator = np.random.default_rng(1)
    choose = [generator.choice(settings.clients, settings.clients_per_round, replace=False) for _ in range(64)]
    experiment = ftx.Experiment(
        lambda hyper: ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(hyper["client_lr"])),
        hyper={"client_lr": 0.1},
        train=data,
        cohorts=ftx.data.fixed_cohorts(choose),
        local=ftx.data.LocalWork(batch_size=settings.batch_size, shuffle=False),
    )
    began = time.perf_counter()
    auto = ftx.make_round(experiment)
    print(f"num_lanes='auto' chose {auto.num_lanes} in {time.perf_counter() - began:.0f} s")
    rounds = {lanes: ftx.make_round(experiment, ftx.Execution(num_lanes=lanes)) for lanes in settings.lanes}
    rounds.setdefault(auto.num_lanes, auto)
    seconds, useful, examples = measure(settings, data, task, rounds, choose)
    return report(settings, seconds, useful, examples, auto.num_lanes)


def measure(settings, data, task, rounds, choose):
    """Times the plain loop and a round at each lane count, turn by turn."""
    loop = make_plain_loop(task, 0.1)
    params, _ = task.init(jax.random.key(0))
    states = {lanes: round_fn.init() for lanes, round_fn in rounds.items()}
    seconds: dict[Any, list[float]] = {name: [] for name in ("plain", *rounds)}
    useful: dict[int, list[float]] = {lanes: [] for lanes in rounds}
    examples = []
    compiled = {}
    for turn in range(-1, settings.repeats):  # turn -1 compiles
        # The same cohort for all systems, so that a turn's ratios compare the same work.
        batches = round_batches(data, choose[turn + 1], settings.batch_size)
        if batches[0].shape not in compiled:
            compiled[batches[0].shape] = jax.block_until_ready(loop(params, *batches))
        began = time.perf_counter()
        jax.block_until_ready(loop(params, *batches))
        timings = {"plain": time.perf_counter() - began}
        for lanes, round_fn in rounds.items():
            began = time.perf_counter()
            states[lanes], info = round_fn(states[lanes])
            timings[lanes] = time.perf_counter() - began
            if turn >= 0:
                useful[lanes].append(info.useful)
        if turn >= 0:
            examples.append(info.num_examples)
            for name, value in timings.items():
                seconds[name].append(value)
    return seconds, useful, examples


def report(settings, seconds, useful, examples, auto_lanes) -> dict:
    """Prints a Markdown table and returns its figures."""
    rates = {name: np.array(examples) / np.array(values) for name, values in seconds.items()}
    print(f"\n{platform.machine()}, {jax.device_count()} {jax.devices()[0].platform} device(s), {settings.repeats} turns\n")
    print("| lanes | examples/s (min–max) | of the plain loop (min–max) | useful slots |")
    print("|---|---|---|---|")
    rows = {}
    for name, rate in rates.items():
        ratio = rate / rates["plain"]
        share = float(np.mean(useful[name])) if name in useful else float("nan")
        label = f"{name} (auto)" if name == auto_lanes else str(name)
        shown = "" if name == "plain" else f"{share:.2f}"
        print(
            f"| {label} | {np.median(rate):.0f} ({rate.min():.0f}–{rate.max():.0f}) "
            f"| {np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f}) | {shown} |"
        )
        rows[str(name)] = {"examples_per_second": rate.tolist(), "ratio": ratio.tolist(), "useful": share}
    best = max((name for name in rates if name != "plain"), key=lambda name: np.median(rates[name]))
    against = np.median(rates[auto_lanes] / rates[best])
    print(f"\nbest: {best} lanes; auto chose {auto_lanes}, at {against:.2f} of the best")
    figures = {"rows": rows, "best": int(best), "auto": int(auto_lanes), "auto_of_best": float(against)}
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
