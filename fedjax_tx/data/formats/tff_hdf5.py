"""The HDF5 files of TensorFlow Federated's simulation data sets: ``/examples/<client>/<column>``, a file a split."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.formats.clients import check_options, from_clients
from fedjax_tx.data.formats.columns import Client, Encode, check_names, decode_texts


def from_tff_hdf5(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    encode: Encode | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Reads an HDF5 file of TensorFlow Federated, such as ``fed_emnist_train.h5``; h5py reads it, not TensorFlow.

    Clients come in the order of their names. Join the files of splits with ``make_splits``. Numbers need nothing (``pixels`` and
    ``label`` of fed_emnist; ``image``, ``label`` and ``coarse_label`` of cifar100). Texts (``snippets`` of shakespeare;
    ``tokens``, ``title``, ``tags``, ``creation_date`` and ``type`` of stackoverflow, beside the number ``score``) come to
    ``encode`` as arrays of strings. Stackoverflow, 342,477 clients, wants ``columns`` and a ``directory``.

    Args:
      path: the file. columns: which to read; None: all. encode, directory, progress: see ``from_clients``.

    Raises:
      ModuleNotFoundError: if h5py is not installed.
      FileNotFoundError: if there is no such file.
      TypeError, ValueError: naming file, client and column, if the file is not of that form; see ``from_clients``.

    Example:
      >>> import tempfile, h5py
      >>> path = f"{tempfile.mkdtemp()}/fed_emnist_train.h5"
      >>> with h5py.File(path, "w") as file:
      ...     file["examples/f0000_14/label"] = [3, 5]
      >>> from_tff_hdf5(path).client(0)
      {'label': array([3, 5])}
    """
    place = str(check.instance("path", path, (str, os.PathLike), "a path"))
    if columns is not None:
        check_names("columns", columns)
    check_options(encode, directory, progress)
    if not Path(place).is_file():
        raise FileNotFoundError(f"expected path to be an HDF5 file, got {place!r}, which is not there")
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("expected h5py, which reads HDF5: pip install 'fedjax-tx[formats]'") from error

    with _open(h5py, place) as file:
        num_clients = len(_examples(file, place))

    def read_clients(start: int) -> Iterator[Client]:
        with _open(h5py, place) as file:
            examples = _examples(file, place)
            for name in islice(examples, start, None):
                yield _read_client(examples[name], name, place, columns)

    return from_clients(read_clients, encode=encode, directory=directory, num_clients=num_clients, progress=progress)


def _open(h5py: Any, place: str) -> Any:
    try:
        return h5py.File(place, "r")
    except OSError as error:
        raise ValueError(f"expected {place!r} to be an HDF5 file, got {error}") from error


def _examples(file: Any, place: str) -> Any:
    if not hasattr(file.get("examples"), "items"):
        check.fail_value(f"{place!r}", "to have a group 'examples'", sorted(file))
    return file["examples"]


def _read_client(group: Any, name: str, place: str, columns: Sequence[str] | None) -> Client:
    where = f"client {name!r} in {place!r}"
    if not hasattr(group, "items"):
        check.fail_value(where, "to be a group of columns", group)
    missing = [column for column in columns or () if column not in group]
    if missing:
        check.fail_value(where, f"to have the columns {list(columns or ())}", sorted(group))
    read = {}
    for column in group if columns is None else columns:
        if getattr(group[column], "ndim", 0) == 0:
            check.fail_value(f"column {column!r} of {where}", "to be an array with one row an example", group[column])
        read[column] = decode_texts(f"column {column!r} of {where}", group[column][()])
    return Client(name, read, place)
