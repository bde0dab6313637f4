"""``ftx.run``: an experiment from its first round to its last, with evaluation, records, checkpoints and resumption."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_tx import check, tree
from fedjax_tx.data import FederatedDataset
from fedjax_tx.simulation import Experiment, RoundFunction, RoundInfo, RoundState, make_evaluation, make_round, summarise
from fedjax_tx.simulation.evaluate import ClientMetrics
from fedjax_tx.simulation.rounds import build_round
from fedjax_tx.training import checkpoint, records
from fedjax_tx.training.ledger import bytes_a_client, charge, new_ledger
from fedjax_tx.training.progress import Reporter, make_reporter
from fedjax_tx.training.stop import EarlyStop
from fedjax_tx.types import Execution, PyTree

_SECONDS_A_CALL = 1.0  # shorter calls keep progress live; longer ones save nothing that can be measured


class RunResult(NamedTuple):
    """What a run leaves.

    params: the parameters as one tree; the pair (trainable, frozen) where those two are no one tree of nested dicts.
    state: what ``round_fn`` goes on from.
    history: a dict for each round: its number (counted from 1), ``train/loss`` and other means over the cohort, ``clients``,
    ``examples``, ``steps``, what the server said, and where it was evaluated ``test/loss``, ``test/loss/client_p10`` ...
    ledger: costs so far. client_metrics: ``{set: {metric: (value[client], weight[client])}}`` at the end. stopped: why it ended.
    """

    params: PyTree
    state: RoundState
    history: list[dict[str, Any]]
    ledger: dict[str, int]
    client_metrics: dict[str, ClientMetrics]
    stopped: str


class _Setup(NamedTuple):
    """A run ready to go: what doesn't change while it runs."""

    round_fn: RoundFunction
    evaluators: Mapping[str, Callable[[RoundState], ClientMetrics]]
    rounds: int
    evaluate_every: int
    checkpoint_every: int
    early_stop: EarlyStop | None
    directory: Path | None
    reporter: Reporter


def run(
    experiment: Experiment,
    rounds: int,
    evaluate: Mapping[str, FederatedDataset] | None = None,
    init_params: PyTree = None,
    execution: Execution | None = None,
    run_dir: str | Path | None = None,
    *,
    evaluate_every: int = 10,
    checkpoint_every: int | None = None,
    early_stop: EarlyStop | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> RunResult:
    """Runs an experiment.

    Args:
      experiment: what is computed. rounds: how many rounds in all, those before a resumption counted.
      evaluate: data sets to score every ``evaluate_every`` rounds and at the end, by name.
      init_params: parameters to start from, as ``result.params`` gives them; by default the task draws them.
      execution: how it runs. run_dir: where to leave records and checkpoints; a run found there goes on.
      checkpoint_every: rounds between checkpoints, by default ``evaluate_every``. early_stop: when to end sooner.
      config: settings of the caller (plain values), kept and compared with the experiment's own.
      progress: whether to show live progress.

    Errors: ``ValueError`` if ``run_dir`` holds another experiment, naming the fields that differ.

    Example:
      >>> import fedjax_tx as ftx, numpy as np, optax
      >>> train = ftx.data.FederatedDataset.from_columns({"x": np.eye(4, dtype=np.float32), "y": np.arange(4)}, [0, 0, 1, 1])
      >>> model = ftx.Model(lambda key: np.zeros((4, 4), np.float32), lambda params, x, *, key=None: x @ params)
      >>> algorithm = ftx.algorithms.fed_avg(ftx.tasks.classification(model), client_optimizer=optax.sgd(1.0))
      >>> experiment = ftx.Experiment(
      ...     algorithm, train=train, cohorts=ftx.data.all_clients(), local=ftx.data.LocalWork(batch_size=2))
      >>> result = run(experiment, rounds=3, evaluate={"train_set": train}, progress=False)
      >>> result.history[-1]["round"], result.ledger["client_updates"]
      (3, 6)
    """
    evaluate = {} if evaluate is None else evaluate
    execution = Execution() if execution is None else execution
    _check(experiment, rounds, evaluate, execution, run_dir, evaluate_every, checkpoint_every, early_stop, config, progress)
    directory = None if run_dir is None else Path(run_dir)
    columns = {name: jnp.asarray(column) for name, column in experiment.train.columns.items()}
    state = build_round(experiment, columns, 1, 1).init(init_params=init_params)
    evaluators = {name: make_evaluation(experiment, data) for name, data in evaluate.items()}
    if directory is not None:
        description = records.describe(experiment, state, evaluate, config or {})
        execution = _open_directory(directory, description, execution)
    reporter = make_reporter(rounds, 0, progress)
    try:
        round_fn = make_round(experiment, execution)
        if directory is not None:
            choices = {"num_lanes": round_fn.num_lanes, "rounds_per_call": round_fn.rounds_per_call}
            records.write_json(directory / "experiment.json", {"experiment": description, "execution": choices})
        checkpoint_every = evaluate_every if checkpoint_every is None else checkpoint_every
        setup = _Setup(round_fn, evaluators, rounds, evaluate_every, checkpoint_every, early_stop, directory, reporter)
        return _run(setup, state)
    finally:
        reporter.close()


def _run(setup: _Setup, state: RoundState) -> RunResult:
    """The host loop."""
    directory, manager = setup.directory, None
    history, ledger, stopped = [], new_ledger(), None
    if directory is not None:
        manager = checkpoint.open_checkpoints(directory / "checkpoints")
        restored = checkpoint.restore(manager, state)
        if restored is not None:
            state, ledger = restored
            setup.reporter.say(f"resuming after round {state.round}")
        history = _resume_records(directory, state.round, setup)
    cost = bytes_a_client(setup.round_fn, state)
    began, pace, client_metrics = time.perf_counter(), 1, None
    stopped = _why_stop(setup, history)
    while state.round < setup.rounds and stopped is None:
        count = min(pace, setup.round_fn.rounds_per_call, _until_due(setup, state.round))
        call_began = time.perf_counter()
        state, infos = setup.round_fn.run(state, count)
        seconds = time.perf_counter() - call_began
        pace = max(1, int(_SECONDS_A_CALL / (seconds / count)))
        ledger, client_metrics = charge(ledger, infos, cost), None
        lines = [_round_record(info) for info in infos]
        if state.round % setup.evaluate_every == 0 or state.round == setup.rounds:
            client_metrics = _evaluate(setup, state, lines[-1])
        history += lines
        timing = _timing(state, infos, seconds, began)
        if directory is not None:
            records.append_lines(directory / "metrics.jsonl", lines)
            records.append_lines(directory / "timing.jsonl", [timing])
        setup.reporter.update(lines[-1], timing["examples_per_second"])
        stopped = _why_stop(setup, history)
        if manager is not None and (state.round % setup.checkpoint_every == 0 or state.round == setup.rounds or stopped):
            checkpoint.save(manager, state, ledger)
    stopped = stopped or f"finished {setup.rounds} rounds"
    if client_metrics is None:
        client_metrics = {name: evaluator(state) for name, evaluator in setup.evaluators.items()}
    if directory is not None:
        last = {name: value for part in client_metrics for name, value in summarise(part, client_metrics[part]).items()}
        records.write_json(directory / "summary.json", {"stopped": stopped, "ledger": ledger, **last})
    if manager is not None:
        manager.close()
    return RunResult(_params(state), state, history, ledger, client_metrics, stopped)


def _until_due(setup: _Setup, done: int) -> int:
    """Rounds until the next evaluation, checkpoint or end."""
    every = (setup.evaluate_every, setup.checkpoint_every)
    return min(setup.rounds - done, *(period - done % period for period in every))


def _evaluate(setup: _Setup, state: RoundState, record: dict[str, Any]) -> dict[str, ClientMetrics]:
    client_metrics = {name: evaluator(state) for name, evaluator in setup.evaluators.items()}
    for name, metrics in client_metrics.items():
        record.update(summarise(name, metrics))
    return client_metrics


def _why_stop(setup: _Setup, history: list[dict[str, Any]]) -> str | None:
    if setup.early_stop is None:
        return None
    evaluated = [record for record in history if record["round"] % setup.evaluate_every == 0]
    return setup.early_stop.reason(evaluated)


def _round_record(info: RoundInfo) -> dict[str, Any]:
    scalars = {"server": info.server, "aggregation": info.aggregation}
    return {
        "round": info.round + 1,
        **{f"train/{name}": value for name, value in info.metrics.items()},
        "clients": info.num_clients,
        "examples": info.num_examples,
        "steps": info.num_steps,
        "empty": info.empty,
        **{f"{group}/{name}": value for group, said in scalars.items() for name, value in said.items() if np.ndim(value) == 0},
    }


def _timing(state: RoundState, infos: list[RoundInfo], seconds: float, began: float) -> dict[str, Any]:
    return {
        "round": state.round,
        "rounds": len(infos),
        "seconds": seconds,
        "since_start": time.perf_counter() - began,
        "examples_per_second": sum(info.num_examples for info in infos) / seconds,
        "useful": float(np.mean([info.useful for info in infos])),
    }


def _resume_records(directory: Path, done: int, setup: _Setup) -> list[dict[str, Any]]:
    """Cuts the records back to ``done`` rounds, as if the run had been stopped just there, and returns them.

    A record past the checkpoint is of rounds that will run again. An evaluation that was made only because the run was to end
    there would not have been made by a run that goes on.
    """
    sets = tuple(f"{name}/" for name in setup.evaluators)
    history = [record for record in records.read_lines(directory / "metrics.jsonl") if record["round"] <= done]
    if done < setup.rounds:
        history = [
            record
            if record["round"] % setup.evaluate_every == 0
            else {name: value for name, value in record.items() if not name.startswith(sets or ("\0",))}
            for record in history
        ]
    records.rewrite_lines(directory / "metrics.jsonl", history)
    timing = [record for record in records.read_lines(directory / "timing.jsonl") if record["round"] <= done]
    records.rewrite_lines(directory / "timing.jsonl", timing)
    return history


def _open_directory(directory: Path, description: dict[str, Any], execution: Execution) -> Execution:
    """Makes the directory, or refuses one of another experiment; returns the execution with the choices saved there."""
    directory.mkdir(parents=True, exist_ok=True)
    saved = records.read_json(directory / "experiment.json")
    if saved is None:
        return execution
    records.refuse_other(directory, saved["experiment"], description)
    chosen = {name: value for name, value in saved["execution"].items() if getattr(execution, name) == "auto"}
    return dataclasses.replace(execution, **chosen)


def _params(state: RoundState) -> PyTree:
    server = state.device.server
    return tree.join(server.params, server.frozen)


def _check(experiment, rounds, evaluate, execution, run_dir, evaluate_every, checkpoint_every, early_stop, config, progress):
    check.instance("experiment", experiment, Experiment, "an Experiment")
    check.integer("rounds", rounds, low=1)
    for name, data in check.mapping("evaluate", evaluate).items():
        check.instance(f"evaluate[{name!r}]", data, FederatedDataset, "a FederatedDataset")
        if name in ("train", "server", "aggregation", "") or "/" in name:
            check.fail_value("the names of evaluate", "without '/' and other than 'train', 'server', 'aggregation'", name)
    check.instance("execution", execution, Execution, "an Execution")
    if run_dir is not None:
        check.instance("run_dir", run_dir, (str, Path), "a path")
    check.integer("evaluate_every", evaluate_every, low=1)
    if checkpoint_every is not None:
        check.integer("checkpoint_every", checkpoint_every, low=1)
    if early_stop is not None:
        check.instance("early_stop", early_stop, EarlyStop, "an EarlyStop")
        groups = tuple(f"{name}/" for name in (*evaluate, "train"))
        if not early_stop.metric.startswith(groups):
            check.fail_value("early_stop.metric", f"to start with one of {', '.join(groups)}", early_stop.metric)
    if config is not None:
        check.mapping("config", config)
    check.boolean("progress", progress)
