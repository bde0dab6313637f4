"""Data sets of Hugging Face's ``datasets`` with a column of clients."""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.formats.arrow import to_array
from fedjax_tx.data.formats.clients import check_options, from_clients
from fedjax_tx.data.formats.columns import Encode, as_column, check_names
from fedjax_tx.data.formats.tables import ROWS_AT_ONCE, Table, choose_columns, group_table

if TYPE_CHECKING:
    import datasets


def from_hugging_face(
    dataset: "datasets.Dataset",
    client_key: str,
    *,
    columns: Sequence[str] | None = None,
    encode: Encode | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Groups the rows of a Hugging Face data set by client; clients in the order of their ids.

    The data set stays memory-mapped; 1,024 rows or those of one client are read at a time, and 12 bytes a row are kept.

    Args:
      dataset: one split, such as ``datasets.load_dataset("flwrlabs/femnist", split="train")``. client_key: the column of clients,
        strings or integers (``"writer_id"``); it is no column of the result. columns: which others to take; None: all.
        Pictures are decoded to arrays of their pixels; lists of one length are axes; texts come to ``encode`` as strings.
      encode, directory, progress: see ``from_clients``.

    Raises:
      TypeError: if ``dataset`` is several splits, or a stream, in which rows can't be looked up.
      TypeError, ValueError: if there is no such column, a row has no client, or a column is not of numbers; see ``from_clients``.

    Example:
      >>> import datasets
      >>> rows = datasets.Dataset.from_dict({"writer": ["b", "a", "b"], "digit": [3, 5, 7]})
      >>> from_hugging_face(rows, "writer").client(1)
      {'digit': array([3, 7])}
    """
    check.instance("client_key", client_key, str, "a column's name")
    if columns is not None:
        check_names("columns", columns)
    check_options(encode, directory, progress)
    _check_dataset(dataset)
    names = choose_columns("dataset", list(dataset.column_names), client_key, columns)
    decoded = [name for name in names if hasattr(dataset.features[name], "decode_example")]  # pictures, sounds
    plain = dataset.select_columns([name for name in names if name not in decoded]).with_format("arrow")
    media = dataset.select_columns(decoded).with_format("numpy")

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        read: dict[str, np.ndarray] = {}
        if len(names) > len(decoded):
            table = plain[rows.tolist()]
            read |= {name: to_array(table.column(name)) for name in table.column_names}
        if decoded:
            read |= {name: as_column(list(column)) for name, column in media[rows.tolist()].items()}
        return {name: read[name] for name in names}

    def read_keys() -> Iterator[np.ndarray]:
        for table in dataset.select_columns([client_key]).with_format("arrow").iter(ROWS_AT_ONCE):
            yield to_array(table.column(client_key))

    read_clients, num_clients = group_table(Table("dataset", read_keys(), take), client_key)
    return from_clients(read_clients, encode=encode, directory=directory, num_clients=num_clients, progress=progress)


def _check_dataset(dataset: Any) -> None:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("expected Hugging Face's datasets: pip install 'fedjax-tx[formats]'") from error
    expected = "a datasets.Dataset"
    if isinstance(dataset, datasets.DatasetDict):
        expected += f", so one of the splits {', '.join(dataset)}"
    elif isinstance(dataset, datasets.IterableDataset):
        expected += ", not a stream: rows are looked up by number"
    check.instance("dataset", dataset, datasets.Dataset, expected)
