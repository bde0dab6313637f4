"""Rows of data sets taken apart and put together; clients stay who they are, and in their order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from fedjax_tx import check
from fedjax_tx.data.classes import clients_of_rows
from fedjax_tx.data.federated import FederatedDataset, describe_array
from fedjax_tx.prng import host_generator


def keep_rows(data: FederatedDataset, kept: Bool[np.ndarray, " rows"]) -> FederatedDataset:
    """Returns the rows that are kept, and the clients that have any, in their order.

    Args:
      data: any data set that holds all its rows. kept: one flag a row, in the order of ``data.columns``.

    Raises:
      TypeError, ValueError: if ``kept`` is not an array of so many flags, or other processes hold a part of the rows.

    Example:
      >>> data = FederatedDataset.from_columns({"x": np.arange(4)}, ["a", "a", "b", "c"])
      >>> keep_rows(data, data.columns["x"] % 2 == 1).client_ids.tolist()
      ['a', 'c']
    """
    check.instance("data", data, FederatedDataset, "a FederatedDataset")
    data.refuse_part()
    flags = check.instance("kept", kept, np.ndarray, "an array of flags, one a row")
    if flags.dtype != bool or flags.shape != (data.num_examples,):
        check.fail_value("kept", f"to be bool[{data.num_examples}], one flag a row", f"{flags.dtype}{list(flags.shape)}")
    left = _some_rows(data, flags)
    some = left.client_sizes > 0
    return FederatedDataset(left.columns, np.append(0, left.offsets[1:][some]), left.client_ids[some])


def split_rows(data: FederatedDataset, shares: Sequence[float], *, seed: int | None) -> tuple[FederatedDataset, ...]:
    """Splits the rows of each client, such as into data for training, validation and testing.

    Every set has all clients, in their order; a client's rows stay in theirs. Of n rows the first sets together hold n times
    their shares, rounded; the first holds a row at least, so that a client with a single one keeps it for training.

    Args:
      data: any data set that holds all its rows. shares: > 0, one for each set; they sum to 1.
      seed: names a random choice of rows. None: the first set has a client's first rows and the last set its last, as a
        forecast from series needs it.

    Raises:
      TypeError, ValueError: if an argument is not such, or other processes hold a part of the rows.

    Example:
      >>> data = FederatedDataset.from_columns({"x": np.arange(6)}, ["a"] * 5 + ["b"])
      >>> train, test = split_rows(data, [0.6, 0.4], seed=None)
      >>> train.columns["x"].tolist(), test.columns["x"].tolist(), test.client_sizes.tolist()
      ([0, 1, 2, 5], [3, 4], [2, 0])
    """
    check.instance("data", data, FederatedDataset, "a FederatedDataset")
    data.refuse_part()
    check.instance("shares", shares, (list, tuple), "a list of numbers")
    for share in shares:
        check.number("a share of shares", share, above=0)
    if abs(sum(shares) - 1) > 1e-6:
        check.fail_value("shares", "to sum to 1", shares)
    if seed is not None:
        check.integer("seed", seed, low=0)
    client, sizes = clients_of_rows(data), data.client_sizes
    chosen = np.zeros(data.num_examples) if seed is None else host_generator(seed, "split").random(data.num_examples)
    place = np.empty(data.num_examples, np.int64)  # of a row among its client's
    place[np.lexsort((chosen, client))] = np.arange(data.num_examples) - np.asarray(data.offsets)[client]
    ends = np.maximum(np.rint(np.outer(sizes, np.cumsum(shares))), 1)
    number = np.sum(place[:, None] >= ends[client, :-1], axis=1)
    return tuple(_some_rows(data, number == part) for part in range(len(shares)))


def _some_rows(data: FederatedDataset, kept: Bool[np.ndarray, " rows"]) -> FederatedDataset:
    """The rows that are kept, and all clients."""
    sizes = np.bincount(clients_of_rows(data)[kept], minlength=data.num_clients)
    columns = {name: column[kept] for name, column in data.columns.items()}
    return FederatedDataset(columns, np.append(0, np.cumsum(sizes)), data.client_ids)


def concatenate(parts: Sequence[FederatedDataset]) -> FederatedDataset:
    """Returns all rows of all parts; clients with the same id are one, its rows in the order of the parts.

    Clients come in the order in which their ids first appear in the parts, those without an example too.

    Raises:
      TypeError, ValueError: if there is no part, a part is no such data set or not all of one, or columns or the kinds of ids
        differ.

    Example:
      >>> left, right = (FederatedDataset.from_columns({"x": [x]}, [7]) for x in (1, 2))
      >>> concatenate([left, right]).client(0)["x"].tolist()
      [1, 2]
    """
    check.instance("parts", parts, (list, tuple), "a list of FederatedDatasets")
    if not parts:
        check.fail_value("parts", "to have at least one data set", parts)
    for number, part in enumerate(parts):
        check.instance(f"parts[{number}]", part, FederatedDataset, "a FederatedDataset")
        part.refuse_part()
        _check_alike(number, part, parts[0])
    place: dict[Any, int] = {}
    for part in parts:
        for client_id in part.client_ids.tolist():
            place.setdefault(client_id, len(place))
    clients = np.concatenate([_places(part, place)[clients_of_rows(part)] for part in parts])
    order = np.argsort(clients, kind="stable")
    columns = {name: np.concatenate([part.columns[name] for part in parts])[order] for name in parts[0].columns}
    offsets = np.append(0, np.cumsum(np.bincount(clients, minlength=len(place))))
    ids = np.array(list(place)) if place else parts[0].client_ids
    return FederatedDataset(columns, offsets, ids)


def _places(part: FederatedDataset, place: dict[Any, int]) -> np.ndarray:
    return np.array([place[client_id] for client_id in part.client_ids.tolist()], np.int64)


def _check_alike(number: int, part: FederatedDataset, first: FederatedDataset) -> None:
    """Raises unless the part can stand behind the first one."""
    if set(part.columns) != set(first.columns):
        check.fail_value(f"the columns of parts[{number}]", f"to be {sorted(first.columns)}", sorted(part.columns))
    for name, column in first.columns.items():
        have, want = part.columns[name], describe_array(column)
        if have.shape[1:] != column.shape[1:] or (have.dtype.kind == "U") != (column.dtype.kind == "U"):
            check.fail_value(f"column {name!r} of parts[{number}]", f"to be {want}, as of parts[0]", describe_array(have))
    if part.num_clients and first.num_clients and (part.client_ids.dtype.kind == "U") != (first.client_ids.dtype.kind == "U"):
        kinds = ["strings" if one.client_ids.dtype.kind == "U" else "integers" for one in (first, part)]
        check.fail_value(f"the client ids of parts[{number}]", f"to be {kinds[0]}, as of parts[0]", kinds[1])


def row_clients(data: FederatedDataset) -> np.ndarray:
    """Returns the id of each row's client.

    Example:
      >>> row_clients(FederatedDataset.from_offsets({"x": np.arange(3)}, [0, 2, 3], ["a", "b"])).tolist()
      ['a', 'a', 'b']
    """
    check.instance("data", data, FederatedDataset, "a FederatedDataset")
    data.refuse_part()
    return np.repeat(data.client_ids, data.client_sizes)
