"""A source of clients written to disk once, in bounded memory; a conversion that was killed goes on where it was.

What becomes the data set NAME is made in the folder ``.NAME.converting`` beside it. Its ``data`` holds the columns as the
``.npy`` files of ``FederatedDataset.save``, to which rows are appended; ``clients.jsonl`` lists the clients whose rows are safe
on disk, ``[id, rows]`` a line. Rows are synced before their clients are listed, so whatever follows the listed rows in a column
is of a client that was not done, and is cut off at the next start. The last act is to rename ``data`` to NAME.
"""

import contextlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset, column_files, write_index
from fedjax_tx.data.formats.columns import ClientId, Columns, Encode, ReadClients, count_rows, read_arrays, without_rows

try:
    import fcntl
except ImportError:  # on Windows nothing keeps two processes from converting to one place
    fcntl = None  # type: ignore[assignment]

BYTES_AT_ONCE, CLIENTS_AT_ONCE = 64 * 2**20, 5_000  # how much is written before it is made safe


class _Making(NamedTuple):
    """A conversion under way: its folder, the list's file, and the clients on it as (id, number of rows)."""

    folder: Path
    listed: IO[bytes]
    done: list[tuple[ClientId, int]]

    @property
    def num_rows(self) -> int:
        return sum(rows for _, rows in self.done)


def convert(
    read_clients: ReadClients,
    encode: Encode | None,
    directory: str | os.PathLike[str],
    num_clients: int | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Writes the clients to ``directory`` unless they are there, and opens it; arguments are those of ``from_clients``.

    Several processes may ask for the same directory: one converts, the others wait.
    """
    target = Path(directory)
    folder = target.with_name(f".{target.name}.converting")
    if target.exists():
        shutil.rmtree(folder, ignore_errors=True)  # a kill right after the renaming leaves it
        return _open_checked(target, read_clients, encode)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if not target.exists():  # another process may have been first
            with _bar(num_clients, progress) as show:
                _write(read_clients, encode, folder, show)
            (folder / "data").rename(target)
        shutil.rmtree(folder, ignore_errors=True)
    return FederatedDataset.open(target)


def _write(read_clients: ReadClients, encode: Encode | None, folder: Path, show: Callable[[int], None]) -> None:
    with contextlib.ExitStack() as stack:
        making = _open_list(folder, stack)
        schema = _read_schema(folder)  # empty until a client has rows
        files = _open_columns(making, schema, stack)
        start = max(len(making.done) - 1, 0)  # the last one is read again: is it the same source?
        clients = read_arrays(read_clients(start), encode, schema, [client_id for client_id, _ in making.done[:-1]])
        if making.done:
            _check_same(str(folder), next(clients, None), *making.done[-1], _read_last(files, schema, making.done[-1][1]))
        fresh: list[tuple[ClientId, int]] = []
        num_bytes = 0
        try:
            for client_id, columns in clients:
                if columns and not schema:
                    schema = _write_schema(folder, columns)
                    files = _open_columns(making, schema, stack)
                for name, column in columns.items():
                    files[name].write(np.ascontiguousarray(column).data)
                    num_bytes += column.nbytes
                fresh.append((client_id, count_rows(columns)))
                show(len(making.done) + len(fresh))
                if num_bytes > BYTES_AT_ONCE or len(fresh) >= CLIENTS_AT_ONCE:
                    _make_safe(making, files, fresh)
                    num_bytes = 0
        finally:  # an error of the source does not undo what came before it
            _make_safe(making, files, fresh)
        if not schema:
            check.fail_value("read_clients", "to give at least one example", f"{len(making.done)} clients without any")
        _finish(making, files, schema)


def _make_safe(making: _Making, files: dict[str, IO[bytes]], fresh: list[tuple[ClientId, int]]) -> None:
    for file in files.values():
        _sync(file)
    making.listed.write(b"".join(json.dumps(client).encode() + b"\n" for client in fresh))
    _sync(making.listed)
    making.done.extend(fresh)
    fresh.clear()


def _finish(making: _Making, files: dict[str, IO[bytes]], schema: Columns) -> None:
    """Puts the number of rows into the columns' headers and writes the rest of a saved data set; may be done twice."""
    for name, file in files.items():
        file.seek(0)
        file.write(_header(schema[name], making.num_rows))
        _sync(file)
    offsets = np.append(0, np.cumsum([rows for _, rows in making.done])).astype(np.int64)
    write_index(making.folder / "data", list(files), offsets, np.array([client_id for client_id, _ in making.done]))
    for path in (making.folder / "data").iterdir():
        with path.open("r+b") as file:
            _sync(file)


def _open_list(folder: Path, stack: contextlib.ExitStack) -> _Making:
    path = folder / "clients.jsonl"
    path.touch()
    file = stack.enter_context(path.open("r+b"))
    whole, _, _ = file.read().rpartition(b"\n")  # a kill may have torn the last line
    file.truncate(file.seek(len(whole) + 1 if whole else 0))
    return _Making(folder, file, [tuple(json.loads(line)) for line in whole.splitlines()])


def _open_columns(making: _Making, schema: Columns, stack: contextlib.ExitStack) -> dict[str, IO[bytes]]:
    """Opens the columns' files, cut to the rows of the clients on the list."""
    files: dict[str, IO[bytes]] = {}
    for name, file_name in column_files(schema).items():
        path, header = making.folder / "data" / file_name, _header(schema[name], 0)
        path.touch()
        files[name] = file = stack.enter_context(path.open("r+b"))
        end = len(header) + making.num_rows * _row_bytes(schema[name])
        if making.num_rows and file.seek(0, os.SEEK_END) < end:
            found = f"{file.tell()} (delete {str(making.folder)!r} to begin again)"
            check.fail_value(str(path), f"to have {end} bytes, of the {making.num_rows} rows that were written", found)
        file.seek(0)
        file.write(header)
        file.truncate(file.seek(end))
    return files


def _write_schema(folder: Path, columns: Columns) -> Columns:
    described = [(name, np.lib.format.dtype_to_descr(array.dtype), array.shape[1:]) for name, array in columns.items()]
    (folder / "columns.json.new").write_text(json.dumps(described), encoding="utf-8")
    (folder / "columns.json.new").rename(folder / "columns.json")
    return without_rows(columns)


def _read_schema(folder: Path) -> Columns:
    if not (folder / "columns.json").exists():
        return {}
    described = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
    return {name: np.empty((0, *shape), np.dtype(dtype)) for name, dtype, shape in described}


def _read_last(files: dict[str, IO[bytes]], schema: Columns, num_rows: int) -> dict[str, bytes]:
    """What was written of the last client, by column; the files are at their ends again."""
    last = {}
    for name, file in files.items():
        file.seek(-num_rows * _row_bytes(schema[name]), os.SEEK_END)
        last[name] = file.read()
    return last


def _check_same(
    place: str, found: tuple[ClientId, Columns] | None, client_id: ClientId, rows: int, have: dict[str, bytes]
) -> None:
    hint = "(with another source or encode, give another directory)"
    if found is None or found[0] != client_id:
        read = "no more client" if found is None else found[0]
        check.fail_value(f"the source of what is in {place!r}", f"to go on with client {client_id!r} {hint}", read)
    if count_rows(found[1]) != rows and have:
        check.fail_value(f"client {client_id!r} of {place!r}", f"to have {rows} rows as there {hint}", count_rows(found[1]))
    for name, written in have.items():
        if found[1][name].tobytes() != written:
            check.fail_value(f"column {name!r} of client {client_id!r}", f"to be as it is in {place!r} {hint}", "other values")


def _open_checked(target: Path, read_clients: ReadClients, encode: Encode | None) -> FederatedDataset:
    data = FederatedDataset.open(target)
    found = next(read_arrays(read_clients(0), encode, without_rows(data.columns), like=f"those in {str(target)!r}"), None)
    have = {name: column.tobytes() for name, column in data.client(0).items()}
    _check_same(str(target), found, data.client_ids[0].item(), int(data.client_sizes[0]), have)
    return data


def _header(column: np.ndarray, num_rows: int) -> bytes:
    """The beginning of a ``.npy`` file; NumPy leaves room in it, so that it is as long for any number of rows."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(column.dtype)
    shape = (num_rows, *column.shape[1:])
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _row_bytes(column: np.ndarray) -> int:
    return column.dtype.itemsize * math.prod(column.shape[1:])


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process is within; the lock ends with the process, however it ends."""
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _bar(num_clients: int | None, enabled: bool) -> Iterator[Callable[[int], Any]]:
    columns = (SpinnerColumn(), TextColumn("client"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not enabled) as bar:
        task = bar.add_task("", total=num_clients)
        yield lambda done: bar.update(task, completed=done)
