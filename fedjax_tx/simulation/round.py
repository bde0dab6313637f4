"""The compiled program of several rounds, and of an evaluation.

Both are module-level programs whose static arguments say *which* program it is: the algorithm's maker and the shapes of
the work. Hyperparameters, seed, data and schedules are arguments, so experiments that differ only in them share one program.
"""

from collections.abc import Mapping
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt

from fedjax_tx import check, prng, tree
from fedjax_tx.data.schedule import Schedule
from fedjax_tx.simulation.lanes import PassEnd, PassStart, Watch, batch_shapes, run_pass, update_shapes
from fedjax_tx.simulation.mesh import axis_name, run_on_each
from fedjax_tx.simulation.program import Program
from fedjax_tx.types import (
    ClientInfo,
    FederatedAlgorithm,
    Hyper,
    LocalWork,
    MakeAlgorithm,
    Metrics,
    Pass,
    PyTree,
    ServerState,
    Totals,
)


class DeviceState(NamedTuple):
    """What a run keeps between rounds on the device.

    clients: the client state, [client, ...] over the whole data set. aggregators, encoders: for each pass, the aggregator's
    state and its client states [client, ...].
    """

    server: ServerState
    clients: PyTree
    aggregators: tuple[PyTree, ...]
    encoders: tuple[PyTree, ...]


class RoundOutput(NamedTuple):
    """What a person or a cohort source wants to see of one round.

    metrics: ``{name: (value[slot], weight[slot])}`` of each client, over all passes. server: what ``combine`` said, aggregation:
    what ``decode`` said (merged over the passes). totals: of the last pass. empty: whether a pass had no weight at all.
    not_finite [slot]: who was left out of a pass and those behind it, since what it handed over was not finite.
    """

    metrics: Metrics
    server: Mapping[str, Array]
    aggregation: Mapping[str, Array]
    totals: Totals
    empty: Array
    not_finite: Array


def resolve(make_algorithm: MakeAlgorithm, hyper: Hyper) -> FederatedAlgorithm:
    """Returns the algorithm for these hyperparameters (or the algorithm itself)."""
    algorithm = make_algorithm if isinstance(make_algorithm, FederatedAlgorithm) else make_algorithm(hyper)
    if not isinstance(algorithm, FederatedAlgorithm):
        raise TypeError(f"expected make_algorithm to return a FederatedAlgorithm, got {type(algorithm).__name__}")
    return algorithm


def pass_work(a_pass: Pass, local: LocalWork) -> LocalWork:
    """Returns the work of a pass in an experiment whose local work is ``local``."""
    if a_pass.work is None:
        return local
    work = a_pass.work(local) if callable(a_pass.work) else a_pass.work
    return check.instance("the work of a pass", work, LocalWork, "a LocalWork")


@partial(jax.jit, static_argnames=("make_algorithm", "num_clients", "batch_size"))
def init_state(make_algorithm, num_clients: int, batch_size: int, hyper, seed, init_params, columns) -> DeviceState:
    """Makes the state before round 0."""
    algorithm = resolve(make_algorithm, hyper)
    key = prng.fold(prng.root(seed), "init")
    server = algorithm.init(prng.fold(key, "server"), init_params)
    first = algorithm.passes[0]
    client_keys = jax.vmap(lambda client: prng.fold(key, "client", client))(jnp.arange(num_clients))
    broadcast = first.broadcast(server)
    clients = jax.vmap(lambda client_key: first.trainer.init_state(broadcast, client_key))(client_keys)
    info = _example_info(columns, batch_size)
    aggregators, encoders = [], []
    for a_pass in algorithm.passes:
        update = update_shapes(a_pass, a_pass.broadcast(server), tree.take(clients, 0), info)
        update = tree.zeros(update)
        aggregators.append(a_pass.aggregator.init(update))
        one = a_pass.aggregator.init_client(update)
        encoders.append(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_clients, *leaf.shape)), one))
    return DeviceState(server, clients, tuple(aggregators), tuple(encoders))


def run_rounds_uncompiled(
    make_algorithm,
    batch_sizes: tuple[int, ...],
    hyper: Hyper,
    seed: UInt[Array, "..."],
    first_round: Int[Array, ""],
    num_rounds: Int[Array, ""],
    state: DeviceState,
    columns: dict[str, Array],
    schedules: tuple[Schedule, ...],
    population: Int[Array, ""],
    mesh: Mesh | None = None,
    watch: Watch | None = None,
) -> tuple[DeviceState, RoundOutput]:
    """Runs ``num_rounds`` rounds from round ``first_round``; ``run_rounds`` is this, jitted.

    Args:
      schedules: for each pass, the rounds' schedules stacked along a leading axis; its length is the capacity of a call.
      population: how many clients the data set has. mesh: the devices that share the lanes; all else each of them does alike.
      watch: looks at concrete values on the way (see ``debug.py``); for one lane under ``jax.disable_jit()``.

    Returns: the state, and the rounds' outputs stacked along that axis (only the first ``num_rounds`` count).
    """

    def rounds(schedules, columns, hyper, seed, first_round, num_rounds, state, population):
        algorithm = resolve(make_algorithm, hyper)
        key = prng.fold(prng.root(seed), "round")

        def numbered(state, number):
            round_key = prng.fold(key, first_round + number)
            schedule = tree.take(schedules, number)
            return one_round(algorithm, batch_sizes, round_key, state, columns, schedule, population, axis_name(mesh), watch)

        def body(number, carry):
            state, outputs = carry
            state, output = numbered(state, number)
            return state, tree.put(outputs, number, output)

        capacity = schedules[0].num_ticks.shape[0]
        _, output = jax.eval_shape(numbered, state, jnp.int32(0))
        return lax.fori_loop(0, num_rounds, body, (state, tree.zeros(output, (capacity,))))

    arrays = (hyper, seed, first_round, num_rounds, state, population)
    return run_on_each(mesh, rounds, schedules, columns, *arrays, device_axis=1)


run_rounds = Program(run_rounds_uncompiled, static_argnames=("make_algorithm", "batch_sizes", "mesh", "watch"))


def run_evaluation_uncompiled(
    make_algorithm, batch_size: int, population: int, hyper, seed, state: DeviceState, rows, columns, schedule, mesh=None
) -> Metrics:
    """Scores a data set's clients: ``{name: (value[slot], weight[slot])}``; ``run_evaluation`` is this, jitted.

    ``rows`` [slot] says which of the training clients each is; -1, one that is not among them, gets a first state.
    """

    def score(schedule, columns, hyper, seed, state, rows):
        algorithm = resolve(make_algorithm, hyper)
        key = prng.fold(prng.root(seed), "evaluation")
        a_pass, first = algorithm.evaluation, algorithm.passes[0]
        broadcast = a_pass.broadcast(state.server)
        clients = tree.take(state.clients, jnp.maximum(rows, 0))
        fresh = first.trainer.init_state(first.broadcast(state.server), key)
        known = rows >= 0
        clients = jax.tree.map(lambda have, new: jnp.where(known.reshape(-1, *[1] * new.ndim), have, new), clients, fresh)
        begin = PassStart(broadcast, (), clients, (), prng.fold(key, "round"), prng.fold(key, "pass"))
        return run_pass(a_pass, begin, columns, schedule, batch_size, population, axis_name(mesh), ids=rows).metrics

    return run_on_each(mesh, score, schedule, columns, hyper, seed, state, rows)


run_evaluation = Program(run_evaluation_uncompiled, static_argnames=("make_algorithm", "batch_size", "population", "mesh"))


def one_round(algorithm, batch_sizes, round_key, state, columns, schedules, population, axis=None, watch=None):
    """Runs a round on a schedule for each pass: (state, output)."""
    said: tuple[dict, dict, dict] = ({}, {}, {})
    empty = jnp.bool_(False)
    left_out: list[Array] = []
    for number, (a_pass, schedule) in enumerate(zip(algorithm.passes, schedules, strict=True)):
        pass_key = prng.fold(round_key, "pass", number)
        watch_pass = None if watch is None else partial(watch, number)
        begin = _begin(a_pass, number, pass_key, state, schedule)
        begin = begin._replace(left_out=reduce(jnp.logical_or, left_out) if left_out else None)
        end = run_pass(a_pass, begin, columns, schedule, batch_sizes[number], population, axis, watch_pass)
        state, nobody, server_said, decode_said = _update_server(a_pass, number, pass_key, state, end, schedule)
        if watch_pass is not None:
            watch_pass("the server's state", state.server)
        empty |= nobody
        left_out.append(end.not_finite)
        for have, new in zip(said, (end.metrics, server_said, decode_said), strict=True):
            _merge(have, new, number)
    return state, RoundOutput(*said, end.totals, empty, reduce(jnp.logical_or, left_out))


def _begin(a_pass: Pass, number, pass_key, state: DeviceState, schedule) -> PassStart:
    return PassStart(
        a_pass.broadcast(state.server),
        state.aggregators[number],
        tree.take(state.clients, schedule.ids),
        tree.take(state.encoders[number], schedule.ids),
        prng.fold(pass_key, "aggregate"),
        prng.fold(pass_key, "clients"),
    )


def _update_server(a_pass: Pass, number, pass_key, state: DeviceState, end: PassEnd, schedule):
    """decode → combine, and the cohort's rows back into place: (state, whether nobody took part, two infos)."""
    aggregator, old = a_pass.aggregator, state.aggregators[number]
    aggregate, new, decode_said = aggregator.decode(end.reduced, end.totals, old, prng.fold(pass_key, "decode"))
    server, server_said = a_pass.combine(state.server, aggregate, prng.fold(pass_key, "combine"))
    nobody = end.totals.weight <= 0
    if not aggregator.releases_empty:
        server = tree.where(nobody, state.server, server)
        new = tree.where(nobody, old, new)

    # Slots beyond the cohort point outside and are dropped: they must not write over the client whose number fills them.
    capacity = schedule.ids.shape[0]
    ids = jnp.where(jnp.arange(capacity) < schedule.num_clients, schedule.ids, jnp.iinfo(jnp.int32).max)

    def scatter(states, rows):
        return jax.tree.map(lambda have, row: have.at[ids].set(row, mode="drop"), states, rows)

    def replaced(states, value):
        return (*states[:number], value, *states[number + 1 :])

    state = DeviceState(
        server,
        scatter(state.clients, end.client_states),
        replaced(state.aggregators, new),
        replaced(state.encoders, scatter(state.encoders[number], end.encoder_states)),
    )
    return state, nobody, dict(server_said), dict(decode_said)


def _merge(have: dict, new: Mapping, number: int) -> None:
    for name, value in new.items():
        if name in have:
            raise ValueError(f"expected each pass to report its own names, got {name!r} again from pass {number}")
        have[name] = value


def _example_info(columns, batch_size) -> ClientInfo:
    zero = jnp.int32(0)
    return ClientInfo(zero, zero, zero, zero, zero, {}, jax.random.key(0), batch_shapes(columns, batch_size))
