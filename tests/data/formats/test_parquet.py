"""Parquet files: grouped by client whatever their row groups are, and Arrow's types."""

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedjax_tx.data import FederatedDataset, from_parquet
from fedjax_tx.data.formats import parquet
from fedjax_tx.data.formats.arrow import to_array

GENERATOR = np.random.default_rng(0)
WHO = GENERATOR.choice(["ann", "bob", "eve", "joe", "kim"], 300)
ROWS = {"number": np.arange(300), "pair": GENERATOR.random((300, 2), np.float32)}


def table_of(order):
    lists = pa.array(list(ROWS["pair"][order]), pa.list_(pa.float32(), 2))
    return pa.table({"number": ROWS["number"][order], "who": WHO[order], "pair": lists})


@pytest.mark.parametrize("order", [np.arange(300), np.argsort(WHO, kind="stable")], ids=["scattered", "sorted"])
@pytest.mark.parametrize("group_size", [7, 1000])
def test_clients_are_those_of_from_columns(tmp_path, order, group_size):
    pq.write_table(table_of(order[:100]), tmp_path / "part_0.parquet", row_group_size=group_size)
    pq.write_table(table_of(order[100:]), tmp_path / "part_1.parquet", row_group_size=group_size)
    have = from_parquet(tmp_path, "who", directory=tmp_path / "data", progress=False)
    want = FederatedDataset.from_columns({name: column[order] for name, column in ROWS.items()}, WHO[order])
    np.testing.assert_array_equal(have.offsets, want.offsets)
    np.testing.assert_array_equal(have.client_ids, want.client_ids)
    for name, column in want.columns.items():
        assert have.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(have.columns[name], column)


def test_a_sorted_file_is_read_a_few_times_not_once_a_client(tmp_path, monkeypatch):
    order = np.argsort(WHO, kind="stable")
    pq.write_table(table_of(order), tmp_path / "data.parquet", row_group_size=30)
    read, read_group = [], parquet._read_group
    monkeypatch.setattr(parquet, "_read_group", lambda group, names: read.append(names) or read_group(group, names))
    from_parquet(str(tmp_path / "data.parquet"), "who", columns=["number"])
    assert read.count(["who"]) == 10 and read.count(["number"]) <= 2 * 10


@pytest.mark.parametrize(
    ("values", "kind", "dtype"),
    [
        ([1, 2], pa.int16(), np.int16),
        ([1.5, 2.5], pa.float32(), np.float32),
        ([True, False], pa.bool_(), np.bool_),
        ([[1, 2], [3, 4]], pa.list_(pa.uint8()), np.uint8),
        ([[[1], [2]], [[3], [4]]], pa.list_(pa.large_list(pa.int64())), np.int64),
        ([3, 3], pa.dictionary(pa.int8(), pa.int32()), np.int32),
        ([datetime.datetime(2020, 1, 1), datetime.datetime(2021, 1, 1)], pa.timestamp("s"), np.dtype("M8[s]")),
        (["a", "b"], pa.string(), object),
        (["a", "a"], pa.dictionary(pa.int8(), pa.string()), object),
        ([1, None], pa.int32(), object),
        ([[1, 2], [3]], pa.list_(pa.int32()), object),
        ([[1, None], [3, 4]], pa.list_(pa.int32()), object),
        ([{"a": 1}, {"a": 2}], pa.struct({"a": pa.int32()}), object),
    ],
)
def test_arrow_columns(values, kind, dtype):
    for column in (pa.array(values, kind), pa.chunked_array([pa.array(values[:1], kind), pa.array(values[1:], kind)])):
        array = to_array(column)
        assert array.dtype == dtype and len(array) == 2
        assert array.tolist() == values


def test_other_files_are_refused_by_name(tmp_path):
    for path in (tmp_path / "none.parquet", tmp_path):
        with pytest.raises(FileNotFoundError, match="path to be a Parquet file or a folder of them, got"):
            from_parquet(path, "who")
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(ValueError, match="a.parquet' to be a Parquet file, got"):
        from_parquet(tmp_path, "who")
    pd.DataFrame({"who": ["a", "b", "b"], "x": [1, 2, None], "text": ["u", "v", "w"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="client_key to be one of 'who', 'x', 'text' .*, got 'whom'"):
        from_parquet(tmp_path, "whom")
    with pytest.raises(TypeError, match="column 'text' of client 'a' in '.*' to be of numbers .*, got 'u'"):
        from_parquet(tmp_path, "who")
    with pytest.raises(TypeError, match="column 'x' of client 'b' in '.*' to be of numbers .*, got None .* in row 1"):
        from_parquet(tmp_path, "who", columns=["x"])
    pd.DataFrame({"who": ["a", None]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet' to have the columns \['who', 'x'\], got \['who'\]"):
        from_parquet(tmp_path, "who", columns=["x"])
    with pytest.raises(TypeError, match="client_key 'who' of .*b.parquet to hold strings or integers, got None in row 1"):
        from_parquet(tmp_path / "b.parquet", "who")
