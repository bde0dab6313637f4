"""``ftx.sweep``: a grid over hyperparameters and seeds as one more axis over whole runs, spread over the devices.

A *setting* is one cell of the grid; it is what ``ftx.run`` gives with its hyperparameters and its seed. Settings of one seed have
the same cohorts and data orders, so they run side by side in *pieces* that fit into memory. A seed also names cohorts and
shuffles: different seeds run one group after another, on the same compiled program, unless they are told to share the schedules.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_tx import check
from fedjax_tx.data import FederatedDataset
from fedjax_tx.simulation import Experiment
from fedjax_tx.simulation.columns import refuse_data
from fedjax_tx.simulation.evaluate import EvaluationPlan, plan_evaluation
from fedjax_tx.simulation.mesh import place, resolve_mesh
from fedjax_tx.simulation.messages import refuse_settings
from fedjax_tx.simulation.round import resolve
from fedjax_tx.simulation.rounds import build_round
from fedjax_tx.training.arguments import check_run
from fedjax_tx.training.directory import locked, read_run_dir
from fedjax_tx.training.pieces import Piece, Setup, run_pieces, split_group
from fedjax_tx.training.sweep_directory import Found, cell_key, describe_sweep, open_sweep, save_sweep, with_choices
from fedjax_tx.training.width import choose_width
from fedjax_tx.types import Execution, PyTree


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
      evaluate, init_params, evaluate_every, progress: as for ``ftx.run``. execution: how each run goes, as there; but each device
        of the mesh runs settings of its own, with all their lanes. ``num_lanes="auto"`` is measured at the sweep's width.
      run_dir: where to leave the histories of settings that are done, and checkpoints of those under way (30 seconds apart, or
        more where writing one takes long); a sweep found there goes on. With other values in the grid, or in another order, it
        runs the settings that it hasn't done yet; those under way begin anew, unless they still run side by side.
      settings_at_once: settings side by side on each device; by default as many as the memory analysis of the program allows, or
        one after another where a short timed probe finds that faster (a large model on a CPU falls out of its caches).
      vary_cohort: whether a seed of the grid names cohorts and data orders too, as in a single run. If not, all settings have
        those of the experiment's own seed, and all seeds run side by side; parameters, noise and dropout differ still.

    With a ``run_dir``, Ctrl-C ends the sweep after the rounds under way with a checkpoint, and raises ``KeyboardInterrupt``; a
    second one ends it at once. So does a scheduler's SIGTERM, with ``SystemExit``. However a sweep ended, the same call goes on
    from the last checkpoint, bit for bit. A damaged checkpoint is told by a warning: the one before is used, or the settings
    under way begin anew.

    Errors: ``ValueError`` if ``run_dir`` holds another sweep or a grid of other names, naming what differs; if another process
    is running there; for cohorts that depend on clients' metrics. ``OSError`` if it can't be written.

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
    for cell in cells:
        resolve(experiment.make_algorithm, _hyper_of(experiment, cell))
    first = _single(experiment, cells[0], vary_cohort)
    refuse_data(first)
    maker = build_round(first, {}, 1, Execution())
    refuse_settings(experiment, maker.shapes(), [_hyper_of(experiment, cell) for cell in cells])
    began = maker.init(0, init_params)  # of one seed, whatever those of the grid are
    found, directory = Found({}, [*range(len(cells))], {}, {}), read_run_dir(run_dir)
    with ExitStack() as opened:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            opened.enter_context(locked(directory))
            description = describe_sweep(first, began, evaluate, evaluate_every, grid, rounds, vary_cohort, init_params)
            found = open_sweep(directory, description, cells, rounds)
        if found.left:
            execution, settings_at_once = with_choices(found, execution, settings_at_once)
            groups = _groups(experiment, cells, found.left, vary_cohort)
            widest = max(groups, key=lambda group: len(group.numbers))
            mesh = _settings_mesh(execution, len(widest.numbers))
            round_fn = build_round(first, place(dict(experiment.train.columns), mesh), 1, execution)
            evaluations = {name: _plan_evaluation(first, data, mesh) for name, data in evaluate.items()}
            setup = Setup(experiment, cells, rounds, evaluate_every, init_params, round_fn, evaluations, vary_cohort, mesh)
            setup, settings_at_once = choose_width(setup, widest, execution, settings_at_once)
            if directory is not None:
                choices = {name: getattr(setup.round_fn, name) for name in ("num_lanes", "rounds_per_call")}
                save_sweep(directory, description, cells, found, {**choices, "settings_at_once": settings_at_once})
            pieces = [piece for group in groups for piece in split_group(group, settings_at_once, mesh.size)]
            run_pieces(setup, pieces, found.done, directory, progress)
    return SweepResult(cells, [found.done[cell_key(cell)] for cell in cells])


def _settings_mesh(execution: Execution, num_settings: int) -> Mesh:
    """The devices that share the settings: no more than there are settings side by side."""
    mesh = resolve_mesh(execution)
    devices = jax.local_devices()[:1] if mesh is None else mesh.devices.flatten().tolist()
    return Mesh(np.array(devices[:num_settings]), ("device",))


def _plan_evaluation(experiment: Experiment, data: FederatedDataset, mesh: Mesh) -> EvaluationPlan:
    """An evaluation that each device makes of its own settings."""
    plan = plan_evaluation(experiment, data, Execution(mesh=None))
    rows, columns, schedule = place((plan.rows, plan.columns, plan.schedule), mesh)
    return plan._replace(rows=rows, columns=columns, schedule=schedule)


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
    if jax.process_count() > 1:
        check.fail_value("a sweep", "to run in one process, on its own devices", f"one of {jax.process_count()} processes")


def _hyper_of(experiment: Experiment, cell: Mapping[str, Any]) -> dict[str, Any]:
    return {**experiment.hyper, **{name: value for name, value in cell.items() if name in experiment.hyper}}


def _single(experiment: Experiment, cell: Mapping[str, Any], vary_cohort: bool) -> Experiment:
    """The experiment of one setting; with the experiment's own seed where that names the cohorts."""
    seed = cell.get("seed", experiment.seed) if vary_cohort else experiment.seed
    return dataclasses.replace(experiment, hyper=_hyper_of(experiment, cell), seed=seed)


def _groups(experiment: Experiment, cells: Sequence[Mapping[str, Any]], left: Sequence[int], vary_cohort: bool) -> list[Piece]:
    """The settings that are left, in groups that share cohorts and data orders."""
    by_seed: dict[int, list[int]] = {}
    for number in left:
        by_seed.setdefault(_single(experiment, cells[number], vary_cohort).seed, []).append(number)
    return [Piece(numbers, seed) for seed, numbers in by_seed.items()]
