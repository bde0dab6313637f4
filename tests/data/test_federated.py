"""FederatedDataset: grouping, selecting and mapping by their laws, files by their round trip, errors by messages."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from fedjax_tx.data import federated
from fedjax_tx.data.federated import FederatedDataset


def assert_same(have: FederatedDataset, want: FederatedDataset) -> None:
    np.testing.assert_array_equal(have.offsets, want.offsets)
    np.testing.assert_array_equal(have.client_ids, want.client_ids)
    assert have.columns.keys() == want.columns.keys()
    for name in want.columns:
        assert have.columns[name].dtype == want.columns[name].dtype
        np.testing.assert_array_equal(have.columns[name], want.columns[name])


@pytest.fixture
def data() -> FederatedDataset:
    """Five clients of 0 to 4 examples, in two columns."""
    sizes = [3, 0, 4, 1, 2]
    columns = {"x": np.arange(20, dtype=np.float32).reshape(10, 2), "label": np.arange(10)}
    return FederatedDataset.from_offsets(columns, np.append(0, np.cumsum(sizes)), ["a", "b", "c", "d", "e"])


def test_from_columns_groups_rows_by_hand():
    data = FederatedDataset.from_columns({"x": np.array([10, 11, 12, 13, 14])}, np.array(["b", "a", "c", "a", "b"]))
    assert data.client_ids.tolist() == ["a", "b", "c"]
    assert data.offsets.tolist() == [0, 2, 4, 5]
    assert data.columns["x"].tolist() == [11, 13, 10, 14, 12]
    assert (data.num_clients, data.num_examples) == (3, 5)
    assert data.client_sizes.tolist() == [2, 2, 1]
    assert data.client_sizes.dtype == np.int64


@pytest.mark.parametrize("kind", [np.int64, np.uint8, "U7"])
def test_from_columns_keeps_every_row_with_its_client_in_stored_order(kind):
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 40, 500).astype(kind)
    data = FederatedDataset.from_columns({"row": np.arange(500)}, ids)
    np.testing.assert_array_equal(data.client_ids, np.unique(ids))
    assert data.client_ids.dtype == ids.dtype
    for index, client_id in enumerate(data.client_ids):
        np.testing.assert_array_equal(data.client(index)["row"], np.flatnonzero(ids == client_id))


def test_from_columns_does_not_copy_sorted_rows():
    rows = np.arange(4.0)
    data = FederatedDataset.from_columns({"x": rows}, np.array([1, 1, 2, 5]))
    assert np.shares_memory(data.columns["x"], rows)
    assert data.offsets.tolist() == [0, 2, 3, 4]
    assert data.client_ids.tolist() == [1, 2, 5]


def test_from_columns_takes_lists_jax_arrays_and_no_rows():
    data = FederatedDataset.from_columns({"x": jnp.arange(3), "y": [1.0, 2.0, 3.0]}, [2, 1, 2])
    assert data.columns["x"].tolist() == [1, 0, 2]
    empty = FederatedDataset.from_columns({"x": np.zeros((0, 3))}, [])
    assert (empty.num_clients, empty.num_examples) == (0, 0)
    assert repr(empty) == "FederatedDataset(0 clients, 0 examples, x: float64[3])"


STRINGS = {
    "objects": np.array(["b", "a", "b"], object),
    "NumPy's own": np.array(["b", "a", "b"], np.dtypes.StringDType()),
    "a column of pandas": pd.Series(["b", "a", "b"]),
    "objects of pandas": pd.Series(["b", "a", "b"], dtype=object),
    "strings of pandas": pd.Series(["b", "a", "b"], dtype="string"),
    "categories": pd.Categorical(["b", "a", "b"]),
}


@pytest.mark.parametrize("kind", STRINGS)
def test_strings_of_any_kind_are_ids_and_columns(kind):
    data = FederatedDataset.from_columns({"x": np.arange(3), "name": STRINGS[kind]}, STRINGS[kind])
    assert data.client_ids.tolist() == ["a", "b"] and data.client_ids.dtype.kind == "U"
    assert data.columns["name"].tolist() == ["a", "b", "b"] and data.columns["x"].tolist() == [1, 0, 2]


def test_numbers_as_objects_are_numbers():
    data = FederatedDataset.from_columns({"x": np.array([1, 2], object)}, pd.Series([8, 7], dtype="Int64"))
    assert data.columns["x"].dtype == np.int64 and data.client_ids.tolist() == [7, 8]


@pytest.mark.parametrize("ids", [["b", None, "a"], pd.Series(["b", None, "a"]), np.array(["b", 3, "a"], object)])
def test_the_first_entry_that_is_no_string_is_named(ids):
    with pytest.raises(TypeError, match=r"^expected client_ids to be of strings, got (None|nan|3) \(\w+\) in entry 1$"):
        FederatedDataset.from_columns({"x": np.arange(3)}, ids)


def test_clients_without_examples(data):
    assert data.client_sizes.tolist() == [3, 0, 4, 1, 2]
    assert data.client(1)["x"].shape == (0, 2)
    numbered = FederatedDataset.from_offsets({"x": np.arange(2)}, [0, 0, 2, 2])
    assert numbered.client_ids.tolist() == [0, 1, 2]


def test_client_is_a_view(data):
    assert all(np.shares_memory(data.client(2)[name], data.columns[name]) for name in data.columns)
    assert data.client(2)["label"].tolist() == [3, 4, 5, 6]


def test_select_gives_those_clients_in_that_order(data):
    chosen = [4, 1, 0]
    selected = data.select(chosen)
    assert selected.client_ids.tolist() == ["e", "b", "a"]
    for position, client in enumerate(chosen):
        for name, column in data.client(client).items():
            np.testing.assert_array_equal(selected.client(position)[name], column)


def test_select_laws(data):
    assert_same(data.select(np.arange(5)), data)
    assert_same(data.select([4, 3, 2, 1, 0]).select([4, 3, 2, 1, 0]), data)
    assert_same(data.select([4, 2, 0]).select([2, 1]), data.select([0, 2]))
    assert data.select([]).num_clients == 0


def test_map_laws(data):
    def double(columns):
        return {"x": 2 * columns["x"], "label": columns["label"]}

    def count(columns):
        return {"total": columns["x"].sum(1)}

    assert_same(data.map(lambda columns: columns), data)
    assert_same(data.map(double).map(count), data.map(lambda columns: count(double(columns))))
    assert_same(data.select([2, 0]).map(count), data.map(count).select([2, 0]))


def test_map_does_not_depend_on_blocks(data, monkeypatch):
    seen = []

    def function(columns):
        seen.append(len(columns["x"]))
        return {"y": columns["x"] + 1}

    whole = data.map(function)
    monkeypatch.setattr(federated, "ROWS_PER_BLOCK", 4)
    assert_same(data.map(function), whole)
    assert seen == [10, 4, 4, 2]


def test_map_without_rows_learns_the_columns():
    empty = FederatedDataset.from_columns({"x": np.zeros((0, 3))}, [])
    assert empty.map(lambda columns: {"y": columns["x"].sum(1)}).columns["y"].shape == (0,)


def test_saved_data_opens_memory_mapped(data, tmp_path):
    data.save(tmp_path / "folder" / "data")
    opened = FederatedDataset.open(str(tmp_path / "folder" / "data"))
    assert_same(opened, data)
    assert all(isinstance(array, np.memmap) for array in (*opened.columns.values(), opened.offsets, opened.client_ids))
    assert isinstance(opened.client(0)["x"].base, np.memmap)
    assert_same(opened.select([3, 0]), data.select([3, 0]))
    opened.map(lambda columns: columns).save(tmp_path / "again")
    assert_same(FederatedDataset.open(tmp_path / "again"), data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "folder"]


def test_columns_may_be_called_anything_and_be_empty(tmp_path):
    data = FederatedDataset.from_offsets({"a/b": np.zeros((0, 3)), "é": np.array([], "U5")}, [0, 0], ["only"])
    data.save(tmp_path / "data")
    assert_same(FederatedDataset.open(tmp_path / "data"), data)


def test_a_failed_save_leaves_nothing(data, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        data.save(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_save_and_open_refuse(data, tmp_path):
    target = tmp_path / "data"
    data.save(target)
    with pytest.raises(FileExistsError, match="expected directory to be new, got .*data', which exists"):
        data.save(target)
    with pytest.raises(FileNotFoundError, match=r"got .*nowhere', without metadata.json"):
        FederatedDataset.open(tmp_path / "nowhere")
    (target / "column_1.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"to be complete, got it without column_1.npy"):
        FederatedDataset.open(target)
    metadata = json.loads((target / "metadata.json").read_text())
    (target / "metadata.json").write_text(json.dumps({**metadata, "format_version": 99}))
    with pytest.raises(ValueError, match="format version of .* to be 1, got 99"):
        FederatedDataset.open(target)
    for wrong in (data.save, FederatedDataset.open):
        with pytest.raises(TypeError, match="directory"):
            wrong(3)


def test_describe(data):
    expected = "5 clients, 10 examples, 0/2/4 (min/median/max) a client, x: float32[2], label: int64"
    assert data.describe() == expected
    assert repr(data) == f"FederatedDataset({expected})"


X = {"x": np.arange(3)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FederatedDataset.from_columns({"x": np.arange(3), "y": np.arange(4)}, [0, 0, 0]),
         "expected columns to have equal numbers of rows, got {'x': 3, 'y': 4}"),
        (lambda: FederatedDataset.from_columns({}, [0]), "expected columns to have at least one column, got {}"),
        (lambda: FederatedDataset.from_columns(X, [0, 1]),
         "expected client_ids to have shape (3,), one id for each row, got (2,)"),
        (lambda: FederatedDataset.from_columns({"x": [[1], [1, 2]]}, [0, 1]), "expected columns['x'] to be an array"),
        (lambda: FederatedDataset.from_offsets(X, [0, 2]),
         "expected offsets to begin with 0 and to end with the number of rows, 3, got [0, 2]"),
        (lambda: FederatedDataset.from_offsets(X, []), "to begin with 0"),
        (lambda: FederatedDataset.from_offsets(X, [0, 3, 2, 3]), "expected offsets never to fall, got [3, 2]"),
        (lambda: FederatedDataset.from_offsets(X, [[0, 3]]), "expected offsets to be one-dimensional, got (1, 2)"),
        (lambda: FederatedDataset.from_offsets(X, [0, 1, 3], ["a"]),
         "expected client_ids to have one entry for each of 2 clients, got 1"),
        (lambda: FederatedDataset.from_offsets(X, [0, 1, 3], ["a", "a"]),
         "expected client_ids to hold each client once, got \"'a' 2 times\""),
        (lambda: FederatedDataset.from_offsets(X, [0, 1, 3]).select([0, 2]),
         "expected clients to be between 0 and 1, got 2"),
        (lambda: FederatedDataset.from_offsets(X, [0, 1, 3]).select([-1]), "got -1"),
        (lambda: FederatedDataset.from_offsets(X, [0, 1, 3]).select([1, 1]), "got '1 2 times'"),
        (lambda: FederatedDataset.from_offsets(X, [0, 1, 3]).select([[1]]), "expected clients to be one-dimensional"),
        (lambda: FederatedDataset.from_offsets(X, [0, 1, 3]).client(2), "expected index <= 1, got 2"),
        (lambda: FederatedDataset.from_offsets(X, [0, 1, 3]).client(-1), "expected index >= 0, got -1"),
        (lambda: FederatedDataset.from_offsets(X, [0, 3]).map(lambda columns: {"y": np.zeros(2)}),
         "expected column 'y' of the result of function to have 3 rows, as function was given, got 2"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(build, message):
    with pytest.raises(ValueError) as error:
        build()
    assert message in str(error.value)


def test_map_refuses_columns_that_change_between_blocks(data, monkeypatch):
    monkeypatch.setattr(federated, "ROWS_PER_BLOCK", 5)
    with pytest.raises(ValueError, match="to have the columns {'y': 'float64'} in every block, got {'y': 'int64'}"):
        data.map(lambda columns: {"y": columns["label"] / 2 if columns["label"][0] == 0 else columns["label"]})


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: FederatedDataset.from_columns([1, 2], [0, 0]), "columns"),
        (lambda: FederatedDataset.from_columns({1: np.arange(3)}, [0, 0, 0]), "columns"),
        (lambda: FederatedDataset.from_columns({"x": np.array([None])}, [0]), r"columns\['x'\]"),
        (lambda: FederatedDataset.from_columns({"x": 3}, [0]), "columns"),
        (lambda: FederatedDataset.from_columns(X, [0.5, 1.0, 2.0]), "client_ids"),
        (lambda: FederatedDataset.from_offsets(X, [0.0, 3.0]), "offsets"),
        (lambda: FederatedDataset(X, [0, 3], np.array([0])), "offsets"),
        (lambda: FederatedDataset.from_offsets(X, [0, 3]).client("a"), "index"),
        (lambda: FederatedDataset.from_offsets(X, [0, 3]).select([True]), "clients"),
        (lambda: FederatedDataset.from_offsets(X, [0, 3]).map(3), "function"),
        (lambda: FederatedDataset.from_offsets(X, [0, 3]).map(lambda columns: columns["x"]), "the result of function"),
    ],
)
def test_wrong_types_are_named(build, name):
    with pytest.raises(TypeError, match=name):
        build()


OPENED = """
import json, sys, time
from pathlib import Path
from fedjax_tx.data import FederatedDataset

began = time.perf_counter()
data = FederatedDataset.open(sys.argv[1])
seconds = time.perf_counter() - began
data.describe()
client = data.client(999_999)["x"].sum().item()
status = Path("/proc/self/status").read_text()
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"seconds": seconds, "peak": peak, "clients": data.num_clients, "client": client}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory where Linux tells it")
def test_a_million_clients_open_in_a_second_and_a_gigabyte(tmp_path):
    clients, examples, features = 1_000_000, 5, 64
    rows = np.broadcast_to(np.ones(features, np.float32), (clients * examples, features))
    data = FederatedDataset.from_offsets({"x": rows}, examples * np.arange(clients + 1))
    data.save(tmp_path / "clients")
    assert (tmp_path / "clients" / "column_0.npy").stat().st_size > 1.2e9
    run = subprocess.run([sys.executable, "-c", OPENED, str(tmp_path / "clients")], capture_output=True, text=True, check=True)
    said = json.loads(run.stdout)
    assert (said["clients"], said["client"]) == (clients, examples * features)
    assert said["seconds"] < 1
    assert said["peak"] < 1e9
