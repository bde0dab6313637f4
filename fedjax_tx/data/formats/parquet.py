"""Parquet files with a column of clients, read by row group."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.formats.arrow import to_array
from fedjax_tx.data.formats.clients import check_options, from_clients
from fedjax_tx.data.formats.columns import Encode, check_names
from fedjax_tx.data.formats.tables import Table, choose_columns, group_table


class _Group(NamedTuple):
    """A row group: its file, its number there, and the rows of the whole table that it holds."""

    path: Path
    number: int
    start: int
    end: int


def from_parquet(
    path: str | os.PathLike[str],
    client_key: str,
    *,
    columns: Sequence[str] | None = None,
    encode: Encode | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Groups the rows of a Parquet file, or of all in a folder, by client; clients in the order of their ids.

    About as many rows as the largest row group has are in memory, and 12 bytes a row. Where clients' rows lie together, each row
    group is read a few times; where they are scattered, for each such number of rows all over again: sort a large file by
    client first.

    Args:
      path: a file, or a folder whose ``.parquet`` files have the same columns. client_key: the column of clients, strings or
        integers; it is no column of the result. columns: which others to take; None: all. Lists of one length are axes.
      encode, directory, progress: see ``from_clients``.

    Raises:
      FileNotFoundError: if there is no such file, or none in the folder.
      TypeError, ValueError: if a column is missing in a file, a row has no client, or a column is not of numbers; see
        ``from_clients``.

    Example:
      >>> import tempfile, pandas as pd
      >>> path = f"{tempfile.mkdtemp()}/hospitals.parquet"
      >>> pd.DataFrame({"hospital": ["b", "a", "b"], "age": [70, 50, 60]}).to_parquet(path)
      >>> from_parquet(path, "hospital").client(1)
      {'age': array([70, 60])}
    """
    check.instance("path", path, (str, os.PathLike), "a path")
    check.instance("client_key", client_key, str, "a column's name")
    if columns is not None:
        check_names("columns", columns)
    check_options(encode, directory, progress)
    files = _find_files(Path(path))
    known = _open(files[0]).schema_arrow.names
    names = choose_columns(str(files[0]), known, client_key, columns)
    groups = _list_groups(files, [client_key, *names])

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: to_array(column) for name, column in zip(names, _read_rows(groups, rows, names), strict=True)}

    keys = (to_array(_read_group(group, [client_key]).column(0)) for group in groups)
    most = max((group.end - group.start for group in groups), default=1)
    read_clients, num_clients = group_table(Table(str(path), keys, take), client_key, max(most, 1))
    return from_clients(read_clients, encode=encode, directory=directory, num_clients=num_clients, progress=progress)


def _find_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"expected path to be a Parquet file or a folder of them, got {str(path)!r}")
    return files


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"expected {str(path)!r} to be a Parquet file, got {error}") from error


def _list_groups(files: list[Path], names: list[str]) -> list[_Group]:
    groups, row = [], 0
    for path in files:
        file = _open(path)
        missing = [name for name in names if name not in file.schema_arrow.names]
        if missing:
            check.fail_value(f"{str(path)!r}", f"to have the columns {names}", file.schema_arrow.names)
        for number in range(file.num_row_groups):
            start, row = row, row + file.metadata.row_group(number).num_rows
            groups.append(_Group(path, number, start, row))
    return groups


def _read_group(group: _Group, names: list[str]) -> Any:
    return _open(group.path).read_row_group(group.number, columns=names).select(names)


def _read_rows(groups: list[_Group], rows: np.ndarray, names: list[str]) -> Iterator[Any]:
    """The columns of these rows, in this order; each row group that has one of them is read once."""
    import pyarrow as pa

    order = np.argsort(rows)
    bounds = np.searchsorted(rows[order], [group.start for group in groups] + [groups[-1].end])
    parts = [
        _read_group(group, names).take(pa.array(rows[order[first:last]] - group.start))
        for group, first, last in zip(groups, bounds[:-1], bounds[1:], strict=True)
        if last > first
    ]
    places = np.empty(len(rows), np.int64)
    places[order] = np.arange(len(rows))
    return iter(pa.concat_tables(parts).take(pa.array(places)).columns)
