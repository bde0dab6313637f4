"""Tables grouped by a column of clients: by the law of from_columns, whatever the blocks; pandas' dtypes."""

import numpy as np
import pandas as pd
import pytest

from fedjax_tx.data import FederatedDataset, from_pandas
from fedjax_tx.data.formats.clients import from_clients
from fedjax_tx.data.formats.tables import Table, group_table


@pytest.mark.parametrize("kind", [np.int64, "U3"])
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_groups_as_from_columns_does_whatever_the_blocks(kind, rows_at_once):
    ids = np.random.default_rng(0).integers(0, 30, 200).astype(kind)
    columns = {"row": np.arange(200), "square": np.arange(200.0).reshape(-1, 1) ** 2}
    blocks = [ids[:50].astype(object) if kind == "U3" else ids[:50], ids[50:50], ids[50:]]
    taken = []

    def take(rows):
        taken.append(len(rows))
        return {name: column[rows] for name, column in columns.items()}

    read_clients, num_clients = group_table(Table("numbers", blocks, take), "who", rows_at_once)
    want = FederatedDataset.from_columns(columns, ids)
    have = from_clients(read_clients)
    assert num_clients == want.num_clients
    assert max(taken) <= max(rows_at_once, want.client_sizes.max()) and sum(taken) == 200
    np.testing.assert_array_equal(have.offsets, want.offsets)
    np.testing.assert_array_equal(have.client_ids, want.client_ids)
    for name in columns:
        np.testing.assert_array_equal(have.columns[name], want.columns[name])
    later = list(read_clients(5))
    assert [client.id for client in later] == want.client_ids[5:].tolist()
    assert later[0].columns["row"].tolist() == want.client(5)["row"].tolist()


FRAME = pd.DataFrame(
    {
        "hospital": ["b", "a", "b"],
        "age": pd.array([70, 50, 60], "Int32"),
        "ill": [True, False, True],
        "pressure": [1.5, np.nan, 2.5],
        "sex": pd.Categorical(["m", "f", "f"]),
        "note": ["x", "yy", "zzz"],
        "signal": [[1, 2], [3, 4], [5, 6]],
    }
)


def test_pandas_columns():
    data = from_pandas(FRAME, "hospital", columns=["age", "ill", "pressure", "signal"])
    assert data.client_ids.tolist() == ["a", "b"] and data.client_sizes.tolist() == [1, 2]
    assert data.columns["age"].dtype == np.int32 and data.columns["age"].tolist() == [50, 70, 60]
    assert data.columns["ill"].tolist() == [False, True, True]
    np.testing.assert_array_equal(data.columns["pressure"], [np.nan, 1.5, 2.5])
    assert data.columns["signal"].tolist() == [[3, 4], [1, 2], [5, 6]]


def test_a_missing_integer_becomes_nan():
    frame = pd.DataFrame({"who": [1, 2, 3], "age": pd.array([7, None, 9], "Int32")})
    np.testing.assert_array_equal(from_pandas(frame, "who").columns["age"], [7, np.nan, 9])


def test_pandas_texts_and_categories_come_to_encode():
    def encode(columns):
        assert "hospital" not in columns
        return {"sex": [["f", "m"].index(value) for value in columns["sex"]], "length": [len(note) for note in columns["note"]]}

    data = from_pandas(FRAME, "hospital", encode=encode)
    assert data.columns["sex"].tolist() == [0, 1, 0] and data.columns["length"].tolist() == [2, 1, 3]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME, "column 'sex' of client 'a' in 'frame' to be of numbers .*, got 'f'"),
        (FRAME.assign(hospital=["b", None, "a"]), "client_key 'hospital' of frame to hold strings or integers, got .* in row 1"),
        (FRAME.assign(hospital=[1.0, 2.0, 3.0]), "to hold strings or integers, got 1.0 in row 0"),
        (FRAME.assign(hospital=["b", 1, "a"]), "client_key 'hospital' of frame to be all strings or all integers, got 1"),
        (FRAME.assign(hospital=[True, False, True]), "got .*True.* in row 0"),
        (FRAME.drop(columns="hospital"), "client_key to be one of 'age', .*, got 'hospital'"),
        (pd.concat([FRAME, FRAME], axis=1), "columns of frame to have names of their own, got 'hospital'"),
        (FRAME.iloc[:0], "at least one example"),
    ],
)
def test_frames_are_refused_by_name(frame, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_pandas(frame, "hospital")
