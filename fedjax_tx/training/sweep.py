"""``ftx.sweep``: a grid over hyperparameters and seeds as one more ``vmap`` axis over whole runs.

A *setting* is one cell of the grid; it is what ``ftx.run`` gives with its hyperparameters and its seed. Settings of one seed have
the same cohorts and data orders, so they run side by side in *pieces* that fit into memory. A seed also names cohorts and
shuffles: different seeds run one group after another, on the same compiled program, unless they are told to share the schedules.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_tx import check, tree
from fedjax_tx.data import FederatedDataset
from fedjax_tx.data.schedule import cut_short, slots_by_device
from fedjax_tx.simulation import Experiment, RoundFunction, RoundInfo, RoundState, make_round
from fedjax_tx.simulation.auto import free_bytes
from fedjax_tx.simulation.evaluate import EvaluationPlan, plan_evaluation
from fedjax_tx.simulation.round import resolve
from fedjax_tx.simulation.rounds import build_round, read_infos
from fedjax_tx.simulation.settings import Settings, evaluate_settings, init_settings, run_settings, stack_settings
from fedjax_tx.training import records
from fedjax_tx.training.progress import Reporter, make_reporter
from fedjax_tx.training.run import SECONDS_A_CALL, check_run, round_record, summarise_sets, until_due
from fedjax_tx.types import Execution, PyTree

_MEMORY_SHARE = 0.8
_PROBE_SECONDS = 0.1


class SweepResult(NamedTuple):
    """What a sweep leaves: its settings, and for each the history that its single run would have.

    settings: the cells of the grid in order, the last name running fastest. history: for each, a dict for each round.
    """

    settings: list[dict[str, Any]]
    history: list[list[dict[str, Any]]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dict for each setting: its place in the grid, and the metrics of the last round."""
        metrics = [{name: value for name, value in lines[-1].items() if "/" in name} for lines in self.history]
        return [{**cell, **last} for cell, last in zip(self.settings, metrics, strict=True)]

    @property
    def table(self) -> Any:
        """``rows`` as a pandas ``DataFrame``."""
        import pandas  # only here: importing it takes longer than many a sweep

        return pandas.DataFrame(self.rows)

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> dict[str, Any]:
        """Returns the hyperparameters with the best mean of ``metric`` over the seeds; the seed, where nothing else varies.

        Hyperparameters with which a seed diverged (its metric is not finite) are never the best.

        Errors: ``ValueError`` if no setting has that metric, or all diverged.
        """
        check.one_of("metric", metric, sorted(set(self.rows[0]) - set(self.settings[0])))
        check.one_of("mode", mode, ("min", "max"))
        names = [name for name in self.settings[0] if name != "seed"] or ["seed"]
        values: dict[tuple, list[float]] = {}
        for row in self.rows:
            values.setdefault(tuple(row[name] for name in names), []).append(row[metric])
        means = {key: float(np.mean(of_seeds)) for key, of_seeds in values.items() if np.isfinite(of_seeds).all()}
        if not means:
            check.fail_value("metric", "to be finite in all seeds of at least one setting", metric)
        ranked = sorted(means, key=lambda key: means[key], reverse=mode == "max")
        return dict(zip(names, ranked[0], strict=True))


class _Piece(NamedTuple):
    """Settings that run side by side: their numbers, and the seed that names their cohorts and data orders."""

    numbers: list[int]
    seed: int


class _Setup(NamedTuple):
    """A sweep ready to go."""

    experiment: Experiment
    cells: list[dict[str, Any]]
    rounds: int
    evaluate_every: int
    init_params: PyTree
    round_fn: RoundFunction
    evaluations: Mapping[str, EvaluationPlan]
    vary_cohort: bool


def sweep(
    experiment: Experiment,
    rounds: int,
    grid: Mapping[str, Sequence[float] | np.ndarray],
    evaluate: Mapping[str, FederatedDataset] | None = None,
    init_params: PyTree = None,
    execution: Execution | None = None,
    run_dir: str | Path | None = None,
    *,
    evaluate_every: int = 10,
    settings_at_once: int | Literal["auto"] = "auto",
    vary_cohort: bool = True,
    progress: bool = True,
) -> SweepResult:
    """Runs an experiment in every setting of a grid, many settings side by side in one compiled program.

    Args:
      experiment: what is computed; ``hyper`` holds what the grid leaves alone. rounds: how many rounds of each setting.
      grid: ``{name: values}``; names are those of ``experiment.hyper``, and ``"seed"``.
      evaluate, init_params, evaluate_every, progress: as for ``ftx.run``. execution: how each run goes, as there.
      run_dir: where to leave the histories of settings, piece by piece; a sweep found there goes on after its last piece.
      settings_at_once: settings side by side; by default as many as the memory analysis of the program allows, or one after
        another where a short timed probe finds that faster (a large model on a CPU falls out of its caches).
      vary_cohort: whether a seed of the grid names cohorts and data orders too, as in a single run. If not, all settings have
        those of the experiment's own seed, and all seeds run side by side; parameters, noise and dropout differ still.

    Errors: ``ValueError`` if ``run_dir`` holds another sweep, naming what differs; for cohorts that depend on clients' metrics.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> train = ftx.data.FederatedDataset.from_columns({"x": np.eye(4, dtype=np.float32), "y": np.arange(4)}, [0, 0, 1, 1])
      >>> model = ftx.Model(lambda key: np.zeros((4, 4), np.float32), lambda params, x, *, key=None: x @ params)
      >>> task = ftx.tasks.classification(model)
      >>> experiment = ftx.Experiment(
      ...     lambda hyper: ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(hyper["client_lr"])),
      ...     hyper={"client_lr": 0.1}, train=train, cohorts=ftx.data.all_clients(), local=ftx.data.LocalWork(batch_size=2))
      >>> result = sweep(experiment, rounds=3, grid={"client_lr": [0.1, 1.0], "seed": [0, 1]}, progress=False)
      >>> len(result.settings), result.best("train/loss")
      (4, {'client_lr': 1.0})
    """
    evaluate = {} if evaluate is None else evaluate
    execution = Execution() if execution is None else execution
    check_run(experiment, rounds, evaluate, execution, run_dir, evaluate_every, progress=progress)
    check.boolean("vary_cohort", vary_cohort)
    if settings_at_once != "auto":
        check.integer("settings_at_once", settings_at_once, low=1)
    cells = _read_grid(experiment, grid)
    _refuse(experiment, execution)
    execution = dataclasses.replace(execution, mesh=None)
    for cell in cells:
        resolve(experiment.make_algorithm, _hyper_of(experiment, cell))
    first = _single(experiment, cells[0], vary_cohort)
    columns = {name: jax.device_put(column) for name, column in experiment.train.columns.items()}
    first_state = build_round(first, columns, 1, Execution()).init(init_params=init_params)
    evaluations = {name: plan_evaluation(first, data, execution) for name, data in evaluate.items()}
    directory = None if run_dir is None else Path(run_dir)
    description: dict[str, Any] = {}
    if directory is not None:
        description = _describe(first, first_state, evaluate, evaluate_every, grid, rounds, vary_cohort)
        execution, settings_at_once = _choices(directory, description, execution, settings_at_once)
    round_fn = make_round(first, execution)
    setup = _Setup(experiment, cells, rounds, evaluate_every, init_params, round_fn, evaluations, vary_cohort)
    groups = _groups(experiment, cells, vary_cohort)
    if settings_at_once == "auto":
        settings_at_once = _choose_at_once(setup, groups[0])
    done: dict[int, list[dict[str, Any]]] = {}
    if directory is not None:
        choices = {"num_lanes": round_fn.num_lanes, "rounds_per_call": round_fn.rounds_per_call}
        saved = {"sweep": description, "settings": cells, "execution": {**choices, "settings_at_once": settings_at_once}}
        records.write_json(directory / "sweep.json", saved)
        done = _read_done(directory, rounds)
    pieces = [piece for group in groups for piece in _split(group, settings_at_once)]
    _run_pieces(setup, pieces, done, directory, progress)
    return SweepResult(cells, [done[number] for number in range(len(cells))])


# ---- the grid


def _read_grid(experiment: Experiment, grid: Mapping[str, Sequence[float] | np.ndarray]) -> list[dict[str, Any]]:
    """The cells of a grid, in the order of its names, the last running fastest."""
    if not check.mapping("grid", grid):
        check.fail_value("grid", "to name at least one hyperparameter or 'seed'", grid)
    values = {}
    for name, given in grid.items():
        check.one_of("a name of grid", name, [*experiment.hyper, "seed"])
        listed = given.tolist() if isinstance(given, np.ndarray) else given
        check.instance(f"grid[{name!r}]", listed, (list, tuple), "a list of numbers")
        if not listed:
            check.fail_value(f"grid[{name!r}]", "to hold at least one value", given)
        values[name] = [_value(name, value, experiment) for value in listed]
        if any(isinstance(value, float) for value in values[name]):  # one type for all, or their programs would differ
            values[name] = [float(value) for value in values[name]]
    return [dict(zip(values, cell, strict=True)) for cell in itertools.product(*values.values())]


def _value(name: str, value: Any, experiment: Experiment) -> int | float:
    """A value of the grid as a plain number."""
    if name == "seed":
        if "seed" in experiment.hyper:
            check.fail_value("a name of grid", "that says whether the experiment's or the hyperparameter is meant", name)
        return check.integer("grid['seed']", value, low=0, high=2**32 - 1)
    check.number(f"grid[{name!r}]", value)
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def _refuse(experiment: Experiment, execution: Execution) -> None:
    if experiment.cohorts.reads_metrics:
        expected = "that read no metrics of clients, which differ from setting to setting"
        check.fail_value("the experiment's cohorts", expected, experiment.cohorts.description)
    if execution.debug:
        check.fail_value("execution", "without debug, which follows one run: ftx.run", execution)
    if execution.placement == "host":
        expected = 'with placement="device": settings side by side share the data on the device'
        check.fail_value("execution", expected, execution)
    if isinstance(execution.mesh, Mesh):
        check.fail_value("execution", "without a mesh: the settings of a sweep share one device", execution)
    if jax.process_count() > 1:
        check.fail_value("a sweep", "to run in one process, on its own devices", f"one of {jax.process_count()} processes")


def _hyper_of(experiment: Experiment, cell: Mapping[str, Any]) -> dict[str, Any]:
    return {**experiment.hyper, **{name: value for name, value in cell.items() if name in experiment.hyper}}


def _single(experiment: Experiment, cell: Mapping[str, Any], vary_cohort: bool) -> Experiment:
    """The experiment of one setting; with the experiment's own seed where that names the cohorts."""
    seed = cell.get("seed", experiment.seed) if vary_cohort else experiment.seed
    return dataclasses.replace(experiment, hyper=_hyper_of(experiment, cell), seed=seed)


def _groups(experiment: Experiment, cells: Sequence[Mapping[str, Any]], vary_cohort: bool) -> list[_Piece]:
    """Settings that share cohorts and data orders."""
    by_seed: dict[int, list[int]] = {}
    for number, cell in enumerate(cells):
        by_seed.setdefault(_single(experiment, cell, vary_cohort).seed, []).append(number)
    return [_Piece(numbers, seed) for seed, numbers in by_seed.items()]


def _split(group: _Piece, at_once: int) -> list[_Piece]:
    """Pieces of one width, which one program serves: the last is filled up with its last setting again."""
    width = _even_width(len(group.numbers), at_once)
    starts = range(0, len(group.numbers), width)
    pieces = [group.numbers[start : start + width] for start in starts]
    return [_Piece(numbers + numbers[-1:] * (width - len(numbers)), group.seed) for numbers in pieces]


def _even_width(num_settings: int, at_once: int) -> int:
    """The least width that takes as many pieces as ``at_once`` would: little is then filled up."""
    num_pieces = -(-num_settings // at_once)
    return -(-num_settings // num_pieces)


# ---- running


def _run_pieces(setup: _Setup, pieces: list[_Piece], done: dict, directory: Path | None, progress: bool) -> None:
    """Runs the pieces that are not done yet, and adds their histories to ``done``."""
    left = [piece for piece in pieces if not done.keys() >= set(piece.numbers)]
    before = (len(pieces) - len(left)) * setup.rounds
    reporter = make_reporter(len(pieces) * setup.rounds, before, progress)
    try:
        if before:
            reporter.say(f"going on after {len(done)} of {len(setup.cells)} settings")
        for number, piece in enumerate(left):
            shown = ", ".join(str(setup.cells[one]) for one in dict.fromkeys(piece.numbers))
            reporter.say(f"settings side by side, medians below: {shown}")
            histories = _run_piece(setup, piece, reporter, before + number * setup.rounds)
            new = {one: lines for one, lines in zip(piece.numbers, histories, strict=True) if one not in done}
            done.update(new)
            if directory is not None:
                records.append_lines(
                    directory / "settings.jsonl", [{"setting": one, **line} for one, lines in new.items() for line in lines]
                )
                records.flush(directory / "settings.jsonl")
    finally:
        reporter.close()


def _run_piece(setup: _Setup, piece: _Piece, reporter: Reporter, rounds_before: int) -> list[list[dict[str, Any]]]:
    """The histories of the settings of a piece."""
    round_fn, settings = setup.round_fn, _settings(setup, piece)
    state = RoundState(_init(setup, settings, len(piece.numbers)), _cohort_state(setup), piece.seed, 0)
    histories: list[list[dict[str, Any]]] = [[] for _ in piece.numbers]
    pace = 1
    while state.round < setup.rounds:
        count = min(pace, round_fn.rounds_per_call, until_due(state.round, setup.rounds, setup.evaluate_every))
        began = time.perf_counter()
        state, infos = _run_rounds(setup, settings, state, count)
        seconds = time.perf_counter() - began
        pace = max(1, int(SECONDS_A_CALL / (seconds / count)))
        for history, of_setting in zip(histories, infos, strict=True):
            history += [round_record(info) for info in of_setting]
        if state.round % setup.evaluate_every == 0 or state.round == setup.rounds:
            for number, evaluated in enumerate(_evaluate(setup, settings, state, len(piece.numbers))):
                histories[number][-1].update(evaluated)
        examples = sum(info.num_examples for of_setting in infos for info in of_setting)
        last = [history[-1] for history in histories]
        medians = {name: float(np.median([line[name] for line in last])) for name in last[0] if "/" in name}
        reporter.update({"round": rounds_before + state.round, **medians}, examples / seconds)
    return histories


def _run_rounds(setup: _Setup, settings: Settings, state: RoundState, count: int) -> tuple[RoundState, list[list[RoundInfo]]]:
    """Runs some rounds of every setting; gives for each setting what there is to see of them."""
    round_fn = setup.round_fn
    plan = round_fn.plan(state, count)
    maker, batch_sizes, _, _, *rest, _ = round_fn.arguments(state, plan)
    device, output = run_settings(maker, batch_sizes, settings, *rest)
    output = jax.device_get(output)
    num_settings = output.empty.shape[0]
    infos = [read_infos(state.round, plan, tree.take(output, number), list(batch_sizes)) for number in range(num_settings)]
    return RoundState(device, plan.source_state, state.seed, state.round + count), infos


def _evaluate(setup: _Setup, settings: Settings, state: RoundState, num_settings: int) -> list[dict[str, float]]:
    """What the history of each setting says of an evaluation."""
    maker, population = setup.experiment.make_algorithm, setup.experiment.train.num_clients
    scores = {}
    for name, plan in setup.evaluations.items():
        given = (plan.rows, plan.columns, plan.schedule)
        scores[name] = evaluate_settings(maker, plan.batch_size, population, settings, state.device, *given)
    scores = jax.device_get(scores)
    return [summarise_sets(tree.take(scores, number)) for number in range(num_settings)]


def _settings(setup: _Setup, piece: _Piece) -> Settings:
    cells = [setup.cells[number] for number in piece.numbers]
    own_seeds = "seed" in cells[0] and not setup.vary_cohort
    return stack_settings(setup.experiment.hyper, cells, [cell["seed"] for cell in cells] if own_seeds else piece.seed)


def _init(setup: _Setup, settings: Settings, num_settings: int):
    maker, population = setup.experiment.make_algorithm, setup.experiment.train.num_clients
    batch_size = setup.round_fn.works[0].batch_size
    return init_settings(maker, population, batch_size, num_settings, settings, setup.init_params, setup.round_fn.columns)


def _cohort_state(setup: _Setup) -> PyTree:
    return setup.experiment.cohorts.init(setup.experiment.train.num_clients)


def _choose_at_once(setup: _Setup, group: _Piece) -> int:
    """As many settings side by side as fit, or one after another if that is faster."""
    most = _settings_that_fit(setup, group)
    if most == 1:
        return 1
    together, alone = (_seconds_a_setting(setup, _Piece(group.numbers[:width], group.seed)) for width in (most, 1))
    return most if together <= alone else 1


def _seconds_a_setting(setup: _Setup, piece: _Piece) -> float:
    """Seconds of a slot of each setting, from some ticks of the first round."""
    settings, num_settings = _settings(setup, piece), len(piece.numbers)
    state = RoundState(_init(setup, settings, num_settings), _cohort_state(setup), piece.seed, 0)
    plan = setup.round_fn.plan(state, 1)
    most = max(1, *(int(planned[0].num_ticks) for planned in plan.schedules))

    def cut(ticks: int) -> tuple:
        return tuple([cut_short(one, ticks, most) for one in planned] for planned in plan.schedules)

    def seconds(ticks: int) -> float:
        device = jax.block_until_ready(_init(setup, settings, num_settings))  # the program takes it over
        arguments = setup.round_fn.arguments(state._replace(device=device), plan._replace(schedules=cut(ticks)))
        maker, batch_sizes, _, _, *rest, _ = arguments
        began = time.perf_counter()
        jax.block_until_ready(run_settings(maker, batch_sizes, settings, *rest))
        return time.perf_counter() - began

    seconds(1)  # compiles
    ticks = 1
    while (taken := seconds(ticks)) < _PROBE_SECONDS and ticks < most:
        ticks = min(2 * ticks, most)
    return taken / max(1, sum(int(slots_by_device(planned[0])) for planned in cut(ticks))) / num_settings


def _settings_that_fit(setup: _Setup, group: _Piece) -> int:
    """The most settings side by side whose program, states and results take no more memory than is free now."""
    at_once = len(group.numbers)
    while at_once > 1:
        at_once = _even_width(len(group.numbers), at_once)
        needed, free = _program_bytes(setup, _Piece(group.numbers[:at_once], group.seed)), _MEMORY_SHARE * free_bytes()
        if needed <= free:
            break
        at_once = max(1, min(at_once - 1, int(at_once * free / needed)))
    return at_once


def _program_bytes(setup: _Setup, piece: _Piece) -> int:
    """Bytes of the states (which the program takes over), its results and its temporaries."""
    settings = _settings(setup, piece)
    device = jax.eval_shape(lambda: _init(setup, settings, len(piece.numbers)))
    state = RoundState(device, _cohort_state(setup), piece.seed, 0)
    maker, batch_sizes, _, _, *rest, _ = setup.round_fn.arguments(state, setup.round_fn.plan(state, 1))
    memory = run_settings.lower(maker, batch_sizes, settings, *rest).compile().memory_analysis()
    return 0 if memory is None else memory.output_size_in_bytes + memory.temp_size_in_bytes


# ---- the directory


def _describe(first, first_state, evaluate, evaluate_every, grid, rounds, vary_cohort) -> dict[str, Any]:
    """What decides the records of a sweep; what the grid varies is told by the grid alone."""
    described = records.describe(first, first_state, evaluate, evaluate_every, {})
    swept = {f"hyper.{name}" for name in grid} | ({"seed"} if "seed" in grid and vary_cohort else set())
    told = {name: value for name, value in described.items() if name not in swept}
    values = {f"grid.{name}": np.asarray(given).tolist() for name, given in grid.items()}
    return json.loads(json.dumps({**told, **values, "rounds": rounds, "vary_cohort": vary_cohort}))


def _choices(directory: Path, description, execution: Execution, settings_at_once) -> tuple[Execution, Any]:
    """What was chosen for this machine before, in place of ``"auto"``; makes the directory if there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    saved = records.read_json(directory / "sweep.json")
    if saved is None:
        return execution, settings_at_once
    records.refuse_other(directory, saved["sweep"], description)
    chosen = saved["execution"]
    auto = {name: chosen[name] for name in ("num_lanes", "rounds_per_call") if getattr(execution, name) == "auto"}
    return dataclasses.replace(execution, **auto), chosen["settings_at_once"] if settings_at_once == "auto" else settings_at_once


def _read_done(directory: Path, rounds: int) -> dict[int, list[dict[str, Any]]]:
    """The histories of the settings that are finished; lines of one that a kill cut short are deleted."""
    histories: dict[int, list[dict[str, Any]]] = {}
    for line in records.read_lines(directory / "settings.jsonl"):
        histories.setdefault(line.pop("setting"), []).append(line)
    done = {number: lines for number, lines in histories.items() if len(lines) == rounds}
    kept = [{"setting": number, **line} for number, lines in done.items() for line in lines]
    records.rewrite_lines(directory / "settings.jsonl", kept)
    return done
