"""Clients as the readers of formats give them, and their columns made arrays of numbers that are alike for all clients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from fedjax_tx import check
from fedjax_tx.data.federated import describe_array

ClientId: TypeAlias = str | int
Columns: TypeAlias = dict[str, np.ndarray]
Encode: TypeAlias = Callable[[Columns], Mapping[str, ArrayLike]]
ReadClients: TypeAlias = Callable[[int], Iterable[Any]]


class Client(NamedTuple):
    """A client as it is read: its id, its columns with one row an example, and the file that errors should name."""

    id: ClientId
    columns: Mapping[str, Any]
    file: str = ""

    def __str__(self) -> str:
        return f"client {self.id!r}" + (f" in {self.file!r}" if self.file else "")


def read_arrays(
    clients: Iterable[Any],
    encode: Encode | None,
    schema: Columns = {},  # noqa: B006  it is only read
    seen: Iterable[ClientId] = (),
    like: str = "those before",
) -> Iterator[tuple[ClientId, Columns]]:
    """Gives each client's id and columns, all with the same names, dtypes and shapes of a row.

    Args:
      schema: columns without rows, which those of all clients must be like; by default those of the first client that
        has rows. Those before it have no columns.
      seen: ids that were there before. like: whose the schema is, for errors.
    """
    known = set(seen)
    for item in clients:
        if not isinstance(item, tuple) or len(item) not in (2, 3):
            check.fail_type("what read_clients gives", "a tuple (id, columns)", item)
        client = Client(*item)
        if isinstance(client.id, np.integer):
            client = client._replace(id=int(client.id))
        _check_id(client, known)
        known.add(client.id)
        columns = _to_arrays(client, encode)
        if not schema and count_rows(columns):
            schema, like = without_rows(columns), str(client)
        yield client.id, _conform(client, columns, schema, like) if schema else {}


def count_rows(columns: Mapping[str, np.ndarray]) -> int:
    """The number of rows of columns that have equally many."""
    return len(next(iter(columns.values()))) if columns else 0


def without_rows(columns: Mapping[str, np.ndarray]) -> Columns:
    """Columns of the same names, dtypes and shapes of a row, and nothing in them."""
    return {name: np.empty((0, *column.shape[1:]), column.dtype) for name, column in columns.items()}


def as_column(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """An array of numbers if the values are numbers, or lists of one shape; else an array of the objects as they are."""
    if not (len(values) and isinstance(values[0], (str, bytes, dict))):
        try:
            array = np.asarray(values)
        except (ValueError, OverflowError):  # lists of different lengths, whole numbers of more than 64 bits
            array = np.empty(0, object)
        if array.dtype.kind in "biufcmM":
            return array
    return np.fromiter(values, object, len(values))


def _check_id(client: Client, known: set[ClientId]) -> None:
    if isinstance(client.id, bool) or not isinstance(client.id, (str, int)):
        check.fail_type(f"the id of a client{client.file and f' in {client.file!r}'}", "a string or an integer", client.id)
    if client.id in known:
        check.fail_value("the ids of clients", "to be there once", str(client))
    other = next(iter(known), client.id)
    if isinstance(other, str) != isinstance(client.id, str):
        check.fail_type("the ids of clients", f"all strings or all integers, as {other!r}", client.id)


def _to_arrays(client: Client, encode: Encode | None) -> Columns:
    columns: Mapping[str, Any] = check.mapping(f"the columns of {client}", client.columns)
    if encode is not None:
        columns = check.mapping(f"the result of encode for {client}", encode(dict(columns)))
    arrays = {name: _to_numbers(f"column {name!r} of {client}", column) for name, column in columns.items()}
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) != 1:
        check.fail_value(f"the columns of {client}", "to be at least one, with equal numbers of rows", rows)
    return arrays


def _to_numbers(name: str, column: Any) -> np.ndarray:
    array = as_column(column) if isinstance(column, (list, tuple)) else np.asarray(column)
    if array.ndim == 0:
        check.fail_value(name, "to be an array with one row an example", column)
    if array.dtype.kind == "O":
        array = as_column(array.tolist())
    if array.dtype.kind in "biufc":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if len(array) == 0:
        return np.empty(0)  # of what an example that is not there is made, nobody knows
    _refuse_values(name, array)


def _refuse_values(name: str, array: np.ndarray) -> NoReturn:
    """Raises ``TypeError`` for the first value that is the reason why the column is not an array of numbers."""
    numbers, hint = (bool, int, float, complex, np.number, np.bool_), "(give encode= to make numbers of it)"
    first = _shape(array[0])
    for row, value in enumerate(array):
        if _shape(value) != first or first == "uneven":
            found = f"{first} in row 0, {_shape(value)} in row {row}"
            raise TypeError(f"expected {name} to have rows of one shape {hint}, got {found}")
        if first == () and not isinstance(value, numbers):
            raise TypeError(f"expected {name} to be of numbers {hint}, got {value!r:.60} ({type(value).__name__}) in row {row}")
    raise TypeError(f"expected {name} to be of numbers {hint}, got {array[0]!r:.60} in row 0")


def _shape(value: Any) -> tuple[int, ...] | str:
    try:
        return np.shape(value)
    except ValueError:
        return "uneven"


def _conform(client: Client, columns: Columns, schema: Columns, like: str) -> Columns:
    if columns.keys() != schema.keys() and count_rows(columns):
        check.fail_value(f"the columns of {client}", f"to be {sorted(schema)}, as of {like}", sorted(columns))
    if count_rows(columns) == 0:
        return dict(schema)
    fitted = {}
    for name, want in schema.items():
        have = columns[name]
        if have.shape[1:] != want.shape[1:] or not np.can_cast(have.dtype, want.dtype, "safe"):
            expected = f"to be {describe_array(want)}, as of {like} (encode= can make them alike)"
            raise ValueError(f"expected column {name!r} of {client} {expected}, got {describe_array(have)}")
        fitted[name] = have.astype(want.dtype, copy=False)
    return fitted


def check_names(name: str, value: Any) -> Sequence[str]:
    """Returns ``value`` if it is a sequence of columns' names, at least one."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        check.fail_type(name, "a list of columns' names", value)
    for column in value:
        check.instance(name, column, str, "a list of columns' names")
    if not value:
        check.fail_value(name, "to name at least one", value)
    return value


def decode_texts(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an array of bytes as one of strings (UTF-8); any other as it is."""
    if array.dtype.kind not in "SO":
        return array
    return np.fromiter((decode_text(name, value) for value in array.flat), object, array.size).reshape(array.shape)


def decode_text(name: str, value: Any) -> Any:
    """Returns bytes as a string (UTF-8), lists with theirs as strings, anything else as it is."""
    if isinstance(value, list):
        return [decode_text(name, part) for part in value]
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise ValueError(f"expected {name} to be text in UTF-8, got {bytes(value)!r:.60}") from error
