"""Where will a vehicle be in four seconds? A fleet simulated with ``highway-env``, one client a vehicle.

Four towns differ in density and style: lanes, gaps, the speeds that drivers want, the time gap that they keep, and how far they
spare others when they change lane. Vehicles follow the intelligent driver model and change lanes by MOBIL, both highway-env's
(https://pypi.org/project/highway-env, MIT); a vehicle keeps its own style on all its trips, and on each wants another speed
every now and then. All that it is told is what it could measure itself: its own motion, and the vehicle ahead on each lane.

The road is straight and endless, so that positions are those along and across it. Trips differ in where everybody starts and
in how the wanted speeds change; the last is test. All trips of a town in ``unseen`` are kept out of training. A vehicle that
touched another counts as crashed in this trip, and its windows from then on are left out.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset, FederatedSplits
from fedjax_tx.prng import host_generator

INSTALL = "pip install 'fedjax-tx[driving]'"
RATE = 5
"""Recorded steps a second; the simulation makes two for each."""

HISTORY = 3 * RATE
HORIZONS = (1, 2, 3, 4)
"""Seconds ahead."""

SIGHT = 100.0
"""Metres: a vehicle farther ahead is as good as none."""

LANE_WIDTH = 4.0
CHANNELS = (
    "speed", "sideways speed", "acceleration", "offset from the lane's middle", "a lane to the left", "a lane to the right",
    "gap left", "closing left", "gap ahead", "closing ahead", "gap right", "closing right",
)  # fmt: skip
"""What a step tells, in m, m/s and m/s²; lanes there are 0 or 1; where nobody is in sight the gap is ``SIGHT``, the closing 0."""


class Town(NamedTuple):
    """lanes; gap: metres between vehicles of a lane at the start, in the mean; speeds: least and greatest wanted, m/s; headway:
    seconds kept to the vehicle ahead, in the mean; politeness: how much others' braking counts in a change of lane, 0 to 1."""

    lanes: int
    gap: float
    speeds: tuple[float, float]
    headway: float
    politeness: float


TOWNS = {
    "village": Town(2, 45.0, (9.0, 17.0), 1.8, 0.5),
    "city": Town(3, 20.0, (6.0, 15.0), 0.9, 0.0),
    "motorway": Town(3, 45.0, (20.0, 36.0), 1.4, 0.2),
    "suburb": Town(2, 30.0, (10.0, 22.0), 1.2, 0.1),
}


class Trip(NamedTuple):
    """position, velocity [steps, vehicles, 2], along and across the road in m and m/s; crashed [steps, vehicles]."""

    position: Float[np.ndarray, "steps vehicles 2"]
    velocity: Float[np.ndarray, "steps vehicles 2"]
    crashed: Bool[np.ndarray, "steps vehicles"]


def load(
    vehicles: int = 16,
    trips: int = 4,
    seconds: int = 60,
    stride: int = RATE,
    unseen: Sequence[str] = ("suburb",),
    seed: int = 0,
) -> FederatedSplits:
    """Returns the vehicles as clients: ``.train``, ``.test``, ``.unseen`` and the counts of the ``.report``.

    Columns: ``x`` float32[rows, 15, 12], 3 seconds by ``CHANNELS``; ``y`` float32[rows, 4, 2], metres along and across
    the road after each of ``HORIZONS``, beyond where the present velocity alone would lead; ``town`` int32[rows], of ``TOWNS``;
    ``trip`` int32[rows], from 0.
    Client ids are 1000 × town + vehicle.

    By default that is 64 minutes of 16 vehicles each, simulated in about half a minute.

    Args:
      vehicles: of each town, > 0. trips: of each vehicle, > 1, the last for test. seconds: of a trip, > 7.
      stride: steps from one window to the next, at 5 a second.
      unseen: towns whose vehicles are kept out of training. seed: names all draws.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if it is out of range, or nobody would be left to train on.
      ModuleNotFoundError: if ``highway-env`` is not installed.

    Example:
      >>> load(vehicles=8, trips=2, seconds=20).train.num_clients  # doctest: +SKIP
      24
    """
    vehicles = check.integer("vehicles", vehicles, low=1)
    trips = check.integer("trips", trips, low=2)
    seconds = check.integer("seconds", seconds, low=HISTORY // RATE + HORIZONS[-1] + 1)
    stride = check.integer("stride", stride, low=1)
    seed = check.integer("seed", seed, low=0)
    check.instance("unseen", unseen, (list, tuple), "a list of towns")
    for name in unseen:
        check.one_of("a town of unseen", name, tuple(TOWNS))
    if set(unseen) >= set(TOWNS):
        check.fail_value("unseen", "to leave somebody to train on", unseen)
    parts: dict[str, list[dict[str, np.ndarray]]] = {"train": [], "test": [], "unseen": []}
    crashes = 0
    for number, (name, town) in enumerate(TOWNS.items()):
        for trip in range(trips):
            driven = simulate(town, vehicles, seconds, seed, name, trip)
            crashes += int(driven.crashed[-1].sum())
            part = "unseen" if name in unseen else "test" if trip == trips - 1 else "train"
            parts[part].append(_windows(driven, town, number, trip, stride))
    made = {part: _join(rows) for part, rows in parts.items()}
    report = {"vehicles": vehicles * len(TOWNS), "trips": vehicles * trips * len(TOWNS), "crashes": crashes}
    report |= {f"windows {part}": data.num_examples for part, data in made.items()}
    return FederatedSplits(made["train"], made["test"], made["unseen"], report)


def simulate(town: Town, vehicles: int, seconds: int, seed: int, *names: str | int) -> Trip:
    """Lets the vehicles of a town drive; ``names`` are the town's, by which styles are drawn, and the trip's.

    Example:
      >>> simulate(TOWNS["village"], 4, 10, 0, "village", 0).position.shape  # doctest: +SKIP
      (50, 4, 2)
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # highway-env imports what draws its pictures
    try:
        from highway_env.road.road import Road, RoadNetwork
        from highway_env.vehicle.behavior import IDMVehicle
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"expected highway-env, which simulates the fleet: {INSTALL}") from error
    style, events = host_generator(seed, "fleet", "style", names[0]), host_generator(seed, "fleet", "trip", *names)
    network = RoadNetwork.straight_road_network(town.lanes, length=1e6, speed_limit=2 * town.speeds[1])
    road = Road(network=network)
    wishes, headways = style.uniform(*town.speeds, vehicles), town.headway * style.uniform(0.7, 1.4, vehicles)
    places = np.zeros(town.lanes)
    for vehicle in events.permutation(vehicles):
        lane = int(places.argmin())
        places[lane] += town.gap * events.uniform(0.7, 1.3)
        start = network.get_lane(("0", "1", lane)).position(places[lane], 0)
        added = IDMVehicle(road, start, 0, 0.8 * town.speeds[0], target_speed=wishes[vehicle], timer=events.uniform(0.01, 1))
        added.TIME_WANTED, added.POLITENESS, added.number = headways[vehicle], town.politeness, vehicle
        road.vehicles.append(added)
    road.vehicles.sort(key=lambda one: one.number)
    width, seen = town.speeds[1] - town.speeds[0], []
    for tick in range(2 * RATE * seconds):
        for vehicle in np.flatnonzero(events.random(vehicles) < 0.0125):  # every eight seconds, in the mean
            road.vehicles[vehicle].target_speed = wishes[vehicle] + width * events.uniform(-0.5, 0.5)
        road.act()
        road.step(0.5 / RATE)
        if tick % 2:
            seen.append([(*one.position, *one.velocity, one.crashed) for one in road.vehicles])
    told = np.array(seen, np.float64)
    return Trip(told[..., 0:2], told[..., 2:4], np.maximum.accumulate(told[..., 4] > 0))


def _series(trip: Trip, town: Town) -> Float[np.ndarray, "steps vehicles channels"]:
    """What each vehicle can tell at each step, by ``CHANNELS``."""
    along, across = trip.position[..., 0], trip.position[..., 1]
    lane = np.clip(np.round(across / LANE_WIDTH), 0, town.lanes - 1)
    speed = trip.velocity[..., 0]
    acceleration = np.diff(speed, axis=0, prepend=speed[:1]) * RATE
    own = [speed, trip.velocity[..., 1], acceleration, across - LANE_WIDTH * lane, lane > 0, lane < town.lanes - 1]
    ahead = along[:, None, :] - along[:, :, None]  # [step, who looks, who is seen]
    for side in (-1, 0, 1):
        there = (lane[:, None, :] == lane[:, :, None] + side) & (ahead > 0) & (ahead < SIGHT)
        gaps = np.where(there, ahead, SIGHT)
        nearest = gaps.argmin(axis=2)
        gap = np.take_along_axis(gaps, nearest[..., None], 2)[..., 0]
        closing = np.where(gap < SIGHT, speed - np.take_along_axis(speed, nearest, 1), 0)
        own += [gap, closing]
    return np.stack(own, axis=-1)


def _windows(trip: Trip, town: Town, number: int, trip_number: int, stride: int) -> dict[str, np.ndarray]:
    """All windows of a trip; of a vehicle that crashes, those that end before."""
    series, steps = _series(trip, town), np.array(HORIZONS) * RATE
    x, y, owners = [], [], []
    for start in range(0, len(series) - HISTORY - steps[-1] + 1, stride):
        now = start + HISTORY - 1
        moved = trip.position[now + steps] - trip.position[now]  # [horizon, vehicle, 2]
        straight = np.array(HORIZONS)[:, None, None] * trip.velocity[now]
        sound = ~trip.crashed[now + steps[-1]]
        x.append(series[start : now + 1, sound].swapaxes(0, 1))
        y.append((moved - straight)[:, sound].swapaxes(0, 1))
        owners.append(1000 * number + np.flatnonzero(sound))
    told = {"x": np.concatenate(x).astype(np.float32), "y": np.concatenate(y).astype(np.float32)}
    numbers = {"town": number, "trip": trip_number}
    return {
        **told,
        **{name: np.full(len(told["x"]), value, np.int32) for name, value in numbers.items()},
        "owner": np.concatenate(owners),
    }


def _join(parts: list[dict[str, np.ndarray]]) -> FederatedDataset:
    if not parts:
        empty = {"x": np.zeros((0, HISTORY, len(CHANNELS)), np.float32), "y": np.zeros((0, len(HORIZONS), 2), np.float32)}
        parts = [{**empty, **dict.fromkeys(("town", "trip"), np.zeros(0, np.int32)), "owner": np.zeros(0, np.int64)}]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return FederatedDataset.from_columns(columns, columns.pop("owner"))
