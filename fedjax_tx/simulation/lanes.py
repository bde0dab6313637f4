"""One pass over one cohort: a loop over ticks, ``vmap`` over lanes. The only executor: training, evaluation and statistics.

At a tick, the lanes whose turn it is receive the broadcast (``start``), all lanes make one ``step`` side by side, and the lanes
whose client is done hand over (``finish``, ``encode``, ``receive``, accumulate). Starts and finishes run once per client, in
loops over the schedule's events: not at every tick for all lanes, and not under ``cond`` (which a sweep's ``vmap`` would turn
into a select). On an accelerator a turn of such a loop serves several clients side by side. The loops' counts are traced, so a
program serves every cohort that fits.

As lanes run dry at the end of a pass, the loop over ticks may hand over to one over the first half of the lanes, and so on; each
such loop is one more body to compile (``data/packing.py`` says when it pays). Where a single lane has many short batches, those
of at most half the rows are stepped at half size, by a step of its own (``data/schedule.py``).

In a sweep a client's every number is one for each setting, on a last axis (``stacked.py``): weights and flags, which are scalars
elsewhere, then have just that axis, and broadcasting lines them up with the rest.

On a mesh each device runs this loop over its own lanes, for its own number of ticks; what they collected comes together once,
after the loop (``mesh.py``).

A client whose update, weight or new state is not finite takes no part, in this pass and in those behind it: it is handed over
with weight 0, its states stay as they were, and ``PassEnd.not_finite`` says so. Nor does a client with examples that makes no
step: it has dropped out (``Cohort.work_done``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Key

from fedjax_tx import check, prng, tree
from fedjax_tx.data.schedule import Schedule, half_of
from fedjax_tx.simulation.mesh import join
from fedjax_tx.types import BatchShapes, ClientInfo, Linear, Metrics, Pass, PyTree, Rows, Stacked, Totals


class PassStart(NamedTuple):
    """What a pass begins with. ``client_states`` and ``encoder_states`` are the cohort's rows, by slot.

    left_out [slot]: who was not finite in a pass before and takes no part; None where there was none.
    """

    broadcast: PyTree
    shared: PyTree
    client_states: PyTree
    encoder_states: PyTree
    round_key: Key[Array, ""]
    pass_key: Key[Array, ""]
    left_out: Bool[Array, "slot ..."] | None = None


class PassEnd(NamedTuple):
    """What a pass leaves: the reduced summands, their totals, the cohort's new rows, and each client's metrics, by slot.

    not_finite [slot]: the clients that were left out since what they handed over was not finite.
    """

    reduced: PyTree
    totals: Totals
    client_states: PyTree
    encoder_states: PyTree
    metrics: Metrics
    not_finite: Bool[Array, " slot"]


_BYTES_AT_ONCE = 2**28  # of the clients that start or finish side by side on an accelerator

Watch = Callable[..., None]
"""``watch(place, values, slot=None, step=None)`` looks at concrete values as they come; only where nothing is compiled."""


class _Collected(NamedTuple):
    summands: PyTree
    weights: Array
    client_states: PyTree
    encoder_states: PyTree
    metrics: Metrics
    not_finite: Array


def run_pass(
    a_pass: Pass,
    begin: PassStart,
    columns: dict,
    schedule: Schedule,
    batch_size: int,
    population,
    axis: Any = None,
    watch: Watch | None = None,
    ids: Array | None = None,
) -> PassEnd:
    """Runs one pass; traced inside a jitted program.

    Args:
      a_pass: the trainer and the aggregator. columns: the whole data set, dict of [row, ...] arrays.
      schedule: who runs where and when. batch_size: rows of a batch. population: clients in the data set.
      axis: the mesh's axis, where this runs on each device of a mesh. watch: looks at every client's values; for one lane that
        runs uncompiled. ids [slot]: which training client each is, where the data set is another.
    """
    infos = _client_infos(schedule, columns, batch_size, begin.pass_key)
    infos = infos if ids is None else infos._replace(id=ids)
    local, summand, metrics, weight = result_shapes(a_pass, begin, infos)
    capacity, num_lanes = schedule.ids.shape[0], schedule.slot.shape[1]
    reduction = a_pass.aggregator.reduce
    stacked = isinstance(reduction, Stacked)
    collected = _Collected(
        tree.zero_sums(summand, reduction.weighted) if isinstance(reduction, Linear) else tree.zeros(summand, (capacity,)),
        jnp.zeros((capacity, *weight.shape)),
        begin.client_states,
        begin.encoder_states,
        tree.zeros(metrics, (capacity,)),
        jnp.zeros((capacity, *weight.shape), bool),
    )

    def tick(schedule, number, carry):
        lanes, collected = carry
        at_once = _events_at_once(local, schedule.slot.shape[1])
        lanes = _start_clients(a_pass, begin, infos, schedule, number, lanes, collected.client_states, at_once, watch)
        lanes = _step_lanes(a_pass, begin.broadcast, infos, columns, schedule, number, batch_size, lanes, watch)
        collected = _finish_clients(a_pass, begin, infos, schedule, number, lanes, collected, at_once, watch)
        return lanes, collected

    lanes, first = tree.zeros(local, (num_lanes,)), jnp.int32(0)
    narrow = () if schedule.narrow is None else schedule.narrow
    for halvings, end in enumerate((*narrow, schedule.num_ticks)):
        width = num_lanes >> halvings
        lanes = jax.tree.map(lambda leaf, width=width: leaf[:width], lanes)
        lanes, collected = lax.fori_loop(first, end, partial(tick, _first_lanes(schedule, width)), (lanes, collected))
        first = end
    if axis is not None:
        collected = _join_devices(collected, schedule, stacked, axis)
    valid = collected.weights > 0
    totals = Totals(collected.weights.sum(0), valid.sum(0), jnp.int32(schedule.num_clients), jnp.int32(population))
    reduced = Rows(collected.summands, collected.weights, valid) if stacked else collected.summands
    states = collected.client_states, collected.encoder_states
    return PassEnd(reduced, totals, *states, collected.metrics, collected.not_finite)


def _first_lanes(schedule: Schedule, width: int) -> Schedule:
    grid = {name: getattr(schedule, name)[:, :width] for name in ("first", "count", "slot", "step")}
    return schedule._replace(**grid)


def _join_devices(collected: _Collected, schedule: Schedule, stacked: bool, axis: Any) -> _Collected:
    """What all devices collected, on each of them: sums are added, rows come from the device that served the slot."""
    sums, rows = ((), collected) if stacked else (collected.summands, collected._replace(summands=()))
    capacity = schedule.ids.shape[0]
    slots = jnp.where(jnp.arange(capacity) < schedule.finishes[-1], schedule.finish_slot, capacity)
    served = jnp.zeros(capacity, bool).at[slots].set(True, mode="drop")
    sums, rows = join(sums, rows, served, axis)
    return rows if stacked else rows._replace(summands=sums)


def result_shapes(a_pass: Pass, begin: PassStart, infos: ClientInfo) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """Returns the shapes of one client's ``local``, summand, metrics and weight."""

    def one_client(begin, infos):
        info = tree.take(infos, 0)
        local = a_pass.trainer.start(begin.broadcast, info, tree.take(begin.client_states, 0))
        handed = _hand_over(a_pass, begin, info, local, tree.take(begin.encoder_states, 0))
        return local, handed.summand, handed.metrics, handed.weight

    return jax.eval_shape(one_client, begin, infos)


def update_shapes(a_pass: Pass, broadcast: PyTree, client_state: PyTree, info: ClientInfo) -> PyTree:
    """Returns the shapes of one client's update: what an aggregator's ``init`` sees."""

    def one_client(broadcast, client_state, info):
        local = a_pass.trainer.start(broadcast, info, client_state)
        return a_pass.trainer.finish(broadcast, info, local).update

    return jax.eval_shape(one_client, broadcast, client_state, info)


def batch_shapes(columns: dict, batch_size: int) -> BatchShapes:
    """Returns the shapes of a batch of ``columns``."""
    dtypes = {name: str(jax.dtypes.canonicalize_dtype(column.dtype)) for name, column in columns.items()}
    return BatchShapes(tuple((name, (batch_size, *c.shape[1:]), dtypes[name]) for name, c in sorted(columns.items())))


def _client_infos(schedule, columns, batch_size, pass_key) -> ClientInfo:
    """Stacks what the schedule says of each client, by slot."""
    keys = jax.vmap(lambda client: prng.fold(pass_key, client))(schedule.ids)
    return ClientInfo(
        id=schedule.ids,
        slot=jnp.arange(schedule.ids.shape[0], dtype=jnp.int32),
        num_examples=schedule.num_examples,
        num_steps=schedule.num_steps,
        version=schedule.version,
        covariates=schedule.covariates,
        key=keys,
        batch=batch_shapes(columns, batch_size),
    )


def _start_clients(a_pass, begin, infos, schedule, number, lanes, client_states, at_once, watch):
    def start(slot):
        return a_pass.trainer.start(begin.broadcast, tree.take(infos, slot), tree.take(client_states, slot))

    def start_one(event, lanes):
        slot = schedule.start_slot[event]
        local = start(slot)
        if watch is not None:
            watch("what it starts with", local, slot)
        return tree.put(lanes, schedule.start_lane[event], local)

    def start_some(events, real, lanes):
        nowhere = schedule.slot.shape[1]
        lane = jnp.where(real, schedule.start_lane[events], nowhere)
        return tree.put(lanes, lane, jax.vmap(start)(schedule.start_slot[events]))

    return _for_events(schedule.starts, number, at_once, start_one, start_some, lanes)


def _for_events(bounds, number, at_once: int, one: Callable, some: Callable, carry: PyTree) -> PyTree:
    """Carries on with the events of a tick: ``one(event, carry)`` after another, or groups, ``some(events, real, carry)``.

    The last group is filled up with events that are not ``real``.
    """
    first, end = bounds[number], bounds[number + 1]
    if at_once == 1:
        return lax.fori_loop(first, end, one, carry)

    def group(number, carry):
        events = first + number * at_once + jnp.arange(at_once)
        return some(events, events < end, carry)

    return lax.fori_loop(0, (end - first + at_once - 1) // at_once, group, carry)


def _events_at_once(local: PyTree, num_lanes: int) -> int:
    """How many clients start or finish side by side: one on a CPU, elsewhere those of all lanes, but of 256 MB at most.

    ``local``: the shapes of what a lane carries. For so few numbers a GPU's time goes into launching operations, whether of one
    client or of all; a CPU would do the work of all lanes where few are done.
    """
    if jax.default_backend() == "cpu":
        return 1
    return max(1, min(num_lanes, _BYTES_AT_ONCE // max(1, tree.num_bytes(local))))


def _step_lanes(a_pass, broadcast, infos, columns, schedule, number, batch_size, lanes, watch):
    count = schedule.count[number]
    position = jnp.arange(batch_size)
    mask = position < count[:, None]
    # A masked row repeats the first row of its own batch: another client's data is never read, not even to be masked.
    rows = schedule.order[schedule.first[number][:, None] + jnp.where(mask, position, 0)]
    batch = {name: column[rows] for name, column in columns.items()}
    lane_infos = tree.take(infos, schedule.slot[number])
    batch |= _broadcast_rows(columns, lane_infos.covariates, batch_size)
    keys = jax.vmap(prng.fold)(lane_infos.key, schedule.step[number])
    # Not by the mask: a drawn batch may be empty, and its step still counts. What a dry lane does nobody reads.
    wanted = schedule.step[number] < lane_infos.num_steps

    def step(wanted, info, local, batch, mask, key):
        stepped = a_pass.trainer.step(broadcast, info, local, batch, mask, key)
        return tree.where(wanted, stepped, local)

    if mask.shape[0] > 1:
        return jax.vmap(step)(wanted, lane_infos, lanes, batch, mask, keys)

    def half_step(wanted, info, local, batch, mask, key):
        batch, mask = jax.tree.map(lambda rows: rows[: half_of(batch_size)], (batch, mask))
        return step(wanted, info, local, batch, mask, key)

    # A single lane goes without its axis, which would cost the step of a convolutional network a seventh of its time on a CPU.
    one = tree.take((wanted, lane_infos, lanes, batch, mask, keys), 0)
    stepped = step(*one) if schedule.half is None else lax.cond(schedule.half[number, 0], half_step, step, *one)
    if watch is not None:
        watch("what it carries on", stepped, schedule.slot[number, 0], schedule.step[number, 0], one[3])
    return jax.tree.map(lambda leaf: leaf[None], stepped)


def _broadcast_rows(columns, covariates, batch_size) -> dict:
    """What the cohort says of each lane's client, as columns [lane, row, ...] of its batch, alike in every row."""
    for name in covariates:
        if name in columns:
            check.fail_value("the cohort's covariates", f"to be named otherwise than the data's columns {sorted(columns)}", name)
    return {name: jnp.repeat(value[:, None], batch_size, axis=1) for name, value in covariates.items()}


def _finish_clients(a_pass, begin, infos, schedule, number, lanes, collected: _Collected, at_once, watch) -> _Collected:
    reduce = a_pass.aggregator.reduce

    def hand_over(slot, lane, collected):
        client_state, encoder_state = tree.take((collected.client_states, collected.encoder_states), slot)
        handed = _hand_over(a_pass, begin, tree.take(infos, slot), tree.take(lanes, lane), encoder_state)
        states = (handed.client_state, handed.encoder_state), (client_state, encoder_state)
        new_client_state, new_encoder_state = tree.where(handed.takes_part, *states)
        return handed._replace(client_state=new_client_state, encoder_state=new_encoder_state)

    def summand_of(handed):
        return tree.summand(handed.summand, handed.weight, reduce.weighted) if isinstance(reduce, Linear) else ()

    def collect(collected, slot, handed, added) -> _Collected:
        linear = isinstance(reduce, Linear)
        summands = collected.summands
        return _Collected(
            jax.tree.map(jnp.add, summands, added) if linear else tree.put(summands, slot, handed.summand),
            collected.weights.at[slot].set(handed.weight),
            tree.put(collected.client_states, slot, handed.client_state),
            tree.put(collected.encoder_states, slot, handed.encoder_state),
            tree.put(collected.metrics, slot, handed.metrics),
            collected.not_finite.at[slot].set(~handed.finite),
        )

    def finish_one(event, collected):
        slot = schedule.finish_slot[event]
        handed = hand_over(slot, schedule.finish_lane[event], collected)
        if watch is not None:
            watch("what it hands over", (handed.update, handed.weight, handed.summand), slot)
        return collect(collected, slot, handed, summand_of(handed))

    def finish_some(events, real, collected):
        slot, nowhere = schedule.finish_slot[events], schedule.ids.shape[0]
        handed = jax.vmap(partial(hand_over, collected=collected))(slot, schedule.finish_lane[events])

        def total(leaf):
            return jnp.where(real.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.zeros_like(leaf)).sum(0, dtype=leaf.dtype)

        return collect(collected, jnp.where(real, slot, nowhere), handed, jax.tree.map(total, jax.vmap(summand_of)(handed)))

    return _for_events(schedule.finishes, number, at_once, finish_one, finish_some, collected)


class _Handed(NamedTuple):
    """What one client hands over, whether that is finite, and whether it takes part."""

    update: PyTree
    summand: PyTree
    weight: Array
    client_state: PyTree
    encoder_state: PyTree
    metrics: Metrics
    finite: Array
    takes_part: Array


def _hand_over(a_pass, begin, info, local, encoder_state) -> _Handed:
    """finish → encode → receive for one client; its weight is 0 where it takes no part."""
    result = a_pass.trainer.finish(begin.broadcast, info, local)
    finite = tree.all_finite((result.update, result.weight, result.state), kept=result.weight.ndim)
    takes_part = finite & ((info.num_steps > 0) | (info.num_examples == 0))
    if begin.left_out is not None:
        takes_part &= ~begin.left_out[info.slot]
    weight = jnp.where(takes_part, result.weight, 0)
    key = prng.fold(info.key, "encode")
    encode = a_pass.aggregator.encode
    message, weight, encoder_state = encode(result.update, weight, begin.shared, encoder_state, key, begin.round_key)
    summand = a_pass.aggregator.receive(message, begin.shared)
    weight = jnp.where(takes_part, weight, 0)  # an encoder may weigh all clients alike
    return _Handed(result.update, summand, weight, result.state, encoder_state, result.metrics, finite, takes_part)
