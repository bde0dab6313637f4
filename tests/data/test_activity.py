"""The smartwatch recordings: how they are cut and split, and a pickle that asks for anything but arrays is refused."""

import importlib.metadata
import pickle

import numpy as np
import pytest

import fedjax_tx as ftx
from fedjax_tx.data import package_files
from fedjax_tx.data.sources import activity


@pytest.fixture(scope="module")
def recordings():
    return activity.read_recordings()


@pytest.fixture
def splits(recordings, monkeypatch):
    monkeypatch.setattr(activity, "read_recordings", lambda: recordings)
    return ftx.data.load("activity")


def test_each_person_did_each_exercise_once_with_each_arm(recordings):
    done = sorted((one.person, one.exercise, one.side) for one in recordings)
    assert done == [(person, exercise, side) for person in range(1, 11) for exercise in range(7) for side in range(2)]
    assert all(one.series.shape[1:] == (6,) and one.series.dtype == np.float64 for one in recordings)


def test_what_was_left_out_is_counted(splits):
    parts = {name: getattr(splits, name).num_examples for name in ("train", "test", "unseen")}
    assert splits.report["people"] == 10 and splits.report["recordings"] == 140 and splits.report["steps"] == 244_102
    assert {name: splits.report[f"windows {name}"] for name in parts} == parts
    assert splits.report["steps left out"] == 244_102 - 100 * sum(parts.values())
    assert splits.report["steps left out"] < 2 * 140 * 100  # less than a window of each part of a recording


def test_windows_are_the_recordings_in_pieces_and_test_is_behind_train(recordings, splits):
    one = next(one for one in recordings if (one.person, one.exercise, one.side) == (3, 4, 1))
    pieces = {}
    for name in ("train", "test"):
        data = getattr(splits, name)
        own = data.client(data.client_ids.tolist().index(3))
        mine = (own["y"] == 4) & (own["side"] == 1)
        pieces[name] = own["x"][mine].reshape(-1, 6)
    boundary = round(0.8 * len(one.series))
    train, test = pieces["train"], pieces["test"]
    np.testing.assert_array_equal(train, one.series[: len(train)].astype(np.float32))
    np.testing.assert_array_equal(test, one.series[boundary : boundary + len(test)].astype(np.float32))
    assert boundary - 100 < len(train) <= boundary
    assert len(one.series) - boundary - 100 < len(test) <= len(one.series) - boundary


def test_unseen_people_are_whole_and_elsewhere_nowhere(splits):
    assert splits.unseen.client_ids.tolist() == [9, 10]
    assert splits.train.client_ids.tolist() == splits.test.client_ids.tolist() == list(range(1, 9))
    assert splits.unseen.columns["progress"].min() == 0 and splits.unseen.columns["progress"].max() > 0.9


def test_windows_may_overlap(recordings, monkeypatch):
    monkeypatch.setattr(activity, "read_recordings", lambda: recordings[:1])
    x = activity.load(window=50, stride=10, unseen=[], test_share=0).train.columns["x"]
    np.testing.assert_array_equal(x[1:, :40], x[:-1, 10:])
    assert len(x) == (len(recordings[0].series) - 50) // 10 + 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "expected window >= 1, got 0"),
        ({"stride": 0.5}, TypeError, "expected stride to be an integer"),
        ({"unseen": [11]}, ValueError, "a person of unseen"),
        ({"unseen": list(range(1, 11))}, ValueError, "unseen to leave somebody to train on"),
        ({"test_share": 2}, ValueError, "expected test_share <= 1, got 2"),
    ],
)
def test_what_is_refused(options, error, message, recordings, monkeypatch, unchecked):
    monkeypatch.setattr(activity, "read_recordings", lambda: recordings)
    with pytest.raises(error, match=message):
        activity.load(**options)


# ---- the file


class Evil:
    def __reduce__(self):
        return print, ("evil",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(), "__builtin__.print"),
        (np.float64(1.0), r"numpy\.\S*scalar"),
        (activity.Recording, "fedjax_tx.data.sources.activity.Recording"),
    ],
)
def test_a_pickle_that_asks_for_something_else_is_refused_by_name(tmp_path, value, name, capsys):
    np.save(tmp_path / "file.npy", np.array([value], object), allow_pickle=True)
    # NumPy's own arrays are pickled by another name since its version 2; the one wanted here is the old one.
    content = (tmp_path / "file.npy").read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    array = pickle.dumps(np.zeros(1), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    header, plain = content[:128], tmp_path / "plain.npy"
    (tmp_path / "file.npy").write_bytes(header + pickle.dumps({"X": value}, protocol=2))
    plain.write_bytes(header + array)
    assert activity.read_pickled_array(plain).tolist() == [0.0]
    with pytest.raises(pickle.UnpicklingError, match=f"arrays, numbers and texts only, got one that asks for {name}"):
        activity.read_pickled_array(tmp_path / "file.npy")
    assert capsys.readouterr().out == ""


def test_an_array_of_numbers_is_no_pickle(tmp_path):
    np.save(tmp_path / "file.npy", np.zeros(3))
    with pytest.raises(ValueError, match="the dtype of file.npy to be object, got dtype"):
        activity.read_pickled_array(tmp_path / "file.npy")


def test_a_file_with_another_hash_is_refused(monkeypatch):
    monkeypatch.setattr(activity, "_SHA256", "00")
    with pytest.raises(ValueError, match="SHA-256 of seglearn/data/watch_dataset.npy in the package seglearn to be 00, got "):
        activity.read_recordings()


def test_a_package_that_is_missing_is_named_with_its_command(monkeypatch):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    with pytest.raises(ModuleNotFoundError, match="numpy, which holds a/b: pip install x; the one installed lacks that file"):
        package_files.find_package_file("numpy", "a/b", "pip install x")
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r"seglearn, which holds .*: pip install 'fedjax-tx\[sensors\]'"):
        activity.read_recordings()
