"""Evaluation: a pass over every client of a data set, on the same executor as training.

With ``placement="host"`` the clients come in pieces of consecutive ones that fit into a buffer; while a piece is scored the host
prepares the next.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from fedjax_tx import check
from fedjax_tx.data import FederatedDataset
from fedjax_tx.data.cohort import as_cohort
from fedjax_tx.data.schedule import Capacity, Schedule, make_schedule, plan_capacity
from fedjax_tx.simulation.columns import count_classes, in_memory, refuse_values
from fedjax_tx.simulation.experiment import Experiment
from fedjax_tx.simulation.mesh import owners, place, resolve_mesh
from fedjax_tx.simulation.placement import pad, place_columns, refuse_buffers, rows_that_fit
from fedjax_tx.simulation.round import DeviceState, pass_work, resolve, run_evaluation
from fedjax_tx.simulation.rounds import RoundState, hyper_arrays, weighted_mean
from fedjax_tx.types import Cohort, Execution, LocalWork

_ROWS_AT_ONCE = 64
_PERCENTILES = (10, 50, 90)
_WORSE_WHEN_HIGH = {"loss", "error", "perplexity"}

ClientMetrics = Mapping[str, tuple[np.ndarray, np.ndarray]]


def make_evaluation(experiment: Experiment, dataset: FederatedDataset, execution: Execution | None = None) -> "Evaluation":
    """Makes ``evaluate(state) -> {name: (value[client], weight[client])}`` for the clients of a data set.

    Each client is scored by the algorithm's evaluation pass on all its examples. One whose id is among the training clients
    comes with the state it has there; any other with a first state.

    Args:
      experiment: says the algorithm. dataset: the clients to score; its columns are those of the training data.
      execution: on which mesh, and where the data lies; its other settings do not matter here.

    Errors: ``ValueError`` if the columns differ from the training data's in name, dtype or shape, hold labels of no class or
      integers beyond int32, or do not fit on a device.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> train = ftx.data.FederatedDataset.from_columns({"x": np.eye(4, dtype=np.float32), "y": np.arange(4)}, [0, 0, 1, 1])
      >>> model = ftx.Model(lambda key: np.zeros((4, 4), np.float32), lambda params, x, *, key=None: x @ params)
      >>> algorithm = ftx.algorithms.fed_avg(ftx.tasks.classification(model), client_optimizer=optax.sgd(1.0))
      >>> experiment = ftx.Experiment(
      ...     algorithm, train=train, cohorts=ftx.data.all_clients(), local=ftx.data.LocalWork(batch_size=2))
      >>> evaluate = make_evaluation(experiment, train)
      >>> value, weight = evaluate(ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init())["loss"]
      >>> weight.tolist()
      [2.0, 2.0]
    """
    execution = Execution() if execution is None else execution
    check.instance("execution", execution, Execution, "an Execution")
    return Evaluation(experiment, dataset, resolve_mesh(execution), _make_pieces(experiment, dataset, execution))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What ``make_evaluation`` makes; ``names`` tells what ``summarise`` will say of it, and compiles nothing."""

    experiment: Experiment
    dataset: FederatedDataset
    mesh: Mesh | None
    pieces: Callable[[], Iterable["EvaluationPlan"]]

    def __call__(self, state: RoundState) -> ClientMetrics:
        parts: list[ClientMetrics] = []
        running: list[tuple[int, Any]] = []  # at most one: the host waits for it when the next is ready
        device = place(state.device, self.mesh)
        for plan in self.pieces():
            parts += [_read_piece(*one) for one in running]
            running = [(plan.num_clients, run_evaluation(*self._arguments(plan, state.seed, device)))]
        parts += [_read_piece(*one) for one in running]
        return jax.tree.map(lambda *values: np.concatenate(values), *parts)

    def names(self, name: str, device: DeviceState) -> list[str]:
        """Returns the names of ``summarise(name, evaluate(state))``; ``device`` are the shapes of ``state.device``.

        Errors: whatever is wrong with the evaluation pass's shapes; ``ValueError`` if clients with models of their own would
        never be found, since ids are of another kind.
        """
        _refuse_other_ids(name, self.dataset.client_ids, self.experiment.train.client_ids, device)
        plan = next(iter(self.pieces()))
        shapes = run_evaluation.eval_shape(*self._arguments(plan, self.experiment.seed, device))
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
        return list(summarise(name, ones))

    def _arguments(self, plan: "EvaluationPlan", seed: int, device: Any) -> tuple:
        experiment = self.experiment
        static = (experiment.make_algorithm, plan.batch_size, experiment.train.num_clients)
        traced = (hyper_arrays(experiment.hyper), np.uint32(seed), device, plan.rows, plan.columns, plan.schedule)
        return (*static, *traced, plan.mesh)


def _refuse_other_ids(name: str, ids: np.ndarray, known: np.ndarray, device: DeviceState) -> None:
    kinds = ["integers" if array.dtype.kind in "iu" else "strings" for array in (known, ids)]
    if kinds[0] != kinds[1] and jax.tree.leaves(device.clients):
        expected = f"to be {kinds[0]} as in train, since a client's own state is found by its id"
        check.fail_value(f"the client_ids of {name!r}", expected, f"{kinds[1]} ({ids[0]!r})")


class EvaluationPlan(NamedTuple):
    """What ``run_evaluation`` reads of a data set: which training client each client is, its columns, and who runs when."""

    batch_size: int
    rows: Int[Array, " slot"]
    columns: dict[str, Array]
    schedule: Schedule
    mesh: Mesh | None
    num_clients: int


def plan_evaluation(experiment: Experiment, dataset: FederatedDataset, execution: Execution | None = None) -> EvaluationPlan:
    """Checks that a data set can be scored, and packs its clients into lanes."""
    execution = Execution() if execution is None else execution
    work, capacity, mesh, classes = _plan_work(experiment, dataset, execution)
    refuse_values(dataset.columns, classes)
    cohort = as_cohort(Cohort(np.arange(dataset.num_clients)), dataset.num_clients, dataset.num_clients)
    schedule = place(make_schedule(cohort, dataset.offsets, work, capacity, experiment.seed, 0, owners(dataset, mesh)), mesh)
    columns = place_columns(dataset, "device", mesh)
    rows = place(match_clients(dataset.client_ids, experiment.train.client_ids).astype(np.int32), mesh)
    return EvaluationPlan(work.batch_size, rows, columns, schedule, mesh, dataset.num_clients)


def _plan_work(experiment: Experiment, dataset: FederatedDataset, execution: Execution):
    """(work, capacity for all clients at once, mesh, classes of labels) of an evaluation, once it is found to be one."""
    check.instance("experiment", experiment, Experiment, "an Experiment")
    check.instance("dataset", dataset, FederatedDataset, "a FederatedDataset")
    check.instance("execution", execution, Execution, "an Execution")
    _check_columns(experiment.train, dataset)
    algorithm = resolve(experiment.make_algorithm, experiment.hyper)
    work = pass_work(algorithm.evaluation, evaluation_work(experiment, dataset))
    lanes = max(1, _ROWS_AT_ONCE // work.batch_size)
    mesh = resolve_mesh(execution)
    devices = None if mesh is None else mesh.size
    owned = owners(dataset, mesh)
    capacity = plan_capacity(dataset.client_sizes, work, dataset.num_clients, lanes, False, devices, execution.taper, owned)
    return work, capacity, mesh, count_classes(algorithm, dataset.columns)


def _make_pieces(
    experiment: Experiment, dataset: FederatedDataset, execution: Execution
) -> Callable[[], Iterable[EvaluationPlan]]:
    """Returns ``pieces()``: the whole set at once where it lies on the device, else pieces, each sent when it is asked for."""
    if execution.placement == "device":
        whole = plan_evaluation(experiment, dataset, execution)
        return lambda: [whole]
    work, capacity, mesh, classes = _plan_work(experiment, dataset, execution)
    refuse_values(in_memory(dataset.columns), classes)
    bounds = _piece_bounds(dataset.offsets, rows_that_fit(dataset.columns))
    capacity = _piece_capacity(dataset, work, capacity, bounds)
    num_rows = max(int(dataset.offsets[last] - dataset.offsets[first]) for first, last in bounds)
    refuse_buffers(dataset.columns, num_rows, mesh)
    known = match_clients(dataset.client_ids, experiment.train.client_ids).astype(np.int32)

    def pieces() -> Iterator[EvaluationPlan]:
        for first, last in bounds:
            start, stop = dataset.offsets[first], dataset.offsets[last]
            cohort = as_cohort(Cohort(np.arange(first, last)), dataset.num_clients, capacity.clients)
            schedule = make_schedule(cohort, dataset.offsets, work, capacity, experiment.seed, 0)
            schedule = schedule._replace(order=np.maximum(schedule.order - start, 0).astype(np.int32))  # 0 behind its end
            columns = {name: pad(column[start:stop], num_rows) for name, column in dataset.columns.items()}
            refuse_values(columns, classes)
            rows = pad(known[first:last], capacity.clients)
            rows, columns, schedule = place((rows, columns, schedule), mesh)
            yield EvaluationPlan(work.batch_size, rows, columns, schedule, mesh, last - first)

    return pieces


def _piece_bounds(offsets: np.ndarray, num_rows: int) -> list[tuple[int, int]]:
    """Consecutive clients (first, behind last) with at most ``num_rows`` rows, or one client with more."""
    bounds, first, num_clients = [], 0, len(offsets) - 1
    while first < num_clients:
        last = int(np.searchsorted(offsets, offsets[first] + num_rows, side="right")) - 1
        bounds.append((first, max(last, first + 1)))
        first = bounds[-1][1]
    return bounds


def _piece_capacity(dataset: FederatedDataset, work: LocalWork, whole: Capacity, bounds: list[tuple[int, int]]) -> Capacity:
    """What holds each piece, in as many lanes as the whole would take."""
    sizes = dataset.client_sizes
    each = [plan_capacity(sizes[a:b], work, b - a, whole.lanes, devices=whole.devices) for a, b in bounds]
    clients, ticks, rows = (max(getattr(one, name) for one in each) for name in ("clients", "ticks", "rows"))
    return whole._replace(clients=clients, ticks=ticks, rows=rows)


def _read_piece(num_clients: int, metrics: Mapping[str, tuple[Array, Array]]) -> ClientMetrics:
    return jax.tree.map(lambda values: values[:num_clients], jax.device_get(metrics))


def summarise(name: str, metrics: ClientMetrics) -> dict[str, float]:
    """Returns the mean of each metric over all examples and its spread over clients, as ``{"name/metric...": number}``.

    The spread is that of the clients' own means, each client counting once: percentiles 10, 50 and 90, the variance, and the mean
    over the worst tenth of the clients (rounded up), as arXiv 1905.10497 compares fairness. Worst are those of the lowest values,
    of a metric whose name has the word ``loss``, ``error`` or ``perplexity`` those of the highest. A metric by groups of examples
    is pooled group by group first; the number it then makes stands under its name, its parts under ``name/metric/part``. Clients
    for whom it makes none (the area under the ROC curve of a single class) take no part in the spread.

    Example:
      >>> summary = summarise("test", {"loss": (np.array([1.0, 3.0]), np.array([3.0, 1.0]))})
      >>> summary["test/loss"], summary["test/loss/client_p50"], summary["test/loss/client_worst_decile"]
      (1.5, 2.0, 3.0)
    """
    check.instance("name", name, str, "a string")
    summary = {}
    for metric, pair in sorted(check.mapping("metrics", metrics).items()):
        mean, own, parts = _by_groups(pair) if hasattr(pair, "overall") else (weighted_mean(*pair), pair[0][pair[1] > 0], {})
        summary[f"{name}/{metric}"] = mean
        summary |= {f"{name}/{metric}/client_{what}": value for what, value in _spread(metric, own).items()}
        summary |= {f"{name}/{metric}/{part}": value for part, value in parts.items()}
    return summary


def _spread(metric: str, own: np.ndarray) -> dict[str, float]:
    """How a metric differs between clients, given each one's own; nan of nobody."""
    if not own.size:
        return dict.fromkeys([*(f"p{percentile}" for percentile in _PERCENTILES), "worst_decile", "variance"], float("nan"))
    spread = {f"p{percentile}": float(np.percentile(own, percentile)) for percentile in _PERCENTILES}
    rising = np.sort(own.astype(np.float64))
    worst_first = rising[::-1] if is_worse_when_high(metric) else rising
    return {**spread, "worst_decile": float(worst_first[: -(-own.size // 10)].mean()), "variance": float(rising.var())}


def is_worse_when_high(metric: str) -> bool:
    """Returns whether a metric's name has the word ``loss``, ``error`` or ``perplexity`` in it: the lower, the better.

    Example:
      >>> is_worse_when_high("personal_loss"), is_worse_when_high("accuracy")
      (True, False)
    """
    return bool(_WORSE_WHEN_HIGH & {*metric.split("_")})


def _by_groups(pair: Any) -> tuple[float, np.ndarray, dict[str, float]]:
    """Of a metric by groups: its number over all examples, that of each client that has any, and its parts."""
    numbers = pair.overall()
    # NaN of finite means says that there is no such number; NaN of a model that diverged is told.
    own = (pair.weight.sum(-1) > 0) & ~(np.isnan(numbers) & np.isfinite(pair.value).all(-1))
    means = [weighted_mean(value, weight) for value, weight in zip(pair.value.T, pair.weight.T, strict=True)]
    pooled = pair._replace(value=np.array(means), weight=pair.weight.sum(0, dtype=np.float64))
    parts = {part: float(value) for part, value in pooled.parts().items()}
    return float(pooled.overall()) if pooled.weight.any() else float("nan"), numbers[own], parts


def evaluation_work(experiment: Experiment, dataset: FederatedDataset) -> LocalWork:
    """One epoch in stored order, in batches no larger than a middling client needs: empty rows cost as much as full ones."""
    median = max(1, int(np.median(dataset.client_sizes))) if dataset.num_clients else 1
    batch_size = min(experiment.local.batch_size, 1 << (median - 1).bit_length())
    return LocalWork(batch_size=batch_size, epochs=1, shuffle=False)


def match_clients(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns for each of ``ids`` its position in ``known``, -1 where it isn't there."""
    position = {client: number for number, client in enumerate(known.tolist())}
    return np.array([position.get(client, -1) for client in ids.tolist()], np.int64)


def _check_columns(train: FederatedDataset, dataset: FederatedDataset) -> None:
    def describe(data):
        return {name: f"{column.dtype}{list(column.shape[1:])}" for name, column in sorted(data.columns.items())}

    if describe(train) != describe(dataset):
        check.fail_value("the columns of an evaluation set", f"to be {describe(train)}, as in train", describe(dataset))
    if dataset.num_examples == 0:
        raise ValueError("expected an evaluation set to hold at least one example, got 0")
