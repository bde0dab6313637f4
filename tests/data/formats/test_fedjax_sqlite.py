"""FedJAX's SQLite files: a client that FedJAX wrote, and files made in its form."""

import sqlite3
import zlib

import msgpack
import numpy as np
import pytest

from fedjax_tx.data import from_fedjax_sqlite

# What fedjax 0.0.17's msgpack_serialize, compressed by zlib, makes of
# {"x": np.float32([[0.5], [2.0]]), "text": np.array([b"to be", b""], object)}
WRITTEN_BY_FEDJAX = bytes.fromhex(
    "789c6b5a58715c8c71f22426c6e56939f98925c6464738181818ec81d86149496a45c9715e96491399261d612dc957484a3dc200009d65105e"
)
TABLE = "CREATE TABLE federated_data (client_id BLOB NOT NULL PRIMARY KEY, data BLOB NOT NULL, num_examples INTEGER NOT NULL)"


def pack(columns):
    def extension(array):
        if array.dtype == object:
            return msgpack.ExtType(4, msgpack.packb((array.shape, array.tolist()), use_bin_type=True))
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))

    return zlib.compress(msgpack.packb(columns, default=extension))


def write(path, clients):
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute(TABLE)
        connection.executemany("INSERT INTO federated_data VALUES (?, ?, ?)", clients)
    connection.close()
    return path


def test_what_fedjax_wrote(tmp_path):
    path = write(tmp_path / "a file?.sqlite", [(b"client \xc3\xa9", WRITTEN_BY_FEDJAX, 2)])

    def encode(columns):
        assert columns["text"].tolist() == ["to be", ""]
        return {"x": columns["x"]}

    data = from_fedjax_sqlite(path, encode=encode)
    assert data.client_ids.tolist() == ["client é"]
    assert data.columns["x"].dtype == np.float32 and data.columns["x"].tolist() == [[0.5], [2.0]]
    with pytest.raises(TypeError, match="column 'text' of client 'client é' in '.*sqlite' to be of numbers .*, got 'to be'"):
        from_fedjax_sqlite(path)


def test_clients_in_stored_order_from_any_on(tmp_path):
    generator = np.random.default_rng(0)
    columns = [{"pixels": generator.random((size, 4, 4), np.float32), "label": np.arange(size)} for size in (2, 3, 1)]
    rows = [(name, pack(some), len(some["label"])) for name, some in zip([b"b", b"a", b"c"], columns, strict=True)]
    path = write(tmp_path / "emnist.sqlite", [*rows, (b"bad", b"", 1)])
    with pytest.raises(ValueError, match="data of client 'bad' in '.*' to be arrays in msgpack, compressed, got"):
        from_fedjax_sqlite(path, directory=tmp_path / "data", progress=False)
    data = from_fedjax_sqlite(write(path, rows), directory=tmp_path / "data", progress=False)
    assert data.client_ids.tolist() == ["b", "a", "c"] and data.client_sizes.tolist() == [2, 3, 1]
    np.testing.assert_array_equal(data.client(1)["pixels"], columns[1]["pixels"])
    assert list(from_fedjax_sqlite(path, columns=["label"]).columns) == ["label"]


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ((b"a", pack({"y": np.arange(2)}), 3), r"'y' of client 'a' in '.*' to have 3 rows, as num_examples says, got \(2,\)"),
        ((b"a", pack({"x": np.arange(2)}), 2), r"client 'a' in '.*' to have the columns \['y'\], got \['x'\]"),
        ((b"a", pack({"y": [1, 2]}), 2), r"column 'y' of client 'a' in '.*' to be an array, got \[1, 2\]"),
        ((b"a", pack([1]), 2), r"data of client 'a' in '.*' to be a dict, got \[1\]"),
        ((b"a", zlib.compress(msgpack.packb({"y": msgpack.ExtType(2, b"")})), 2), "got extension type 2 of msgpack"),
        ((b"a", WRITTEN_BY_FEDJAX[:20], 2), "to be arrays in msgpack, compressed, got Error -5"),
        ((b"\xff", pack({"y": np.arange(2)}), 2), r"a client_id of '.*' to be text in UTF-8, got b'\\xff'"),
    ],
)
def test_other_clients_are_refused_by_name(tmp_path, client, message):
    path = write(tmp_path / "data.sqlite", [client])
    with pytest.raises((TypeError, ValueError), match=message):
        from_fedjax_sqlite(path, columns=["y"])


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.sqlite', which is not there"):
        from_fedjax_sqlite(tmp_path / "data.sqlite")
    (tmp_path / "data.sqlite").write_text("no database at all")
    with pytest.raises(ValueError, match="to be SQLite with a table federated_data of .*, got file is not a database"):
        from_fedjax_sqlite(tmp_path / "data.sqlite")
    sqlite3.connect(tmp_path / "empty.sqlite").execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(ValueError, match="got no such table: federated_data"):
        from_fedjax_sqlite(tmp_path / "empty.sqlite")
