"""What federation costs in loss: the same model trained centrally on as many examples; part of experiments/shakespeare.py.

Central training shuffles the text of all roles together and takes Adam steps on batches of 12 (as nanoGPT's README does for this
size of model), with the rate of {1e-3, 3e-3, 1e-2} that ends best on the test text, and the federated server's warm-up and decay.
All are scored on the same text by the same code: the whole test text of the training roles, and the unseen plays. The curves are
scored on the way, on the test text of 64 of these roles, and end a little elsewhere.

Beside the run that was configured stands plain federated averaging (arXiv 1602.05629): 16 roles a round drawn uniformly, four
local steps of SGD on batches of 8, the mean weighted by text. And the run is made again with 2, 4 and 8 times the examples until
its gap to central training (on the examples of the first) is 0.10 nats or less.

Command: python experiments/shakespeare.py --compare-central. It leaves in the run directory: central.png, central.json, and
a folder for each further run; started again it goes on where it was (a central run from its beginning).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx.data.schedule import count_steps
from fedjax_tx.training import records

RATES = (1e-3, 3e-3, 1e-2)
BATCH_SIZE = 12
POINTS = 15
SMALL_GAP = 0.10
MULTIPLES = (2, 4, 8)


def compare(settings, run, train: Callable, schedule: Callable) -> dict[str, Any]:
    """Trains centrally, plainly and longer, and leaves a table and a picture.

    Args:
      settings, run: the federated run that is compared, and its settings. train: ``train(settings) -> run``.
      schedule: ``schedule(rate, steps)``, of Adam's rate.
    """
    examples = run.result.ledger["examples"]
    centrals = [central_once(settings.run_dir / f"central-{rate}.json", run, schedule, rate, examples) for rate in RATES]
    best = min(centrals, key=lambda one: one["scores"]["test/loss"])
    plain = train(plain_settings(settings, run.experiment.train.client_sizes, examples))
    configured = summary(run)
    rows = {
        f"central, Adam at {best['rate']}": {**best, "rounds": None},
        "federated, as configured": configured,
        "plain federated averaging": summary(plain),
    }
    longest, multiples = configured, iter(() if settings.smoke else MULTIPLES)
    while gap(longest, best) > SMALL_GAP and (multiple := next(multiples, None)) is not None:
        longer = {"rounds": settings.rounds * multiple, "run_dir": settings.run_dir / f"times-{multiple}"}
        longest = summary(train(dataclasses.replace(settings, **longer)))
        rows[f"federated, {multiple} x the examples"] = longest
    records.write_json(settings.run_dir / "central.json", {"rows": rows, "rates": centrals})
    print_table(rows, best)
    plot(rows, run.evaluate["test"].num_clients, settings.run_dir / "central.png")
    return rows


def plain_settings(settings, client_sizes: np.ndarray, examples: int):
    """Plain federated averaging for about as many examples: small roles fill their batches only in part."""
    size = {"local_steps": 4, "batch_size": 8}
    _, rows = count_steps(client_sizes, ftx.data.LocalWork(batch_size=8, steps=4))
    rounds = max(1, round(examples / (settings.clients_per_round * rows.mean())))
    every = max(1, rounds // POINTS)
    method = {"cohorts": "uniform", "server": "sgd", "server_lr": 1.0, "client_lr": 0.3}
    where = {"run_dir": settings.run_dir / "plain", "rounds": rounds, "evaluate_every": every}
    return dataclasses.replace(settings, **size, **method, **where)


def central_once(path: Path, run, schedule: Callable, rate: float, examples: int) -> dict[str, Any]:
    """Returns what ``train_central`` gave, from its file if it is there."""
    have = records.read_json(path)
    if have is not None and (have["rate"], have["examples"]) == (rate, examples):
        return have
    result = train_central(run, schedule, rate, examples)
    print(f"central, Adam at {rate}: test/loss {result['scores']['test/loss']:.4f}", flush=True)
    records.write_json(path, result)
    return result


def train_central(run, schedule: Callable, rate: float, examples: int) -> dict[str, Any]:
    """Trains the run's model on the examples of all its clients together; returns curve and scores."""
    columns = {name: jnp.asarray(column) for name, column in run.experiment.train.columns.items()}
    steps = max(1, examples // BATCH_SIZE)
    optimizer = optax.adam(schedule(rate, steps), b2=0.95)
    params, frozen = run.task.init(jax.random.key(run.experiment.seed))
    everything = jnp.ones(BATCH_SIZE, bool)

    @jax.jit
    def train(carry, rows):
        def step(carry, chosen):
            params, state = carry
            batch = {name: column[chosen] for name, column in columns.items()}

            def loss(params):
                return ftx.clients.batch_loss(run.task, params, frozen, batch, everything, None)[0]

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, rows)[0]

    evaluate = ftx.make_evaluation(run.experiment, run.evaluate["test"])
    order = central_order(run.experiment.train.num_examples, steps, run.experiment.seed)
    carry, curve, done = (params, optimizer.init(params)), [], 0
    for rows in np.array_split(order, min(POINTS, steps)):
        carry = train(carry, rows)
        done += rows.size
        state = with_params(run.result.state, carry[0])
        curve.append([done, ftx.summarise("test", evaluate(state))["test/loss"]])
    return {"rate": rate, "examples": examples, "curve": curve, "scores": score(run, carry[0])}


def central_order(num_examples: int, steps: int, seed: int) -> np.ndarray:
    """Rows of each step, [step, batch]: the whole data in a new order, again and again."""
    generator = np.random.default_rng(seed)
    epochs = -(-steps * BATCH_SIZE // num_examples)
    rows = np.concatenate([generator.permutation(num_examples) for _ in range(epochs)])
    return rows[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)


def with_params(state, params):
    """The state of a run with other parameters at the server, for its evaluation."""
    server = state.device.server._replace(params=params)
    return state._replace(device=state.device._replace(server=server))


def score(run, params) -> dict[str, float]:
    """Loss and accuracy on every client of test and unseen, as for federated runs."""
    scores = {}
    for name in ("test", "unseen"):
        evaluate = ftx.make_evaluation(run.experiment, getattr(run.splits, name))
        scores.update(ftx.summarise(name, evaluate(with_params(run.result.state, params))))
    return scores


def summary(run) -> dict[str, Any]:
    """Curve and scores of a federated run."""
    seen = np.cumsum([record["examples"] for record in run.result.history]).tolist()
    curve = [
        [done, record["test/loss"], record["round"]]
        for done, record in zip(seen, run.result.history, strict=True)
        if "test/loss" in record
    ]
    ledger = run.result.ledger
    return {"examples": ledger["examples"], "rounds": ledger["rounds"], "curve": curve, "scores": run.scores}


def gap(row: dict[str, Any], central: dict[str, Any]) -> float:
    """Nats a character between a run and the central one, on all test text."""
    return row["scores"]["test/loss"] - central["scores"]["test/loss"]


def print_table(rows: dict[str, dict], central: dict) -> None:
    """Prints the comparison in Markdown."""
    print("\n| training | rounds | examples | test loss | gap | unseen loss |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        losses = row["scores"]["test/loss"], gap(row, central), row["scores"]["unseen/loss"]
        shown = "" if row["rounds"] is None else f"{row['rounds']:,}"
        print(f"| {name} | {shown} | {row['examples']:,} | {losses[0]:.3f} | {losses[1]:+.3f} | {losses[2]:.3f} |")


def plot(rows: dict[str, dict], roles: int, path: Path) -> None:
    """Draws the test loss of as many roles against examples, and against rounds where there are rounds."""
    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    by_examples, by_rounds = figure.subplots(1, 2)
    for name, row in rows.items():
        curve = np.array([point[:2] for point in row["curve"]])
        (line,) = by_examples.plot(curve[:, 0], curve[:, 1], marker="o", ms=3, label=name)
        if row["rounds"] is not None:
            numbers = [point[2] for point in row["curve"]]
            by_rounds.plot(numbers, curve[:, 1], marker="o", ms=3, label=name, color=line.get_color())
    for axes, label in ((by_examples, "examples of 64 characters"), (by_rounds, "rounds")):
        axes.set(xlabel=label, ylabel=f"test loss of {roles} roles (nats a character)", xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path)
