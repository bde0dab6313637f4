"""A folder a client, with files of examples in it."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.formats.clients import check_options, from_clients
from fedjax_tx.data.formats.columns import Client, Encode, as_column


def from_folders(
    folder: str | os.PathLike[str],
    read_file: Callable[[Path], Mapping[str, Any]] | None = None,
    *,
    pattern: str = "*",
    encode: Encode | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Reads a folder in which each folder is a client, called as it is, and the files in it hold its examples.

    Clients and files come in the order of their names, numbers in them by size: ``take_2`` before ``take_10``. The rows of a
    client's files follow one another. One client is in memory at a time.

    Args:
      folder: holds the clients' folders; files beside them are left alone.
      read_file: ``read_file(path) -> columns``, arrays with one row an example; None reads ``.npz`` files, and ``.csv`` files
        with a header line.
      pattern: which files below a client's folder are examples; ``"**/*.wav"`` looks into folders of its own. Names that begin
        with a dot are passed over.
      encode, directory, progress: see ``from_clients``.

    Raises:
      FileNotFoundError: if there is no folder in ``folder``, or no file of the pattern in a client's.
      TypeError, ValueError: naming the file, if it can't be read, or its columns differ from those of the client's first; see
        ``from_clients``.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> (folder / "anna").mkdir()
      >>> np.savez(folder / "anna" / "walk.npz", x=np.zeros((2, 3)), y=[0, 1])
      >>> from_folders(folder)
      FederatedDataset(1 clients, 2 examples, 2/2/2 (min/median/max) a client, x: float64[3], y: int64)
    """
    check.instance("folder", folder, (str, os.PathLike), "a path")
    read = _read_file if read_file is None else check.function("read_file", read_file)
    check.instance("pattern", pattern, str, "a pattern of files' names")
    check_options(encode, directory, progress)
    clients = [path for path in _in_order(Path(folder).glob("*")) if path.is_dir()]
    if not clients:
        raise FileNotFoundError(f"expected folder to hold a folder for each client, got {str(folder)!r}, without any")

    def read_clients(start: int) -> Iterator[Client]:
        for client in clients[start:]:
            yield Client(client.name, _read_client(client, pattern, read), str(client))

    return from_clients(read_clients, encode=encode, directory=directory, num_clients=len(clients), progress=progress)


def _in_order(paths: Any) -> list[Path]:
    def key(path: Path) -> list[Any]:
        return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", str(path)))]

    return sorted((path for path in paths if not path.name.startswith(".")), key=key)


def _read_client(client: Path, pattern: str, read_file: Callable[[Path], Mapping[str, Any]]) -> dict[str, np.ndarray]:
    files = [path for path in _in_order(client.glob(pattern)) if path.is_file()]
    if not files:
        raise FileNotFoundError(f"expected files {pattern!r} in the client's folder {str(client)!r}, got none")
    parts: list[dict[str, np.ndarray]] = []
    for path in files:
        columns = check.mapping(f"what read_file gives for {str(path)!r}", read_file(path))
        parts.append({name: column if isinstance(column, np.ndarray) else as_column(column) for name, column in columns.items()})
        have, want = ({name: column.shape[1:] for name, column in part.items()} for part in (parts[-1], parts[0]))
        if have != want:
            check.fail_value(f"the columns of {str(path)!r}", f"to have the shapes {want} of {files[0].name!r}", have)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read_file(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, OSError) as error:
            raise ValueError(f"expected {str(path)!r} to be an .npz file of arrays, got {error}") from error
    if path.suffix == ".csv":
        import pandas as pd  # slow to import

        frame = pd.read_csv(path)
        return {str(name): as_column(frame[name].tolist()) for name in frame.columns}
    check.fail_value("a file of the pattern, where read_file is not given,", "to end in .npz or .csv", str(path))
