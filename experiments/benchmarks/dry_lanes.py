"""What do lanes cost that run dry, and what does halving them save? Work A on 8, 16 and 32 lanes.

Question: a cohort's longest client holds one lane while the others have nothing left to do. With ``Execution(taper=...)`` the
lane count halves as lanes run dry, each width a loop of its own in the compiled program: how many slots are useful then, how
many examples are trained a second, and how long does the program compile? Work A: 512 clients with log-normal sizes (median 32,
sigma 1, clipped to 4..512 examples), 32 of them a round, one epoch at batch 8; decoder of 2 layers, width 128, 4 heads, 64
tokens, 96 symbols (429,568 parameters); plain SGD. Sizes, tokens and cohorts are those of the peer benchmark's ``make_work.py``.

Each turn is one round of every program on the same cohort; a program is compared with the one on as many lanes that never halve,
by the ratio within a turn. A round before the turns compiles; JAX's own clocks tell how long lowering and XLA took.

Command: python experiments/benchmarks/dry_lanes.py
Time: about 5 minutes on 2 CPU cores. Score: the table it prints.
"""

import json
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro

import fedjax_tx as ftx


@dataclass(frozen=True)
class Settings:
    """What is measured.

    lanes: lane counts to compare. tapers: how often they halve, beside never. repeats: turns; the median is shown, and the
    lowest and highest. out: a JSON file for the figures.
    """

    lanes: tuple[int, ...] = (8, 16, 32)
    tapers: tuple[int | Literal["auto"], ...] = ("auto",)
    repeats: int = 7
    smoke: bool = False
    out: Path | None = None
    clients: int = 512
    clients_per_round: int = 32
    batch_size: int = 8
    model: dict[str, Any] = field(
        default_factory=lambda: {"vocab_size": 96, "num_layers": 2, "num_heads": 4, "width": 128, "max_length": 64}
    )


COMPILE_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")
SMOKE_MODEL = {"vocab_size": 96, "num_layers": 1, "num_heads": 1, "width": 8, "max_length": 8}


def make_work(settings: Settings) -> tuple[ftx.data.FederatedDataset, list[np.ndarray]]:
    """Random tokens for clients of log-normal sizes, and a cohort for each turn."""
    generator = np.random.default_rng(0)
    sizes = np.exp(np.log(32) + generator.standard_normal(settings.clients)).round().clip(4, 512).astype(int)
    length, vocab_size = settings.model["max_length"], settings.model["vocab_size"]
    tokens = generator.integers(0, vocab_size, (sizes.sum(), length + 1), dtype=np.int32)
    offsets = np.append(0, np.cumsum(sizes))
    data = ftx.data.FederatedDataset.from_offsets({"tokens": tokens}, offsets, np.arange(settings.clients))
    drawn = range(settings.repeats + 1)
    return data, [generator.choice(settings.clients, settings.clients_per_round, replace=False) for _ in drawn]


def main(settings: Settings) -> dict:
    """Measures and prints the table."""
    if settings.smoke:
        settings = Settings((4,), (1,), 2, True, settings.out, 40, 4, settings.batch_size, SMOKE_MODEL)
    data, cohorts = make_work(settings)
    task = ftx.tasks.next_token(ftx.models.decoder(**settings.model))
    experiment = ftx.Experiment(
        lambda hyper: ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(hyper["client_lr"])),
        hyper={"client_lr": 0.1},
        train=data,
        cohorts=ftx.data.fixed_cohorts(cohorts),
        local=ftx.data.LocalWork(batch_size=settings.batch_size, shuffle=False),
    )
    programs = {}
    for lanes in settings.lanes:
        for taper in (0, *settings.tapers):
            execution = ftx.Execution(num_lanes=lanes, taper=taper, rounds_per_call=1, mesh=None)
            round_fn = ftx.make_round(experiment, execution)
            programs[lanes, round_fn.capacities[0].halvings] = round_fn
    return report(settings, programs, *measure(settings, programs))


def measure(settings: Settings, programs: dict) -> tuple[dict, dict, dict]:
    """Returns by program: the compile seconds, and of each turn the seconds and the info; all end at the same parameters."""
    states = {name: round_fn.init() for name, round_fn in programs.items()}
    seconds: dict[Any, list[float]] = {name: [] for name in programs}
    infos: dict[Any, list] = {name: [] for name in programs}
    spent: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event in COMPILE_EVENTS:
            spent.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    compiling = {}
    for turn in range(-1, settings.repeats):  # turn -1 compiles
        for name, round_fn in programs.items():
            spent.clear()
            began = time.perf_counter()
            states[name], info = round_fn(states[name])
            seconds[name].append(time.perf_counter() - began)
            infos[name].append(info)
            if turn < 0:
                compiling[name] = sum(spent)
    params = [state.device.server.params for state in states.values()]
    jax.tree.map(lambda *leaves: [np.testing.assert_allclose(leaf, leaves[0], atol=1e-4) for leaf in leaves], *params)
    timed = {name: np.array(values[1:]) for name, values in seconds.items()}
    return compiling, timed, {name: values[1:] for name, values in infos.items()}


def report(settings: Settings, programs, compiling, seconds, infos) -> dict:
    """Prints a Markdown table and returns its figures."""
    print(f"\n{platform.machine()}, {jax.device_count()} {jax.devices()[0].platform} device(s), {settings.repeats} turns\n")
    print("| lanes | useful slots (min–max) | examples/s (min–max) | of never halving (min–max) | compile seconds |")
    print("|---|---|---|---|---|")
    rows = {}
    for (lanes, halvings), taken in seconds.items():
        told = infos[lanes, halvings]
        useful, rate = np.array([i.useful for i in told]), np.array([i.num_examples for i in told]) / taken
        ratio = seconds[lanes, 0] / taken
        widths = ", ".join(str(lanes >> halving) for halving in range(halvings + 1))
        print(
            f"| {widths} | {useful.mean():.2f} ({useful.min():.2f}–{useful.max():.2f}) "
            f"| {np.median(rate):.0f} ({rate.min():.0f}–{rate.max():.0f}) "
            f"| {np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f}) | {compiling[lanes, halvings]:.1f} |"
        )
        rows[widths] = {
            "useful": useful.tolist(),
            "examples_per_second": rate.tolist(),
            "ratio": ratio.tolist(),
            "compile_seconds": compiling[lanes, halvings],
        }
    figures = {"rows": rows}
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
