"""FedJAX's SQLite files (arXiv 2108.02117): a table ``federated_data`` with a row a client.

Its columns are ``client_id``, ``data`` and ``num_examples``; ``data`` is a dict of arrays in msgpack, compressed with zlib. An
array is msgpack's extension type 1, (shape, dtype, bytes), one of texts type 4, (shape, list of bytes).
"""

import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.formats.clients import check_options, from_clients
from fedjax_tx.data.formats.columns import Client, Encode, check_names, decode_text, decode_texts

_NUMBERS, _TEXTS = 1, 4  # msgpack's extension types that FedJAX uses for arrays


def from_fedjax_sqlite(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    encode: Encode | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Reads an SQLite file of FedJAX, such as ``shakespeare_train.sqlite``; clients in stored order.

    Join the files of splits with ``make_splits``. Texts come to ``encode`` as arrays of strings. One client is read at a time.

    Args:
      path: the file. columns: which to read; None: all. encode, directory, progress: see ``from_clients``.

    Raises:
      FileNotFoundError: if there is no such file.
      TypeError, ValueError: naming file and client, if the file is not of that form; see ``from_clients``.

    Example:
      >>> data = from_fedjax_sqlite("emnist_train.sqlite", directory="emnist/train")  # doctest: +SKIP
    """
    place = str(check.instance("path", path, (str, os.PathLike), "a path"))
    if columns is not None:
        check_names("columns", columns)
    check_options(encode, directory, progress)
    if not Path(place).is_file():
        raise FileNotFoundError(f"expected path to be an SQLite file, got {place!r}, which is not there")

    def query(statement: str, *values: int) -> Iterator[tuple]:
        with closing(sqlite3.connect(f"{Path(place).resolve().as_uri()}?mode=ro", uri=True)) as connection:
            try:
                yield from connection.execute(statement, values)
            except sqlite3.DatabaseError as error:
                expected = "to be SQLite with a table federated_data of client_id, data and num_examples"
                raise ValueError(f"expected {place!r} {expected}, got {error}") from error

    def read_clients(start: int) -> Iterator[Client]:
        chosen = "client_id, data, num_examples FROM federated_data ORDER BY rowid LIMIT -1 OFFSET ?"
        for client_id, data, num_examples in query(f"SELECT {chosen}", start):
            yield _read_client(client_id, data, num_examples, place, columns)

    ((num_clients,),) = query("SELECT count(*) FROM federated_data")
    return from_clients(read_clients, encode=encode, directory=directory, num_clients=num_clients, progress=progress)


def _read_client(client_id: Any, data: Any, num_examples: Any, place: str, columns: Sequence[str] | None) -> Client:
    name = decode_text(f"a client_id of {place!r}", client_id)
    where = f"client {name!r} in {place!r}"
    try:
        arrays = msgpack.unpackb(zlib.decompress(data), ext_hook=_read_array, raw=False)
    except (TypeError, ValueError, zlib.error, msgpack.UnpackException) as error:
        raise ValueError(f"expected the data of {where} to be arrays in msgpack, compressed, got {error}") from error
    check.mapping(f"the data of {where}", arrays)
    missing = [column for column in columns or () if column not in arrays]
    if missing:
        check.fail_value(where, f"to have the columns {list(columns or ())}", sorted(arrays))
    read = {}
    for column in arrays if columns is None else columns:
        label = f"column {column!r} of {where}"
        array = check.instance(label, arrays[column], np.ndarray, "an array")
        if array.shape[:1] != (num_examples,):
            check.fail_value(label, f"to have {num_examples} rows, as num_examples says", array.shape)
        read[column] = decode_texts(label, array)
    return Client(name, read, place)


def _read_array(code: int, data: bytes) -> np.ndarray:
    if code == _NUMBERS:
        shape, dtype, buffer = msgpack.unpackb(data, raw=True)
        return np.frombuffer(buffer, np.dtype(dtype.decode())).reshape(shape)
    if code == _TEXTS:
        shape, texts = msgpack.unpackb(data, raw=True)
        return np.fromiter(texts, object, len(texts)).reshape(shape)
    raise ValueError(f"extension type {code} of msgpack")
