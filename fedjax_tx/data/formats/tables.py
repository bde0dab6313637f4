"""Tables in which one column says whose a row is, in any order: grouped by client without sorting the table.

The clients' column is read once, block by block; what is kept of it are a number a row and the order of the rows, 12 bytes a
row. Then rows are taken client after client, many clients at a time, from whatever gives rows by number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.formats.columns import Client, ReadClients, check_names

ROWS_AT_ONCE = 1_024


class Table(NamedTuple):
    """A table as a format gives it.

    name: for errors. keys: the clients of the rows, strings or integers, in blocks. take: ``take(rows) -> columns`` gives the
    rows of these numbers in this order, columns as ``Client`` has them.
    """

    name: str
    keys: Iterable[Any]
    take: Callable[[np.ndarray], Mapping[str, np.ndarray]]


def group_table(table: Table, client_key: Any, rows_at_once: int = ROWS_AT_ONCE) -> tuple[ReadClients, int]:
    """Returns a reader of the table's clients, in the order of their ids, and how many there are."""
    ids, codes = _number_clients(table, client_key)
    order = np.argsort(codes, kind="stable")
    offsets = np.append(0, np.cumsum(np.bincount(codes, minlength=len(ids))))

    def read_clients(start: int) -> Iterator[Client]:
        while start < len(ids):
            end = max(int(np.searchsorted(offsets, offsets[start] + rows_at_once, side="right")) - 1, start + 1)
            columns = table.take(order[offsets[start] : offsets[end]])
            bounds = offsets[start : end + 1] - offsets[start]
            for client_id, first, last in zip(ids[start:end], bounds[:-1], bounds[1:], strict=True):
                yield Client(client_id, {name: column[first:last] for name, column in columns.items()}, table.name)
            start = end

    return read_clients, len(ids)


def _number_clients(table: Table, client_key: Any) -> tuple[list[Any], np.ndarray]:
    """The sorted ids, and of each row the number of its client among them."""
    name = f"client_key {client_key!r} of {table.name}"
    numbers: dict[Any, int] = {}
    blocks, row = [np.zeros(0, np.int32)], 0
    for keys in table.keys:
        is_text = isinstance(next(iter(numbers)), str) if numbers else None
        values, codes = np.unique(_check_keys(name, np.asarray(keys), row, is_text), return_inverse=True)
        places = [numbers.setdefault(value, len(numbers)) for value in values.tolist()]
        blocks.append(np.array(places, np.int32)[codes])
        row += len(codes)
    ids = sorted(numbers)
    rank = np.empty(len(ids), np.int32)
    rank[[numbers[client_id] for client_id in ids]] = np.arange(len(ids))
    return ids, rank[np.concatenate(blocks)]


def _check_keys(name: str, keys: np.ndarray, first_row: int, is_text: bool | None) -> np.ndarray:
    """Returns the keys if they are all strings or all integers; which of them is open while ``is_text`` is None."""
    of_one_kind = keys.dtype.kind in "iuU"
    for row, value in enumerate((keys[:1] if of_one_kind else keys).tolist()):
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise TypeError(f"expected {name} to hold strings or integers, got {value!r:.60} in row {first_row + row}")
        if is_text not in (None, isinstance(value, str)):
            check.fail_type(name, "all strings or all integers", value)
        is_text = isinstance(value, str)
    return keys


def choose_columns(name: str, known: Sequence[str], client_key: str | None, columns: Sequence[str] | None) -> list[str]:
    """Returns the columns to read, checked: by default all but that of the clients."""
    for column in known:
        if list(known).count(column) > 1:
            check.fail_value(f"the columns of {name}", "to have names of their own", column)
    if client_key is not None:
        check.one_of("client_key", check.instance("client_key", client_key, str, "a column's name"), known)
    for column in () if columns is None else check_names("columns", columns):
        check.one_of("columns", column, known)
    return [column for column in known if column != client_key] if columns is None else list(columns)
