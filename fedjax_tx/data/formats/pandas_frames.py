"""pandas data frames with a column of clients."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.formats.clients import check_options, from_clients
from fedjax_tx.data.formats.columns import Encode, as_column
from fedjax_tx.data.formats.tables import Table, choose_columns, group_table

if TYPE_CHECKING:
    import pandas as pd


def from_pandas(
    frame: "pd.DataFrame",
    client_key: str,
    *,
    columns: Sequence[str] | None = None,
    encode: Encode | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Groups the rows of a data frame by client; clients in the order of their ids, rows in that of the frame.

    Args:
      frame: a row an example. client_key: the column of clients, strings or integers; it is no column of the result.
      columns: which others to take; None: all. A number that is missing becomes NaN, in a column of integers too.
      encode, directory, progress: see ``from_clients``.

    Raises:
      TypeError, ValueError: if there is no such column, a row has no client, or a column is not of numbers; see ``from_clients``.

    Example:
      >>> import pandas as pd
      >>> frame = pd.DataFrame({"hospital": ["b", "a", "b"], "age": [70, 50, 60]})
      >>> from_pandas(frame, "hospital").client(1)
      {'age': array([70, 60])}
    """
    import pandas as pd  # slow to import, and only this needs it

    check.instance("frame", frame, pd.DataFrame, "a pandas.DataFrame")
    names = choose_columns("frame", list(frame.columns), client_key, columns)
    check_options(encode, directory, progress)

    arrays = {name: _to_array(frame[name]) for name in names}

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[rows] for name, array in arrays.items()}

    read_clients, num_clients = group_table(Table("frame", [_to_array(frame[client_key])], take), client_key)
    return from_clients(read_clients, encode=encode, directory=directory, num_clients=num_clients, progress=progress)


def _to_array(series: Any) -> np.ndarray:
    array = series.to_numpy()
    return as_column(array.tolist()) if array.dtype.kind == "O" else array
