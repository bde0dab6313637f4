"""Rows of data sets taken apart and put together; clients stay who they are."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset


def keep_rows(data: FederatedDataset, kept: Bool[np.ndarray, " rows"]) -> FederatedDataset:
    """Returns the rows that are kept, and the clients that have any.

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
    return FederatedDataset.from_columns({name: column[flags] for name, column in data.columns.items()}, row_clients(data)[flags])


def concatenate(parts: Sequence[FederatedDataset]) -> FederatedDataset:
    """Returns all rows of all parts; clients with the same id are one, its rows in the order of the parts.

    Raises:
      TypeError, ValueError: if there is no part, a part is no such data set or not all of one, or columns differ.

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
        if set(part.columns) != set(parts[0].columns):
            check.fail_value(f"the columns of parts[{number}]", f"to be {sorted(parts[0].columns)}", sorted(part.columns))
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return FederatedDataset.from_columns(columns, np.concatenate([row_clients(part) for part in parts]))


def row_clients(data: FederatedDataset) -> np.ndarray:
    """Returns the id of each row's client.

    Example:
      >>> row_clients(FederatedDataset.from_offsets({"x": np.arange(3)}, [0, 2, 3], ["a", "b"])).tolist()
      ['a', 'a', 'b']
    """
    check.instance("data", data, FederatedDataset, "a FederatedDataset")
    data.refuse_part()
    return np.repeat(data.client_ids, data.client_sizes)
