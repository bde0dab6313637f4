"""``ftx.run``: an experiment from its first round to its last, with evaluation, records, checkpoints and resumption."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_tx import check, processes, tree
from fedjax_tx.data import FederatedDataset
from fedjax_tx.privacy import Budget
from fedjax_tx.simulation import Experiment, RoundFunction, RoundInfo, RoundState, make_evaluation, make_round, summarise
from fedjax_tx.simulation.evaluate import ClientMetrics, Evaluation
from fedjax_tx.simulation.mesh import resolve_mesh
from fedjax_tx.simulation.rounds import build_round
from fedjax_tx.training import records
from fedjax_tx.training.arguments import check_metrics, check_more, check_run
from fedjax_tx.training.directory import Kept, Start, Store, no_store, open_store, read_choices, read_run_dir, writing
from fedjax_tx.training.interrupt import delayed_interrupt, interruption
from fedjax_tx.training.ledger import bytes_a_client, charge, new_ledger
from fedjax_tx.training.private import Plan, described, keep_metrics_private, plan_rounds
from fedjax_tx.training.progress import Reporter, make_reporter
from fedjax_tx.training.stop import EarlyStop, is_better
from fedjax_tx.types import Execution, PyTree

SECONDS_A_CALL = 1.0  # shorter calls keep progress live; longer ones save nothing that can be measured


class Best(NamedTuple):
    """The round after which a metric was best, of those after which it was evaluated.

    params, state: as those of a ``RunResult``, after that round.
    """

    metric: str
    value: float
    round: int
    params: PyTree
    state: RoundState


class RunResult(NamedTuple):
    """What a run leaves.

    params: the parameters as one tree; the pair (trainable, frozen) where those two are no one tree of nested dicts.
    state: what ``round_fn`` goes on from.
    history: a dict for each round: its number (counted from 1), ``train/loss`` and other means over the cohort, ``clients``,
    ``examples``, ``steps``, what the server said, and where it was evaluated ``test/loss``, ``test/loss/client_p10`` ...
    ledger: costs so far; of a private run also ``epsilon`` and ``delta``. stopped: why it ended.
    client_metrics: ``{set: {metric: (value[client], weight[client])}}`` at the end.
    privacy: what epsilon covers and what it does not; None where it is not accounted for.
    best: what ``keep_best`` kept; None without it, or where the metric was nowhere finite.
    """

    params: PyTree
    state: RoundState
    history: list[dict[str, Any]]
    ledger: dict[str, int | float]
    client_metrics: dict[str, ClientMetrics]
    stopped: str
    privacy: str | None = None
    best: Best | None = None


Callback = Callable[[list[dict[str, Any]], RoundState], str | None]


class _Setup(NamedTuple):
    """A run ready to go: what doesn't change while it runs."""

    round_fn: RoundFunction
    evaluators: Mapping[str, Evaluation]
    plan: Plan
    evaluate_every: int
    checkpoint_every: int
    early_stop: EarlyStop | None
    keep_best: str | None
    callback: Callback | None
    directory: Path | None
    store: Store
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
    keep_best: str | None = None,
    callback: Callback | None = None,
    privacy: Budget | None = None,
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
      keep_best: a metric of an evaluation, such as ``"test/loss"``; ``result.best`` is then how the run stood when that was best:
        lowest where its name has the word ``loss``, ``error`` or ``perplexity`` in it, else highest. Kept in ``run_dir`` too.
      callback: ``callback(records, state)`` after each call of the compiled program, with the records of its rounds, for loggers
        and figures of your own (``rounds_per_call=1``: after each round). Gives None, or why the run is to end.
      privacy: accounts for it in the ledger, and ends the run when it is spent: ``ftx.privacy.Budget(delta=1e-6, epsilon=8.0)``.
        It covers the parameters, and of the metrics in the records those that it makes private; ``result.privacy`` says so.
      config: settings of the caller (plain values), kept and compared with the experiment's own.
      progress: whether to show live progress.

    In several processes (``python -m fedjax_tx.launch``) each calls this alike; the first alone reads and writes ``run_dir``.

    With a ``run_dir``, Ctrl-C ends the run after the rounds under way with a checkpoint, and raises ``KeyboardInterrupt``; a
    second one ends it at once. So does a scheduler's SIGTERM, with ``SystemExit``. However a run ended, the same call goes on
    from the last checkpoint, bit for bit.

    Errors: ``ValueError`` if ``run_dir`` holds another experiment, naming the fields that differ, or more rounds, or only damaged
    checkpoints (where the one before can be used, a warning names the damaged one), or another process is running there.
    ``OSError`` if it can't be written.

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
    check_run(experiment, rounds, evaluate, execution, run_dir, evaluate_every, checkpoint_every, early_stop, config, progress)
    check_more(evaluate, early_stop, keep_best, callback, privacy)
    if isinstance(init_params, RunResult):
        check.fail_type("init_params", "parameters, such as the .params of a result", init_params)
    experiment = keep_metrics_private(experiment, privacy)
    directory = read_run_dir(run_dir)
    mesh = resolve_mesh(execution)
    maker = build_round(experiment, {}, 1, Execution(), mesh)
    evaluators = {name: make_evaluation(experiment, data, execution) for name, data in evaluate.items()}
    check_metrics(experiment, evaluators, maker.shapes(init_params), early_stop, keep_best)
    first = maker.init(init_params=init_params)
    plan = plan_rounds(experiment, first, rounds, privacy)
    store, start = no_store(), Start(first, new_ledger(), [])
    if directory is not None or jax.process_count() > 1:
        told = records.describe(experiment, first, evaluate, evaluate_every, config or {}, init_params)
        description = {**told, **described(experiment, privacy)}
        called = {"rounds": rounds, "run_dir": str(directory), "checkpoint_every": checkpoint_every, "execution": repr(execution)}
        processes.check_same("what is run", {**description, **called})
    if directory is not None:
        execution = _with_choices(execution, read_choices(directory, description))
        evaluated = partial(_belongs, tuple(evaluate), evaluate_every)
        store, start = open_store(directory, first, plan.rounds, evaluated, keep_best)
    reporter = make_reporter(plan.rounds, start.state.round, progress and processes.is_first())
    try:
        if start.state.round:
            reporter.say(f"resuming after round {start.state.round}")
        if plan.note is not None:
            reporter.say(plan.note)
        round_fn = make_round(experiment, execution)
        if directory is not None and processes.is_first():
            _write_experiment(directory, description, execution, round_fn)
        checkpoint_every = evaluate_every if checkpoint_every is None else checkpoint_every
        ends = (evaluate_every, checkpoint_every, early_stop, keep_best, callback)
        return _run(_Setup(round_fn, evaluators, plan, *ends, directory, store, reporter), start)
    finally:
        reporter.close()
        store.close()


def _write_experiment(directory: Path, description: dict[str, Any], execution: Execution, round_fn: RoundFunction) -> None:
    """Leaves what is run, and what was chosen for this machine, in the directory."""
    choices = {"num_lanes": round_fn.num_lanes, "rounds_per_call": round_fn.rounds_per_call}
    choices = {} if execution.debug else choices  # those of debugging are nobody's choice
    with writing("experiment.json", directory):
        records.write_json(directory / "experiment.json", {"experiment": description, "execution": choices})


def _run(setup: _Setup, start: Start) -> RunResult:
    """The host loop."""
    state, ledger, history, rounds, best = start.state, start.ledger, list(start.history), setup.plan.rounds, start.best
    cost = bytes_a_client(setup.round_fn, state)
    began, count, pace, client_metrics = time.perf_counter(), 1, 1, None
    stopped, ending = _why_stop(setup, history), 0
    with delayed_interrupt(setup.directory is not None) as interrupted:
        while state.round < rounds and stopped is None and not ending:
            left = until_due(state.round + count, rounds, setup.evaluate_every, setup.checkpoint_every)
            then = min(pace, setup.round_fn.rounds_per_call, left)  # 0 behind the last call
            call_began = time.perf_counter()
            state, infos = setup.round_fn.run(state, count, then)
            (seconds,) = processes.largest(time.perf_counter() - call_began)
            count, pace = then, max(1, int(SECONDS_A_CALL / (seconds / count)))
            ledger, client_metrics = charge(ledger, infos, cost), None
            lines = [round_record(info) for info in infos]
            due = state.round % setup.evaluate_every == 0
            if due or state.round == rounds:
                client_metrics = {name: evaluator(state) for name, evaluator in setup.evaluators.items()}
                lines[-1].update(summarise_sets(client_metrics))
            history += lines
            if due and setup.keep_best is not None and is_better(setup.keep_best, lines[-1], best):
                best = Kept(lines[-1][setup.keep_best], state)
                setup.store.keep(best)
            timing = _timing(state, infos, seconds, began)
            setup.store.append(lines, timing)
            _say_left_out(setup, infos)
            setup.reporter.update(lines[-1], timing["examples_per_second"])
            stopped, ending = _why_stop(setup, history) if due else None, _anywhere(interrupted)
            asked = None if setup.callback is None else setup.callback(lines, state)
            stopped = stopped or asked
            if stopped or ending or state.round % setup.checkpoint_every == 0 or state.round == rounds:
                setup.store.save(state, {**ledger, **setup.plan.told(state.round)})
    ledger = {**ledger, **setup.plan.told(state.round)}  # also of a run that was finished before
    signal_number = _anywhere(interrupted)
    if signal_number:
        raise interruption(signal_number, _say_interrupted(setup, state))
    stopped = stopped or setup.plan.reason or f"finished {rounds} rounds"
    if client_metrics is None:
        client_metrics = {name: evaluator(state) for name, evaluator in setup.evaluators.items()}
    privacy = {} if setup.plan.note is None else {"privacy": setup.plan.note}
    setup.store.finish({"stopped": stopped, "ledger": ledger, **privacy, **summarise_sets(client_metrics)})
    kept = None if best is None else Best(setup.keep_best or "", best.value, best.state.round, _params(best.state), best.state)
    return RunResult(_params(state), state, history, ledger, client_metrics, stopped, setup.plan.note, kept)


def _anywhere(interrupted: Callable[[], int]) -> int:
    """The signal by which any process was interrupted, or 0: all end after the same round."""
    return int(processes.largest(interrupted())[0])


def _say_interrupted(setup: _Setup, state: RoundState) -> str:
    text = f"interrupted after round {state.round}; all is saved in {str(setup.directory)!r}: the same call goes on from there"
    setup.reporter.say(text)
    return text


def _say_left_out(setup: _Setup, infos: list[RoundInfo]) -> None:
    ids = setup.round_fn.experiment.train.client_ids
    for info in infos:
        if info.not_finite.size:
            names = ", ".join(repr(name) for name in ids[info.not_finite[:5]].tolist())
            more = f" and {info.not_finite.size - 5} more" if info.not_finite.size > 5 else ""
            setup.reporter.say(f"round {info.round + 1}: left out, since their update or state is not finite: {names}{more}")


def until_due(done: int, rounds: int, *periods: int) -> int:
    """Rounds until the next evaluation, checkpoint or end."""
    return min(rounds - done, *(period - done % period for period in periods))


def summarise_sets(client_metrics: Mapping[str, ClientMetrics]) -> dict[str, float]:
    """What the history says of an evaluation."""
    summaries = [summarise(name, metrics) for name, metrics in client_metrics.items()]
    return records.finite({name: value for summary in summaries for name, value in summary.items()})


def _belongs(sets: tuple[str, ...], evaluate_every: int, name: str, number: int) -> bool:
    """Whether a field belongs to the record of round ``number`` wherever the run ends: not an evaluation made at its end only."""
    return number % evaluate_every == 0 or name.split("/")[0] not in sets


def _why_stop(setup: _Setup, history: list[dict[str, Any]]) -> str | None:
    if setup.early_stop is None:
        return None
    evaluated = [record for record in history if record["round"] % setup.evaluate_every == 0]
    return setup.early_stop.reason(evaluated)


def round_record(info: RoundInfo) -> dict[str, Any]:
    """What the history says of a round."""
    said = {_full_name("server", name): value for name, value in info.server.items()}
    said |= {_full_name("aggregation", name): value for name, value in info.aggregation.items()}
    record = {
        "round": info.round + 1,
        **{f"train/{name}": value for name, value in info.metrics.items()},
        "clients": info.num_clients,
        "examples": info.num_examples,
        "steps": info.num_steps,
        "empty": info.empty,
        "not_finite": info.not_finite.tolist(),
        "dropped": info.dropped.size,
        **{name: value for name, value in said.items() if np.ndim(value) == 0},
    }
    return records.finite(record)


def _full_name(group: str, name: str) -> str:
    """What the server says of the clients' training belongs with it: private metrics do."""
    return name if name.startswith("train/") else f"{group}/{name}"


def _timing(state: RoundState, infos: list[RoundInfo], seconds: float, began: float) -> dict[str, Any]:
    return {
        "round": state.round,
        "rounds": len(infos),
        "seconds": seconds,
        "since_start": time.perf_counter() - began,
        "examples_per_second": sum(info.num_examples for info in infos) / seconds,
        "useful": float(np.mean([info.useful for info in infos])),
    }


def _with_choices(execution: Execution, choices: Mapping[str, Any]) -> Execution:
    """The execution with what was chosen for this run before in place of ``"auto"``."""
    return dataclasses.replace(
        execution, **{name: value for name, value in choices.items() if getattr(execution, name) == "auto"}
    )


def _params(state: RoundState) -> PyTree:
    server = state.device.server
    return tree.join(server.params, server.frozen)
