"""Packing: which lane trains which client when, and how many lanes are left as they run dry.

Clients are packed longest first: each goes to the lane that is free soonest, so that the lanes end close together. With few long
clients among many short ones they can't: the longest client holds one lane while the others have nothing left. So the lanes may
*halve*, some times: lanes are numbered from the one that ends last, and when at most half of them are still busy, the first half
goes on alone. Each width is a loop of its own in the compiled program, so halvings cost compile time; ``choose_halvings`` says
how many pay.

A pass takes at least as many ticks as its longest client. Where half of the lanes end no later than all of them would, the
packing leaves the others empty from the start: no more ticks, and fewer slots (a slot is one lane for one tick).
"""

import heapq
from typing import NamedTuple

import numpy as np

_WORTH = 0.05  # of the slots: what a halving must save
SHORT = 24  # ticks: a pass of fewer is over before another loop body would be compiled


class Packing(NamedTuple):
    """Where each client is trained.

    device, lane, start [client]: on which lane, and from which tick on. ends [device, lane]: the tick at which a lane is dry; on
    each device, the lanes are numbered from the one that ends last.
    """

    device: np.ndarray
    lane: np.ndarray
    start: np.ndarray
    ends: np.ndarray


def pack(spans: np.ndarray, lanes: int, devices: int = 1, halvings: int = 0) -> Packing:
    """Packs clients of ``spans`` ticks each over the lanes of all devices; ``lanes`` is that of each device.

    Lanes are dealt out to the devices in turn, so that a cohort that doesn't fill them leaves no device idle.

    Example:
      >>> pack(np.array([1, 4, 1]), lanes=2, halvings=1).ends.tolist(), pack(np.array([1, 4, 1]), lanes=3).ends.tolist()
      ([[4, 2]], [[4, 1, 1]])
    """
    best = _pack_into(spans, lanes, lanes, devices)
    for halving in range(1, halvings + 1):
        fewer = lanes >> halving
        if spans.sum() > fewer * devices * best.ends.max():
            break
        candidate = _pack_into(spans, fewer, lanes, devices)
        if candidate.ends.max() <= best.ends.max() and _slots(candidate, halvings) <= _slots(best, halvings):
            best = candidate
    return best


def narrowings(ends: np.ndarray, halvings: int) -> np.ndarray:
    """Returns [device, halving]: the tick from which half of the lanes are enough, a quarter, and so on, for ``Packing.ends``.

    Example:
      >>> narrowings(np.array([[9, 7, 4, 2, 2]]), 2).tolist()  # 5 lanes, then 2, then 1
      [[4, 7]]
    """
    return ends[:, [ends.shape[-1] >> halving for halving in range(1, halvings + 1)]]


def count_slots(narrow: np.ndarray | None, num_ticks: np.ndarray, lanes: int) -> np.ndarray:
    """Returns ticks x lanes, summed over the widths that the lanes have in turn.

    Args:
      narrow: int [..., halving], from which tick on the lanes are halved; None: never. num_ticks: int [...]. lanes: of the first
        width.

    Example:
      >>> int(count_slots(np.array([4, 7]), np.array(9), 5))  # 4 x 5 + 3 x 2 + 2 x 1
      28
    """
    if narrow is None:
        return np.asarray(num_ticks * lanes)
    bounds = np.concatenate([narrow, np.asarray(num_ticks)[..., None]], axis=-1)
    widths = lanes >> np.arange(bounds.shape[-1])
    return np.asarray((np.diff(bounds, axis=-1, prepend=0) * widths).sum(-1))


def choose_halvings(spans: np.ndarray, lanes: int, devices: int = 1) -> int:
    """Returns how often the lanes should halve for clients like these: as long as each time saves at least 5 % of the slots.

    Never where the pass takes fewer than 24 ticks.

    Example:
      >>> choose_halvings(np.array([64, 1, 1, 1, 1, 1, 1, 1]), lanes=8), choose_halvings(np.full(8, 8), lanes=8)
      (3, 0)
    """
    # Even longest first on all lanes wastes no more than each lane's wait for the longest client.
    if lanes * devices * spans.max(initial=0) <= _WORTH * spans.sum():
        return 0
    untapered = pack(spans, lanes, devices)
    if untapered.ends.max() < SHORT:
        return 0
    chosen, slots = 0, _slots(untapered, 0)
    for halvings in range(1, lanes.bit_length()):
        fewer = _slots(pack(spans, lanes, devices, halvings), halvings)
        if fewer > (1 - _WORTH) * slots:
            break
        chosen, slots = halvings, fewer
    return chosen


def _slots(packing: Packing, halvings: int) -> int:
    ends = packing.ends
    return int(count_slots(narrowings(ends, halvings), ends[:, 0], ends.shape[1]).sum())


def _pack_into(spans: np.ndarray, used: int, lanes: int, devices: int) -> Packing:
    """Packs into the first ``used`` lanes of each device."""
    number, start, ends = _longest_first(spans, used * devices)
    latest_first = np.argsort(-ends, kind="stable")
    renumbered = np.empty_like(latest_first)
    renumbered[latest_first] = np.arange(ends.size)
    lane, device = np.divmod(renumbered[number], devices)
    ends_by_lane = np.zeros((lanes, devices), np.int64)
    ends_by_lane[:used] = ends[latest_first].reshape(used, devices)
    return Packing(device, lane, start, ends_by_lane.T)


def _longest_first(spans: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longest first, each to the lane that is free soonest (lowest number on ties): (lane [client], first tick, end [lane])."""
    order = np.argsort(-spans, kind="stable")
    free = list(range(lanes))  # a heap of tick x lanes + lane: one number sorts by tick, then by lane
    taken = []
    for span in (spans[order] * lanes).tolist():
        taken.append(free[0])
        heapq.heapreplace(free, free[0] + span)
    lane, start = np.zeros(spans.size, np.int64), np.zeros(spans.size, np.int64)
    start[order], lane[order] = np.divmod(np.array(taken, np.int64), lanes)
    ticks, lanes_of = np.divmod(np.array(free, np.int64), lanes)
    ends = np.zeros(lanes, np.int64)
    ends[lanes_of] = ticks
    return lane, start, ends
