"""Rounds for a user's own loop, and for ``ftx.run``: the host's side of the compiled program.

The host selects cohorts and packs them into schedules; the devices do the rest. While they do, the host prepares the next call
(``ahead.py``). The data stays on them, or with the host (``placement.py``).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_tx import check, prng
from fedjax_tx.aggregation import check_max_clients
from fedjax_tx.data.cohort import as_cohort
from fedjax_tx.data.parts import Owners
from fedjax_tx.data.schedule import Capacity, Schedule, make_schedule, plan_capacity, stack, useful_share
from fedjax_tx.simulation.ahead import Ahead, CallKey, prepare_ahead, take_ahead
from fedjax_tx.simulation.columns import count_classes, in_memory, refuse_data, refuse_values
from fedjax_tx.simulation.debug import run_round_watched
from fedjax_tx.simulation.experiment import Experiment
from fedjax_tx.simulation.mesh import owners, place, resolve_mesh
from fedjax_tx.simulation.messages import refuse_settings
from fedjax_tx.simulation.placement import gather_rows, place_columns, refuse_buffers, rows_of_a_round, rows_that_fit
from fedjax_tx.simulation.round import DeviceState, init_state, pass_work, resolve, run_rounds
from fedjax_tx.types import Cohort, Execution, LocalWork, PyTree

_MAX_ROUNDS_PER_CALL = 32
_MAX_SCHEDULE_BYTES = 4 * 2**20  # of a call: rounds so large that this holds few of them do not feel what a call costs


class RoundState(NamedTuple):
    """Everything the next round needs.

    device: parameters, optimiser and client states. cohorts: the cohort source's state. seed: what names the randomness.
    round: the number of the next round. last_metrics: of the clients of the last round, where the cohort source reads them.
    """

    device: DeviceState
    cohorts: PyTree
    seed: int
    round: int
    last_metrics: Any = None


class RoundInfo(NamedTuple):
    """What a person wants to see of a round.

    round: its number. metrics: ``{name: mean over the cohort}``, weighted. client_ids: the cohort's client indices.
    client_metrics: ``{name: (value[client], weight[client])}``. server, aggregation: what the server's step and the aggregator
    report. num_clients: how many contributed. num_examples: examples trained on, repetitions counted. num_steps: local steps.
    useful: real examples over slots of the lanes. empty: nobody contributed, so the parameters stayed. not_finite: client
    indices of those that were left out since their update or new state was not finite; so do ``metrics``. dropped: client
    indices of those that dropped out; so do the metrics.
    """

    round: int
    metrics: Mapping[str, float]
    client_ids: np.ndarray
    client_metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]
    server: Mapping[str, Any]
    aggregation: Mapping[str, Any]
    num_clients: int
    num_examples: int
    num_steps: int
    useful: float
    empty: bool
    not_finite: np.ndarray
    dropped: np.ndarray


class RoundCounts(NamedTuple):
    """What the schedules of a round say of it; the fields are those of ``RoundInfo``."""

    num_examples: int
    num_steps: int
    useful: float


class Plan(NamedTuple):
    """Some rounds, planned on the host: who, and on which lane; ``schedules`` holds for each pass a list over the rounds."""

    cohorts: list[Cohort]
    schedules: tuple[list[Schedule], ...]
    counts: list[RoundCounts]
    source_state: PyTree


class Call(NamedTuple):
    """A call of the compiled program, ready but for the state: its plan, and the columns and schedules that it is given."""

    plan: Plan
    columns: dict[str, jax.Array]
    schedules: tuple[Schedule, ...]


@dataclass(frozen=True, eq=False)
class RoundFunction:
    """``round_fn.init(seed)`` makes the first state; ``round_fn(state) -> (state, info)`` runs one round.

    Made by ``make_round``. ``run(state, num_rounds)`` runs several in one call of the compiled program. ``columns`` are on the
    devices, or with the host where ``buffer_rows`` says how many rows a call is sent. ``classes``: how many there are for each
    column of labels. ``ahead`` holds at most one call.
    """

    experiment: Experiment
    works: tuple[LocalWork, ...]
    capacities: tuple[Capacity, ...]
    columns: dict[str, Any]
    num_lanes: int
    rounds_per_call: int
    max_version: int
    mesh: Mesh | None = None
    buffer_rows: int | None = None
    owners: Owners | None = None
    debug: bool = False
    classes: Mapping[str, int] = field(default_factory=dict)
    ahead: list[Ahead] = field(default_factory=list, init=False, repr=False)

    def init(self, seed: int | None = None, init_params: PyTree = None) -> RoundState:
        """Returns the state before round 0; ``seed`` defaults to the experiment's, ``init_params`` to newly drawn ones."""
        experiment = self.experiment
        seed = experiment.seed if seed is None else check.integer("seed", seed, low=0, high=2**32 - 1)
        device = init_state(*self._first_arguments(seed, init_params))
        return RoundState(place(device, self.mesh), experiment.cohorts.init(experiment.train.num_clients), seed, 0)

    def shapes(self, init_params: PyTree = None) -> DeviceState:
        """Returns the shapes of what lies on the devices; nothing is compiled."""
        return init_state.eval_shape(*self._first_arguments(self.experiment.seed, init_params))

    def _first_arguments(self, seed: int, init_params: PyTree) -> tuple:
        experiment = self.experiment
        maker, population, hyper = experiment.make_algorithm, experiment.train.num_clients, hyper_arrays(experiment.hyper)
        # Of the data only shapes are read, and each process makes the state by itself.
        columns = {name: np.zeros((1, *c.shape[1:]), c.dtype) for name, c in experiment.train.columns.items()}
        return maker, population, self.works[0].batch_size, hyper, np.uint32(seed), init_params, columns

    def __call__(self, state: RoundState) -> tuple[RoundState, RoundInfo]:
        """Runs one round."""
        state, infos = self.run(state, 1)
        return state, infos[0]

    def run(self, state: RoundState, num_rounds: int, then: int | None = None) -> tuple[RoundState, list[RoundInfo]]:
        """Runs ``num_rounds`` rounds (at most ``rounds_per_call``) in one call of the compiled program.

        Meanwhile the next call is prepared: of ``then`` rounds, by default as many again; 0: none is. No result depends on it.
        """
        check.instance("state", state, RoundState, "a RoundState made by round_fn.init")
        check.integer("num_rounds", num_rounds, low=1, high=self.rounds_per_call)
        then = num_rounds if then is None else check.integer("then", then, low=0, high=self.rounds_per_call)
        ahead = self.ahead.pop() if self.ahead else None
        call = take_ahead(ahead, _key(state, num_rounds), lambda: self.prepare(self.plan(state, num_rounds)))
        plan, arguments = call.plan, self._arguments(state, call)
        reads_metrics = self.experiment.cohorts.reads_metrics
        if self.debug:
            names = self.experiment.train.client_ids[plan.cohorts[0].ids].tolist()
            device, output = run_round_watched(arguments, state.round, names)
        else:
            device, output = run_rounds(*arguments)
        state = RoundState(device, plan.source_state, state.seed, state.round + num_rounds)
        if then and not reads_metrics and not self.debug:
            self.ahead.append(prepare_ahead(_key(state, then), lambda: self.prepare(self.plan(state, then))))
        # Only here the host waits for the devices.
        infos = read_infos(state.round - num_rounds, plan, jax.device_get(output))
        last = (infos[-1].client_ids, infos[-1].client_metrics) if reads_metrics else None
        return state._replace(last_metrics=last), infos

    def plan(self, state: RoundState, num_rounds: int) -> Plan:
        """Selects the cohorts of the next rounds and packs them into lanes."""
        source, train = self.experiment.cohorts, self.experiment.train
        most, source_state = source.max_clients(train.num_clients), state.cohorts
        cohorts: list[Cohort] = []
        schedules: tuple[list[Schedule], ...] = tuple([] for _ in self.works)
        for number in range(state.round, state.round + num_rounds):
            generator = prng.host_generator(state.seed, "cohort", number)
            selected, source_state = source.select(source_state, generator, state.last_metrics)
            cohorts.append(as_cohort(selected, train.num_clients, most))
            self._refuse_repeats(cohorts[-1], state.device)
            self._refuse_versions(cohorts[-1])
            for work, capacity, planned in zip(self.works, self.capacities, schedules, strict=True):
                planned.append(make_schedule(cohorts[-1], train.offsets, work, capacity, state.seed, number, self.owners))
        counts = [count_round(planned, self.works) for planned in zip(*schedules, strict=True)]
        return Plan(cohorts, schedules, counts, source_state)

    def prepare(self, plan: Plan) -> Call:
        """Makes ready what the compiled program is given of a plan; with the data on the host, its rows are on their way."""
        columns, schedules = self.columns, plan.schedules
        if self.buffer_rows is not None:
            buffers, schedules = gather_rows(columns, schedules, self.buffer_rows)
            refuse_values(buffers, self.classes)
            columns = place(buffers, self.mesh)
        return Call(plan, columns, tuple(stack(planned, self.rounds_per_call) for planned in schedules))

    def arguments(self, state: RoundState, plan: Plan) -> tuple:
        """Returns the arguments of ``run_rounds`` for a plan."""
        return self._arguments(state, self.prepare(plan))

    def memory(self, state: RoundState) -> dict[str, int]:
        """Returns the bytes that a call for one round needs on each device, as XLA says; nothing is run.

        ``arguments`` are there before: the state, the data and the schedule. ``temporaries`` include the results.

        Errors: ``RuntimeError`` if this kind of device does not tell.
        """
        compiled = run_rounds.lower(*self.arguments(state, self.plan(state, 1))).compile()
        memory = compiled.memory_analysis()
        if memory is None:
            raise RuntimeError(f"expected {jax.default_backend()} to tell how much memory a program needs, got nothing")
        rest = memory.temp_size_in_bytes + memory.output_size_in_bytes
        return {"arguments": memory.argument_size_in_bytes, "temporaries": rest}

    def _arguments(self, state: RoundState, call: Call) -> tuple:
        experiment = self.experiment
        return (
            experiment.make_algorithm,
            tuple(work.batch_size for work in self.works),
            hyper_arrays(experiment.hyper),
            np.uint32(state.seed),
            np.int32(state.round),
            np.int32(len(call.plan.cohorts)),
            state.device if self.mesh is None else place(state.device, self.mesh),
            call.columns,
            call.schedules,
            np.int32(experiment.train.num_clients),
            self.mesh,
        )

    def _refuse_repeats(self, cohort: Cohort, device: DeviceState) -> None:
        ids, counts = np.unique(cohort.ids, return_counts=True)
        if (counts > 1).any() and jax.tree.leaves((device.clients, device.encoders)):
            check.fail_value("the cohort", "to hold each client once, since its state is kept", ids[counts > 1].tolist())
        if (counts > 1).any() and not self.experiment.cohorts.repeats:
            expected = "to hold each client once, as its source says (repeats=False)"
            check.fail_value("the cohort", expected, ids[counts > 1].tolist())

    def _refuse_versions(self, cohort: Cohort) -> None:
        version = np.asarray(cohort.version)
        if version.size and not 0 <= version.min() <= version.max() <= self.max_version:
            expected = f"in 0..{self.max_version}, the starts that the algorithm serves"
            check.fail_value("the cohort's version", expected, version.tolist())


def make_round(experiment: Experiment, execution: Execution | None = None) -> RoundFunction:
    """Makes the round function of an experiment, for your own loop.

    Args:
      experiment: what is computed. execution: how; with ``num_lanes="auto"`` several programs are compiled and timed.

    Errors: ``ValueError`` if the cohorts don't fit the algorithm, or a column holds labels of no class or integers beyond int32.

    Example:
      >>> import fedjax_tx as ftx, numpy as np, jax, optax
      >>> train = ftx.data.FederatedDataset.from_columns({"x": np.eye(4, dtype=np.float32), "y": np.arange(4)}, [0, 0, 1, 1])
      >>> model = ftx.Model(lambda key: np.zeros((4, 4), np.float32), lambda params, x, *, key=None: x @ params)
      >>> algorithm = ftx.algorithms.fed_avg(ftx.tasks.classification(model), client_optimizer=optax.sgd(1.0))
      >>> experiment = ftx.Experiment(
      ...     algorithm, train=train, cohorts=ftx.data.all_clients(), local=ftx.data.LocalWork(batch_size=2))
      >>> round_fn = make_round(experiment, ftx.Execution(num_lanes=2))
      >>> state, info = round_fn(round_fn.init(seed=0))
      >>> info.num_clients, state.round
      (2, 1)
    """
    from fedjax_tx.simulation.auto import choose_lanes

    check.instance("experiment", experiment, Experiment, "an Experiment")
    execution = Execution() if execution is None else execution
    check.instance("execution", execution, Execution, "an Execution")
    mesh = resolve_mesh(execution)
    if execution.placement == "device":
        refuse_data(experiment)
    columns = place_columns(experiment.train, execution.placement, mesh)
    if execution.debug:
        plain = dataclasses.replace(execution, rounds_per_call=1, taper=0)
        return dataclasses.replace(build_round(experiment, columns, 1, plain), debug=True)
    if execution.num_lanes == "auto":
        return choose_lanes(experiment, execution, columns, mesh)
    return build_round(experiment, columns, execution.num_lanes, execution, mesh)


def build_round(
    experiment: Experiment, columns: dict, num_lanes: int, execution: Execution, mesh: Mesh | None = None
) -> RoundFunction:
    """Makes the round function for a given number of lanes a device; otherwise as ``execution`` says."""
    train, source = experiment.train, experiment.cohorts
    source.init(train.num_clients)  # refuses a source that doesn't fit the data, before anything compiles
    most = source.max_clients(train.num_clients)
    algorithm = resolve(experiment.make_algorithm, experiment.hyper)
    if source.max_version > algorithm.max_version:
        expected = f"<= {algorithm.max_version}, the oldest start that the algorithm serves"
        check.fail_value("the cohorts' max_version", expected, source.max_version)
    if algorithm.num_clients not in (None, train.num_clients):
        expected = f"to be {train.num_clients}, as many as the training data has"
        check.fail_value("the algorithm's number of clients", expected, algorithm.num_clients)
    for a_pass in algorithm.passes:
        check_max_clients(a_pass.aggregator, most)
    classes = count_classes(algorithm, train.columns)
    refuse_values(in_memory(train.columns), classes)
    works = tuple(pass_work(a_pass, experiment.local) for a_pass in algorithm.passes)
    devices = None if mesh is None else mesh.size
    sizes, taper = train.client_sizes, execution.taper
    owned = owners(train, mesh)
    size = (most, num_lanes, source.repeats, devices, taper, owned)
    capacities = tuple(plan_capacity(sizes, work, *size) for work in works)
    round_rows = rows_of_a_round(sizes, works, most) if execution.placement == "host" else None
    rounds_per_call = 1 if source.reads_metrics else _rounds_per_call(execution, capacities, columns, round_rows)
    buffer_rows = None
    if round_rows is not None:
        buffer_rows = min(rounds_per_call * round_rows, train.num_examples)
        refuse_buffers(columns, buffer_rows, mesh)
    lanes = max(capacity.lanes for capacity in capacities)
    settings = (works, capacities, columns, lanes, rounds_per_call, algorithm.max_version, mesh, buffer_rows, owned)
    made = RoundFunction(experiment, *settings, classes=classes)
    refuse_settings(experiment, made.shapes(), [experiment.hyper])
    return made


def _rounds_per_call(execution: Execution, capacities: tuple[Capacity, ...], columns: dict, round_rows: int | None) -> int:
    """As given; or as many rounds as have schedules of a few MB, and on the host rows that fit a buffer."""
    if isinstance(execution.rounds_per_call, int):
        return execution.rounds_per_call
    own = sum((c.devices or 1) * (4 * c.ticks * c.lanes + 2 * c.ticks + 4 * c.clients) for c in capacities)
    words = own + sum(c.rows + 4 * c.clients for c in capacities)
    fits = min(_MAX_ROUNDS_PER_CALL, _MAX_SCHEDULE_BYTES // (4 * words))
    if round_rows is not None:
        fits = min(fits, rows_that_fit(columns) // round_rows)
    return max(1, fits)


def _key(state: RoundState, num_rounds: int) -> CallKey:
    return CallKey(state.seed, state.round, num_rounds, state.cohorts)


def hyper_arrays(hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Hyperparameters as strongly typed float32 (ints as int32) scalars: another value is never another program."""
    values = {name: np.asarray(value) for name, value in hyper.items()}
    return {name: value.astype(np.int32 if value.dtype.kind in "iu" else np.float32) for name, value in values.items()}


def count_round(schedules: Sequence[Schedule], works: Sequence[LocalWork]) -> RoundCounts:
    """Returns what the schedules of a round's passes say of it."""
    shares = [useful_share(schedule, work.batch_size) for schedule, work in zip(schedules, works, strict=True)]
    examples, steps = (sum(int(getattr(one, name).sum()) for one in schedules) for name in ("count", "num_steps"))
    return RoundCounts(examples, steps, float(np.mean(shares)))


def read_infos(first_round: int, plan: Plan, output) -> list[RoundInfo]:
    """Returns what a person wants to see of the rounds of a plan, from what the compiled program gave."""
    infos = []
    for number, (cohort, counts) in enumerate(zip(plan.cohorts, plan.counts, strict=True)):
        size = cohort.ids.size
        row = jax.tree.map(lambda leaf, number=number: leaf[number], output)
        client_metrics = {name: (value[:size], weight[:size]) for name, (value, weight) in row.metrics.items()}
        not_finite, dropped = row.not_finite[:size], cohort.work_done == 0
        heard = ~(not_finite | dropped)
        counted = {name: (value[heard], weight[heard]) for name, (value, weight) in client_metrics.items()}
        info = RoundInfo(
            round=first_round + number,
            metrics={name: weighted_mean(*pair) for name, pair in counted.items()},
            client_ids=cohort.ids,
            client_metrics=client_metrics,
            server={name: _plain(value) for name, value in row.server.items()},
            aggregation={name: _plain(value) for name, value in row.aggregation.items()},
            num_clients=int(row.totals.clients),
            empty=bool(row.empty),
            not_finite=cohort.ids[not_finite],
            dropped=cohort.ids[dropped],
            **counts._asdict(),
        )
        infos.append(info)
    return infos


def weighted_mean(value: np.ndarray, weight: np.ndarray) -> float:
    """Returns the mean of ``value`` weighted by ``weight``; nan where nothing has weight."""
    total = weight.sum(dtype=np.float64)
    return float((value[weight > 0].astype(np.float64) * weight[weight > 0]).sum() / total) if total > 0 else float("nan")


def _plain(value):
    return value.item() if np.ndim(value) == 0 else value
