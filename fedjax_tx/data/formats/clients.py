"""The one way from a source of clients to a data set, in memory or, where the source is large, on disk.

A format is a function ``read_clients(start)`` that gives the clients one after another, from number ``start`` on, each with its
columns. ``columns.py`` makes them arrays that are alike, ``convert.py`` writes them to disk.
"""

import os
from typing import Any

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.formats.columns import Encode, ReadClients, count_rows, read_arrays
from fedjax_tx.data.formats.convert import convert


def from_clients(
    read_clients: ReadClients,
    *,
    encode: Encode | None = None,
    directory: str | os.PathLike[str] | None = None,
    num_clients: int | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Makes a data set of clients that are read one after another; the loaders of all formats end here.

    All clients have the columns of the first that has an example: the same names, shapes and dtypes; numbers are cast where
    nothing can be lost (int32 to int64, not float64 to float32). Columns are numbers in the end: what else a source holds
    (texts, rows of different lengths, missing values) comes to ``encode`` as an array of objects, and is refused without it.

    With ``directory`` the data set is written there client by client, in the memory of one client and all ids, and opened
    memory-mapped. Killed at any moment and called again, it goes on where it was, and the files are the same bit for bit. When
    the directory is there already, it is opened. Either way one client is read again and compared, so that another source or
    ``encode`` is not taken for the same.

    Args:
      read_clients: ``read_clients(start)`` gives ``(id, columns)`` of each client from number ``start`` on, in the same order
        each time; ids are all strings or all integers, columns arrays with one row an example.
      encode: ``encode(columns) -> columns`` of one client, arrays of numbers; it may change the number of rows.
      directory: where the columns are kept on disk; None keeps them in memory.
      num_clients: how many there will be, if that is known; only for the bar.
      progress: whether to show how far a conversion is.

    Raises:
      TypeError, ValueError: naming client and column, if a client has other columns than the first, a column is not of numbers,
        or an id is there twice; or if what the directory holds is of another source.

    Example:
      >>> def read_clients(start):
      ...     for number in range(start, 3):
      ...         yield f"client_{number}", {"x": np.full(number, 0.5)}
      >>> from_clients(read_clients)
      FederatedDataset(3 clients, 3 examples, 0/1/2 (min/median/max) a client, x: float64)
    """
    check.function("read_clients", read_clients)
    check_options(encode, directory, progress)
    if num_clients is not None:
        check.integer("num_clients", num_clients, low=0)
    if directory is not None:
        return convert(read_clients, encode, directory, num_clients, progress)
    ids, sizes, blocks = [], [], []
    for client_id, columns in read_arrays(read_clients(0), encode):
        ids.append(client_id)
        sizes.append(count_rows(columns))
        blocks.append(columns)
    names = next((list(columns) for columns in blocks if columns), [])
    if not names:
        check.fail_value("read_clients", "to give at least one example", f"{len(ids)} clients without any")
    full = [columns for columns, size in zip(blocks, sizes, strict=True) if size]
    joined = {name: np.concatenate([columns[name] for columns in full]) for name in names}
    return FederatedDataset(joined, np.append(0, np.cumsum(sizes)).astype(np.int64), np.array(ids))


def check_options(encode: Any, directory: Any, progress: Any) -> None:
    """Checks the arguments that all loaders share."""
    if encode is not None:
        check.function("encode", encode)
    if directory is not None:
        check.instance("directory", directory, (str, os.PathLike), "a path or None")
    check.boolean("progress", progress)
