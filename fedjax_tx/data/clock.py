"""Asynchronous cohorts: a virtual clock decides whose updates fill the server's next buffer, and how old they are.

The setting is that of FedBuff (arXiv 2106.06639, Algorithm 1). ``concurrency`` clients train at any time. One that is done puts
its update into the buffer, and a client drawn uniformly takes its place and starts from the current model. When the buffer holds
``buffer_size`` updates the server makes a step: that is one round, its cohort the clients of the buffer. The age of the model
that each of them started from, counted in server steps, is its ``version``.

What happens at one moment happens in this order: all who finish then arrive, those that started earlier first; the server
steps as often as its buffer fills; then free places are taken. So clients of equal speed stay in step, and with
``concurrency == buffer_size`` every version is 0: the synchronous run. A client that trains, or whose update waits in the buffer,
is not drawn (a cohort holds each client once); a place for which nobody is left waits for the next server step.

An update that arrives more than ``max_staleness`` steps old is thrown away, and its place is taken like any other. That
favours fast clients, as it would in the field; ``dropped_updates`` counts it. It can't go on for ever: an update only grows
old by server steps.

Time has the unit of the durations. Only the order of events is simulated; the training itself is done round by round.
"""

import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_tx import check
from fedjax_tx.types import Cohort, CohortSource

_NOBODY = -1


class ClockState(NamedTuple):
    """What the clock remembers between server steps; the buffer is empty then.

    now: virtual time. steps: server steps made. started: clients started. num_clients: of the data set. client, finish, model,
    order [place]: who trains at each of the ``concurrency`` places (-1: nobody), when it will be done (inf: nobody), how many
    steps the server had made when it started, and how many had started before it.
    """

    now: np.float64
    steps: np.int64
    started: np.int64
    num_clients: np.int64
    client: np.ndarray
    finish: np.ndarray
    model: np.ndarray
    order: np.ndarray


def async_cohorts(
    durations: ArrayLike | Callable[[np.random.Generator, np.ndarray], ArrayLike],
    concurrency: int,
    buffer_size: int,
    max_staleness: int,
) -> CohortSource:
    """Takes as a round's cohort the clients whose updates arrive next on a virtual clock; made for ``ftx.algorithms.fed_buff``.

    Args:
      durations: how long each client trains, float [client], > 0; or ``durations(generator, ids) -> float [len(ids)]`` for the
        clients that start now, drawn with the generator and nothing else (a run is resumed by the function's name).
      concurrency: how many clients train at any time. buffer_size: updates in a server step, the size of each cohort.
      max_staleness: updates older than this many server steps are thrown away, >= 0.

    Covariates of each client: ``virtual_time``, that of the server's step; ``arrival_time``, its own; ``dropped_updates``, how
    many were thrown away since the step before.

    Errors: ``ValueError`` when a run starts with fewer clients than ``concurrency`` or ``buffer_size``, or with another number of
    clients than of durations; ``TypeError`` or ``ValueError`` for durations that are not finite numbers > 0.

    Example:
      >>> source = async_cohorts([1.0, 2.0, 5.0], concurrency=3, buffer_size=2, max_staleness=4)
      >>> cohort, state = source.select(source.init(3), np.random.default_rng(0), None)
      >>> cohort.ids.tolist(), cohort.version.tolist(), cohort.covariates["virtual_time"].tolist()
      ([0, 1], [0, 0], [2.0, 2.0])
    """
    check.integer("concurrency", concurrency, low=1)
    check.integer("buffer_size", buffer_size, low=1)
    check.integer("max_staleness", max_staleness, low=0)
    draw, num_durations, said = read_durations(durations)

    def init(num_clients):
        for name, value in (("concurrency", concurrency), ("buffer_size", buffer_size)):
            if value > num_clients:
                check.fail_value(name, f"<= {num_clients}, the number of clients", value)
        if num_durations is not None and num_durations != num_clients:
            check.fail_value("durations", f"to have {num_clients} entries, one for each client", f"{num_durations} entries")
        nobody, zeros = np.full(concurrency, _NOBODY), np.zeros(concurrency, np.int64)
        counts = (np.int64(0), np.int64(0), np.int64(num_clients))
        return ClockState(np.float64(0), *counts, nobody, np.full(concurrency, np.inf), zeros, zeros)

    def select(state, generator, last_client_metrics):
        arrivals: list[tuple[int, int, float]] = []
        dropped = 0
        while len(arrivals) < buffer_size:
            if state.finish.min() > state.now:  # everything of this moment has happened
                state = _fill_places(state, [client for client, _, _ in arrivals], draw, generator)
            state, arrival = _next_arrival(state)
            if arrival[1] <= max_staleness:
                arrivals.append(arrival)
            else:
                dropped += 1
        ids, version, times = (np.array(values) for values in zip(*arrivals, strict=True))
        covariates = {
            "virtual_time": np.full(buffer_size, state.now),
            "arrival_time": times,
            "dropped_updates": np.full(buffer_size, dropped, np.int32),
        }
        return Cohort(ids, version, covariates), state._replace(steps=state.steps + 1)

    description = f"async_cohorts({said}, concurrency={concurrency}, buffer_size={buffer_size}, max_staleness={max_staleness})"
    return CohortSource(init, select, lambda num_clients: buffer_size, description, max_version=max_staleness)


def _fill_places(state: ClockState, waiting: list[int], draw, generator: np.random.Generator) -> ClockState:
    """Starts clients, drawn from those that neither train nor wait in the buffer, at the places that are free."""
    idle = np.ones(int(state.num_clients), bool)
    idle[state.client[state.client != _NOBODY]] = False
    idle[waiting] = False
    candidates = np.flatnonzero(idle)
    places = np.flatnonzero(state.client == _NOBODY)[: candidates.size]
    if places.size == 0:
        return state
    chosen = generator.choice(candidates, places.size, replace=False)
    spent = draw(generator, chosen)
    return state._replace(
        started=state.started + places.size,
        client=_with(state.client, places, chosen),
        finish=_with(state.finish, places, state.now + spent),
        model=_with(state.model, places, state.steps),
        order=_with(state.order, places, state.started + np.arange(places.size)),
    )


def _next_arrival(state: ClockState) -> tuple[ClockState, tuple[int, int, float]]:
    """Lets time pass until the next client is done, the earliest started on a tie: (client, age of its model, time)."""
    place = np.lexsort((state.order, state.finish))[0]
    time = state.finish[place]
    arrival = (int(state.client[place]), int(state.steps - state.model[place]), float(time))
    client, finish = _with(state.client, place, _NOBODY), _with(state.finish, place, np.inf)
    return state._replace(now=time, client=client, finish=finish), arrival


def _with(values: np.ndarray, where, new) -> np.ndarray:
    """A changed copy: the state that a caller holds stays as it is."""
    values = values.copy()
    values[where] = new
    return values


def read_durations(durations) -> tuple[Callable, int | None, str]:
    """Returns how durations are drawn, how many clients have one (None: any), and what tells them from others."""
    if callable(durations):
        name = getattr(durations, "__qualname__", type(durations).__qualname__)  # objects may be callable too
        return partial(_draw, durations), None, f"durations {durations.__module__}.{name}"
    table = _checked("durations", durations)
    if table.ndim != 1:
        check.fail_value("durations", "of shape [client]", table.shape)
    checksum = zlib.crc32(table.tobytes())
    return (lambda generator, ids: table[ids]), table.size, f"{table.size} durations with checksum {checksum:08x}"


def _draw(durations, generator: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    spent = _checked("the durations that were drawn", durations(generator, ids))
    if spent.shape != ids.shape:
        expected = f"to have {ids.size} entries, one for each client that starts"
        check.fail_value("the durations that were drawn", expected, f"an array of shape {spent.shape}")
    return spent


def _checked(name: str, durations) -> np.ndarray:
    array = np.asarray(durations)
    if array.dtype.kind not in "iuf":
        check.fail_type(name, "an array of numbers, or a function (generator, ids) -> such an array", durations)
    array = array.astype(np.float64)
    bad = array[~(np.isfinite(array) & (array > 0))]
    if bad.size:
        check.fail_value(name, "to be finite and > 0", float(bad.flat[0]))
    return array
