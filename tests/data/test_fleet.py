"""The simulated fleet: what vehicles see and where they end up, worked out by hand on made trips; and small simulations."""

import numpy as np
import pytest

import fedjax_tx as ftx
from fedjax_tx.data.sources import fleet

TOWN = fleet.Town(lanes=3, gap=20.0, speeds=(5.0, 10.0), headway=1.0, politeness=0.0)


def made_trip(starts, speeds, lanes, steps=40, crash=None):
    """Vehicles that keep their speeds and lanes; ``crash`` is (step, vehicle)."""
    time = np.arange(steps)[:, None] / fleet.RATE
    along, across = starts + time * speeds, np.broadcast_to(fleet.LANE_WIDTH * np.array(lanes), (steps, len(lanes)))
    velocity = np.stack(np.broadcast_arrays(np.array(speeds, float), np.zeros((steps, len(speeds)))), axis=-1)
    crashed = np.zeros((steps, len(lanes)), bool)
    if crash is not None:
        crashed[crash[0] :, crash[1]] = True
    return fleet.Trip(np.stack([along, across + 0.0], axis=-1), velocity, crashed)


def test_a_vehicle_sees_the_nearest_ahead_on_its_lane_and_on_those_beside():
    # The looker is on lane 1 at 0 m with 10 m/s; ahead on its lane are 30 and 50 m, on the left lane 20, on the right one 100 m.
    trip = made_trip(
        np.array([0.0, 50.0, 30.0, 20.0, 120.0, -5.0]), np.array([10.0, 9.0, 7.0, 13.0, 3.0, 10.0]), [1, 1, 1, 0, 2, 2]
    )
    seen = dict(zip(fleet.CHANNELS, fleet._series(trip, TOWN)[0, 0], strict=True))
    assert seen == {
        "speed": 10, "sideways speed": 0, "acceleration": 0, "offset from the lane's middle": 0,
        "a lane to the left": 1, "a lane to the right": 1,
        "gap left": 20, "closing left": -3, "gap ahead": 30, "closing ahead": 3, "gap right": 100, "closing right": 0,
    }  # fmt: skip
    edge = dict(zip(fleet.CHANNELS, fleet._series(trip, TOWN)[0, 3], strict=True))
    assert (edge["a lane to the left"], edge["gap left"], edge["gap right"], edge["closing right"]) == (0, 100, 10, 6)


def test_the_target_is_what_constant_velocity_misses():
    trip = made_trip(np.array([0.0, 50.0]), np.array([10.0, 5.0]), [0, 1])
    windows = fleet._windows(trip, TOWN, 2, 1, stride=1)
    assert windows["x"].shape == (2 * 6, 15, 12) and windows["y"].shape == (12, 4, 2)
    np.testing.assert_allclose(windows["y"], 0, atol=1e-5)
    # From step 14 on vehicle 0 is 1 m farther a second than it said, and 0.5 m to the side.
    late = np.arange(40) - 14
    moved = trip.position.copy()
    moved[:, 0] += np.maximum(late, 0)[:, None] / fleet.RATE * np.array([1.0, 0.5])
    first = fleet._windows(trip._replace(position=moved), TOWN, 2, 1, stride=1)["y"][0]
    np.testing.assert_allclose(first, [[1, 0.5], [2, 1], [3, 1.5], [4, 2]], atol=1e-5)
    assert windows["owner"].tolist() == [2000, 2001] * 6 and set(windows["town"]) == {2} and set(windows["trip"]) == {1}


def test_windows_that_reach_into_a_crash_are_left_out():
    whole = made_trip(np.array([0.0, 50.0]), np.array([10.0, 5.0]), [0, 1], crash=(36, 1))
    # The six windows end at steps 34 to 39.
    assert fleet._windows(whole, TOWN, 0, 0, stride=1)["owner"].tolist() == [0, 1, 0, 1, 0, 0, 0, 0]


def test_a_simulated_fleet_is_named_by_its_seed_and_last_trips_are_test():
    pytest.importorskip("highway_env")
    options = {"vehicles": 2, "trips": 2, "seconds": 9}
    splits = ftx.data.load("fleet", **options, unseen=["village", "suburb"])
    assert splits.train.client_ids.tolist() == splits.test.client_ids.tolist() == [1000, 1001, 2000, 2001]
    assert splits.unseen.client_ids.tolist() == [0, 1, 3000, 3001]
    assert set(splits.train.columns["trip"]) == {0} and set(splits.test.columns["trip"]) == {1}
    windows = {"windows train": 3 * 4, "windows test": 3 * 4, "windows unseen": 3 * 8}
    assert splits.report == {"vehicles": 8, "trips": 16, "crashes": 0, **windows}
    again = ftx.data.load("fleet", **options, unseen=["village", "suburb"])
    other = ftx.data.load("fleet", **options, unseen=["village", "suburb"], seed=1)
    np.testing.assert_array_equal(splits.train.columns["x"], again.train.columns["x"])
    assert not np.allclose(splits.train.columns["x"], other.train.columns["x"])
    everybody = ftx.data.load("fleet", **options, unseen=[])
    assert (everybody.unseen.num_clients, everybody.train.num_clients) == (0, 8)


def test_vehicles_brake_behind_others_and_change_lane():
    pytest.importorskip("highway_env")
    trip = fleet.simulate(fleet.TOWNS["suburb"], 8, 30, 0, "suburb", 0)
    assert trip.position.shape == (150, 8, 2) and not trip.crashed.any()
    lanes = np.round(trip.position[..., 1] / fleet.LANE_WIDTH)
    assert (np.diff(lanes, axis=0) != 0).any() and trip.velocity[..., 0].std(axis=0).mean() > 0.5
    assert (np.diff(trip.position[..., 0], axis=0) >= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 7}, "expected seconds >= 8, got 7"),
        ({"trips": 1}, "expected trips >= 2, got 1"),
        ({"unseen": ["Rome"]}, "Rome"),
        ({"unseen": list(fleet.TOWNS)}, "expected unseen to leave somebody to train on"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ftx.data.load("fleet", **options)
