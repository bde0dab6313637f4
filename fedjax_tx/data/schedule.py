"""Schedules: which lane trains which client when, and on which rows.

A lane trains one client after another; ``packing.py`` says which lane and from when on. A *tick* is one batch on every lane.
Everything here runs on the host, in NumPy; but for the packing's loop over the cohort's clients it is vectorised. A round's
schedule looks at its cohort only, so its cost is the same in a population of a thousand and of a million.

Rows a client trains on are consecutive in ``order``, so a batch is just (first, count): the schedule's size is that of the
examples, not of ticks x lanes x batch.

On a mesh, clients are packed over the lanes of all devices at once, and each device gets the ticks and events of its own lanes.
Where processes hold parts of the data (``Owners``), a client is packed over the devices of its own process, and ``order`` counts
rows among those of that process.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import numpy as np

from fedjax_tx import check, prng
from fedjax_tx.data.batches import draw_batches, steps_of
from fedjax_tx.data.packing import SHORT, Packing, choose_halvings, count_slots, narrowings, pack
from fedjax_tx.data.parts import Owners
from fedjax_tx.types import Cohort, LocalWork

_WORTH = 0.02  # of the rows of batches: what halving short ones must save to be worth its compilation


class Schedule(NamedTuple):
    """One pass over one cohort, as arrays of fixed capacity; only the first ``num_ticks`` and ``num_clients`` count.

    order [row]: rows of the data set in the order in which clients use them. first, count, slot, step [tick, lane]: where in
    ``order`` the lane's batch starts, how many real rows it has (0: dry), which slot of the cohort it serves, and which of that
    client's steps it is. half [tick, 0 or 1]: where short batches are stepped at half size, whether all of the tick's are at most
    that long (None: nowhere). starts, finishes [tick + 1]: the events of tick t are starts[t]..starts[t + 1] of start_lane and
    start_slot [client]; a finish comes after the tick's step. narrow [halving]: the tick from which the first half of the lanes
    goes on alone, then the first quarter, and so on (None: never). ids, num_examples, num_steps, version [client]: the cohort.
    On a mesh, the fields named by ``PER_DEVICE`` have a leading device axis. No array is empty: XLA of JAX 0.11.2 dies of empty
    arrays on a mesh.
    """

    num_ticks: np.ndarray
    narrow: np.ndarray | None
    num_clients: np.ndarray
    order: np.ndarray
    first: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # not the method of tuples
    slot: np.ndarray
    step: np.ndarray
    half: np.ndarray | None
    starts: np.ndarray
    start_lane: np.ndarray
    start_slot: np.ndarray
    finishes: np.ndarray
    finish_lane: np.ndarray
    finish_slot: np.ndarray
    ids: np.ndarray
    num_examples: np.ndarray
    num_steps: np.ndarray
    version: np.ndarray
    covariates: dict[str, np.ndarray]


PER_DEVICE = (
    *("num_ticks", "narrow", "first", "count", "slot", "step", "half"),
    *("starts", "start_lane", "start_slot", "finishes", "finish_lane", "finish_slot"),
)


class Capacity(NamedTuple):
    """Sizes of a schedule's arrays: an upper bound for every cohort that can come, so that one program serves them all.

    lanes: of each device. devices: the length of the device axis; None: there is no such axis, and one device. halvings: how
    often the lanes may halve. halves: whether batches of at most half the rows are stepped at half size.
    """

    clients: int
    lanes: int
    ticks: int
    rows: int
    devices: int | None = None
    halvings: int = 0
    halves: bool = False


def count_steps(sizes: np.ndarray, work: LocalWork) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, rows) of each client: how many local steps it makes, and over how many rows with repetition.

    Args:
      sizes: examples of each client of the data set, int [client].
      work: its ``epochs`` or ``steps``, where arrays, have one entry for each of these clients.

    Errors: ``ValueError`` if such an array has another length.
    """
    per_epoch = -(-sizes // work.batch_size)
    if work.steps is None:
        epochs = _per_client("epochs", work.epochs, sizes.size)
        return epochs * per_epoch, epochs * sizes
    steps = np.where(sizes > 0, _per_client("steps", work.steps, sizes.size), 0)
    return steps, _rows_of(steps, sizes, work)


def _rows_of(steps: np.ndarray, sizes: np.ndarray, work: LocalWork) -> np.ndarray:
    """Over how many rows with repetition clients go in some steps, at most; the last batch of an epoch may be short."""
    if work.expected_batch is not None:
        return steps * np.minimum(work.batch_size, sizes)
    epochs, rest = np.divmod(steps, np.maximum(-(-sizes // work.batch_size), 1))
    return epochs * sizes + np.minimum(rest * work.batch_size, sizes)


def _share_of(steps: np.ndarray, work_done: np.ndarray) -> np.ndarray:
    """The steps that are made where clients do a share of them: rounded up (but for rounding errors), none of none."""
    made = np.ceil(steps * work_done - 1e-6).astype(steps.dtype)
    return np.where(work_done > 0, np.clip(made, np.minimum(steps, 1), steps), 0)


def plan_capacity(
    sizes: np.ndarray,
    work: LocalWork,
    max_clients: int,
    num_lanes: int,
    repeats: bool = False,
    devices: int | None = None,
    taper: int | Literal["auto"] = 0,
    owners: Owners | None = None,
) -> Capacity:
    """Returns capacities that hold any cohort of at most ``max_clients`` clients, distinct unless ``repeats``.

    ``num_lanes`` is that of each device. ``taper``: how often the lanes may halve; ``"auto"``: as often as pays for a cohort
    of this size whose clients are spread evenly over all clients, sorted by their work, and batches are halved where that pays.
    """
    steps, rows = count_steps(sizes, work)
    busiest = _largest(np.maximum(steps, 1), max_clients)
    longest_rows = _largest(rows, max_clients)
    if repeats:  # a client that comes more than once counts each time, and any may be the largest
        busiest = np.full(max_clients, busiest.max(initial=1))
        longest_rows = np.full(max_clients, longest_rows.max(initial=0))
    lanes = max(1, min(num_lanes, -(-max_clients // (devices or 1))))
    # Of a cohort that one process holds, its devices train all.
    in_all = lanes * ((devices or 1) if owners is None else owners.fewest_devices())
    ticks = min(int(busiest.sum()), -(-int(busiest.sum()) // in_all) + int(busiest.max(initial=1)))
    if taper == "auto":
        halvings = choose_halvings(_spread(np.maximum(steps, 1), max_clients), lanes, devices or 1) if lanes > 1 else 0
        halves = lanes == 1 and ticks >= SHORT and _halved_share(sizes, steps, work) >= _WORTH
    else:
        halvings, halves = min(taper, lanes.bit_length() - 1), False
    return Capacity(max(1, max_clients), lanes, max(1, ticks), max(1, int(longest_rows.sum())), devices, halvings, halves)


def _halved_share(sizes: np.ndarray, steps: np.ndarray, work: LocalWork) -> float:
    """Returns which share of the rows of all clients' batches is saved where short ones are stepped at half size."""
    half = half_of(work.batch_size)
    if work.expected_batch is not None:
        short = steps * (work.expected_batch <= half)
    else:
        tails = sizes % work.batch_size
        short = np.where((tails > 0) & (tails <= half), steps // np.maximum(-(-sizes // work.batch_size), 1), 0)
    return float(short.sum() * (1 - half / work.batch_size) / max(1, steps.sum()))


def half_of(batch_size: int) -> int:
    """Returns the rows of half a batch, rounded up.

    Example:
      >>> half_of(5)
      3
    """
    return -(-batch_size // 2)


def make_schedule(
    cohort: Cohort,
    offsets: np.ndarray,
    work: LocalWork,
    capacity: Capacity,
    seed: int,
    round_number: int,
    owners: Owners | None = None,
) -> Schedule:
    """Packs a cohort's work into lanes.

    Args:
      cohort: client indices (all fields given). offsets: int [client + 1], rows of client i are offsets[i]..offsets[i + 1].
      capacity: what ``plan_capacity`` gave. seed, round_number: name the shuffles.
      owners: which process's devices train which clients; None: any device any client.

    Returns: a ``Schedule``; a client without a step holds its lane for one empty tick.
    """
    ids, capacity_clients, devices = cohort.ids, capacity.clients, capacity.devices or 1
    sizes = offsets[ids + 1] - offsets[ids]
    steps, rows = count_steps(sizes, _work_of(work, ids, len(offsets) - 1))
    work_done = np.asarray(cohort.work_done)
    if (work_done < 1).any():
        steps = _share_of(steps, work_done)
        rows = _rows_of(steps, sizes, work)
    spans = np.maximum(steps, 1)
    packing = _pack(spans, capacity, None if owners is None else (owners.of(ids), owners.devices))
    device, lane, start, ends = packing
    num_ticks = ends[:, 0].astype(np.int32)
    narrow = narrowings(ends, capacity.halvings).astype(np.int32) if capacity.halvings else None
    first_rows = offsets[ids] if owners is None else owners.first_rows(ids, offsets)
    if work.expected_batch is None:
        starts = np.concatenate([[0], np.cumsum(rows)])
        used = _order(ids, first_rows, sizes, rows, starts, work.shuffle, seed, round_number)
        first, count = _cut_epochs(spans, sizes, starts[:-1], rows, work.batch_size)
    else:
        used, first, count = draw_batches(ids, first_rows, sizes, steps, work, prng.host_bits(seed, "poisson", round_number))
    # Rows of a data set that no device holds may need more than 32 bits; only the host reads such numbers.
    order = np.zeros(capacity.rows, np.int32 if offsets[-1] < 2**31 else np.int64)
    order[: used.size] = used
    grid = np.zeros((4, devices, capacity.ticks, capacity.lanes), np.int32)
    client, step = steps_of(spans)
    grid[:, device[client], start[client] + step, lane[client]] = first, count, client, step
    half = None
    if capacity.halves:
        short = grid[1].max(2, keepdims=True) <= half_of(work.batch_size)
        half = short & (np.arange(capacity.ticks)[:, None] < num_ticks[:, None, None])
    begin = [_events(start, lane, device == one, capacity) for one in range(devices)]
    end = [_events(start + spans - 1, lane, device == one, capacity) for one in range(devices)]
    arrays = (num_ticks, narrow, *grid, half, *map(np.stack, zip(*begin, strict=True)), *map(np.stack, zip(*end, strict=True)))
    if capacity.devices is None:
        arrays = jax.tree.map(lambda array: array.reshape(array.shape[1:]), arrays)

    def pad(values, dtype=np.int32):
        out = np.zeros((capacity_clients, *values.shape[1:]), dtype)
        out[: ids.size] = values
        return out

    return Schedule(
        **dict(zip(PER_DEVICE, arrays, strict=True)),
        num_clients=np.asarray(ids.size, np.int32),
        order=order,
        ids=pad(ids),
        num_examples=pad(sizes),
        num_steps=pad(steps),
        version=pad(cohort.version),
        covariates={name: pad(value, value.dtype) for name, value in cohort.covariates.items()},
    )


def useful_share(schedule: Schedule, batch_size: int) -> float:
    """Returns real examples over slots: the share of the lanes' batch rows that hold an example, 0 for no work."""
    rows = int(slots_by_device(schedule).sum()) * batch_size
    if schedule.half is not None:
        rows -= int(schedule.half.sum()) * schedule.count.shape[-1] * (batch_size - half_of(batch_size))
    return float(schedule.count.sum() / rows) if rows else 0.0


def slots_by_device(schedule: Schedule) -> np.ndarray:
    """Returns how many steps the lanes make, dry ones too: one number, or [device] on a mesh."""
    return count_slots(schedule.narrow, schedule.num_ticks, schedule.count.shape[-1])


def cut_short(schedule: Schedule, ticks: int, out_of: int) -> Schedule:
    """Returns a schedule for timing only: of every ``out_of`` ticks it keeps ``ticks`` (rounded up), at each width alike.

    Its clients do not come to their ends, and what a narrower lane count leaves out is dropped.
    """

    def cut(values: np.ndarray) -> np.ndarray:
        return np.asarray(-(-values.astype(np.int64) * ticks // out_of), np.int32)

    return schedule._replace(num_ticks=cut(schedule.num_ticks), narrow=jax.tree.map(cut, schedule.narrow))


def stack(schedules: list[Schedule], length: int) -> Schedule:
    """Stacks the schedules of several rounds along a leading axis of ``length``, repeating the last to fill it."""
    filled = schedules + [schedules[-1]] * (length - len(schedules))
    return jax.tree.map(lambda *values: np.stack(values), *filled)


def _per_client(name: str, value: int | np.ndarray | None, num_clients: int) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.size != num_clients:
        check.fail_value(name, f"to have {num_clients} entries, one for each client", f"{value.size} entries")
    return np.broadcast_to(np.asarray(value), (num_clients,))


def _work_of(work: LocalWork, ids: np.ndarray, num_clients: int) -> LocalWork:
    """The same work for the clients ``ids`` alone: what is given for each client becomes their entries."""

    def entries(name: str) -> int | np.ndarray | None:
        value = getattr(work, name)
        return _per_client(name, value, num_clients)[ids] if isinstance(value, np.ndarray) else value

    return dataclasses.replace(work, epochs=entries("epochs"), steps=entries("steps"))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` largest of ``values`` (all, where there are fewer), in no order."""
    rest = max(values.size - count, 0)
    return np.partition(values, rest)[rest:] if 0 < rest < values.size else values[rest:]


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """``count`` of ``values``, evenly spread over them in sorted order; none where there are none."""
    return np.sort(values)[(np.arange(count) * 2 + 1) * values.size // (2 * count)] if values.size and count else values[:0]


def _pack(spans: np.ndarray, capacity: Capacity, owners: tuple[np.ndarray, np.ndarray] | None) -> Packing:
    """Packs clients; ``owners`` is the process of each client, and of each device: a client goes to a device of its own."""
    devices = capacity.devices or 1
    if owners is None:
        return pack(spans, capacity.lanes, devices, capacity.halvings)
    device, lane, start = np.zeros((3, spans.size), np.int64)
    ends = np.zeros((devices, capacity.lanes), np.int64)
    for one in np.unique(owners[0]):
        clients, own = (np.flatnonzero(of == one) for of in owners)
        part = pack(spans[clients], capacity.lanes, own.size, capacity.halvings)
        device[clients], lane[clients], start[clients] = own[part.device], part.lane, part.start
        ends[own] = part.ends
    return Packing(device, lane, start, ends)


def _order(ids, first_rows, sizes, rows, starts, shuffle, seed, round_number) -> np.ndarray:
    """The data rows each client uses, client after client, epoch after epoch, each epoch in its own order."""
    if not shuffle:
        position = np.arange(starts[-1]) - np.repeat(starts[:-1], rows)
        return np.repeat(first_rows, rows) + position % np.repeat(sizes, rows)
    # A last, partial epoch is the head of a full one: shuffle whole epochs, then cut.
    epochs = -(-rows // np.maximum(sizes, 1))
    client = np.repeat(np.arange(ids.size), epochs)
    epoch = np.arange(client.size) - np.repeat(np.cumsum(epochs) - epochs, epochs)
    length = sizes[client]
    ends = np.cumsum(length)
    within = np.arange(length.sum()) - np.repeat(ends - length, length)
    names = prng.host_bits(seed, "shuffle", round_number, ids[client], epoch)
    bits = prng.host_bits(np.repeat(names, length), within)
    # Epochs are numbered in as few bits as they need: NumPy sorts 16 and fewer several times faster than 64.
    number = np.repeat(np.arange(client.size, dtype=np.min_scalar_type(client.size)), length)
    shuffled = np.repeat(first_rows[client], length) + within[np.lexsort((bits, number))]
    unused = epochs * sizes - rows
    if not unused.any():
        return shuffled
    full_starts = np.cumsum(epochs * sizes) - epochs * sizes
    return shuffled[np.arange(starts[-1]) + np.repeat(full_starts - starts[:-1], rows)]


def _cut_epochs(spans, sizes, row_starts, rows, batch_size) -> tuple[np.ndarray, np.ndarray]:
    """Where in ``order`` the batch of each of ``steps_of(spans)`` begins, and how many rows it has."""
    client, step = steps_of(spans)
    per_epoch = np.maximum(-(-sizes // batch_size), 1)[client]
    epoch, within = np.divmod(step, per_epoch)
    taken = epoch * sizes[client] + within * batch_size
    count = np.minimum(batch_size, sizes[client] - within * batch_size)
    return row_starts[client] + taken, np.clip(np.minimum(count, rows[client] - taken), 0, None)


def _events(
    tick: np.ndarray, lane: np.ndarray, mine: np.ndarray, capacity: Capacity
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups one event for each client of a device by tick: (bounds [tick + 1], lane [client], slot [client])."""
    slots = np.flatnonzero(mine)
    slots = slots[np.argsort(tick[slots], kind="stable")]
    bounds = np.searchsorted(tick[slots], np.arange(capacity.ticks + 1)).astype(np.int32)
    padded = np.zeros((2, capacity.clients), np.int32)
    padded[:, : slots.size] = lane[slots], slots
    return bounds, padded[0], padded[1]
