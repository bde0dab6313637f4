"""The data of all clients as one record: columns, one row an example, and where each client's rows begin.

Rows are grouped by client, so client ``i`` holds the rows ``offsets[i]:offsets[i + 1]`` of every column. A client is a
slice and never a Python object: a million clients cost two arrays, and a saved data set opens memory-mapped.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import ArrayLike

from fedjax_tx import check

FORMAT_VERSION = 1
ROWS_PER_BLOCK = 65_536
_METADATA = "metadata.json"


class Part(NamedTuple):
    """Which rows a data set holds where several processes share the clients.

    bounds int64[num_parts + 1]: part p is the clients bounds[p] to bounds[p + 1]. number: of the part held.
    """

    number: int
    bounds: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class FederatedDataset:
    """Columns of examples grouped by client; build it with ``from_columns``, ``from_offsets`` or ``open``.

    Args:
      columns: ``{name: array[num_examples, ...]}``, rows grouped by client.
      offsets: int64[num_clients + 1]; client ``i`` holds rows ``offsets[i]`` to ``offsets[i + 1]``.
      client_ids: [num_clients], integers or fixed-width strings: what the outside calls each client.
      part: the part of the rows that ``columns`` hold (see ``take_part`` and ``gather_parts``), None for all of them.

    Example:
      >>> data = FederatedDataset.from_columns({"x": np.arange(3.0)}, np.array([7, 5, 7]))
      >>> data
      FederatedDataset(2 clients, 3 examples, 1/1.5/2 (min/median/max) a client, x: float64)
      >>> data.client(1)
      {'x': array([0., 2.])}
    """

    columns: dict[str, np.ndarray]
    offsets: Int64[np.ndarray, " bounds"]
    client_ids: np.ndarray
    part: Part | None = None

    def __post_init__(self):
        # Only checks that cost the same at any size, for `open`; `from_offsets` looks at every entry.
        num_rows = _count_rows(check.mapping("columns", self.columns))
        for name, kinds, expected in (("offsets", "i", "int64"), ("client_ids", "iuU", "integers or strings")):
            _as_vector(name, check.instance(name, getattr(self, name), np.ndarray, "an array"), kinds, expected)
        ends = self.offsets[[0, -1]].tolist() if len(self.offsets) else []
        if ends[:1] != [0] or (self.part is None and ends[1] != num_rows):
            check.fail_value("offsets", f"to begin with 0 and to end with the number of rows, {num_rows}", ends)
        if len(self.client_ids) != self.num_clients:
            expected = f"to have one entry for each of {self.num_clients} clients"
            check.fail_value("client_ids", expected, len(self.client_ids))
        if self.part is not None:
            check.instance("part", self.part, Part, "a Part")
            start, stop = self.rows_held
            if stop - start != num_rows:
                check.fail_value("columns", f"to hold the {stop - start} rows of part {self.part.number}", f"{num_rows} rows")

    @classmethod
    def from_columns(cls, columns: Mapping[str, ArrayLike], client_ids: ArrayLike) -> "FederatedDataset":
        """Groups rows by client: clients in sorted order of their ids, a client's rows in stored order.

        Rows that are grouped and sorted already are not copied.

        Args:
          columns: ``{name: array[num_examples, ...]}`` of numbers or fixed-width strings.
          client_ids: [num_examples], integers or strings: the client of each row.

        Raises:
          TypeError: if a column or an id is neither a number nor a string.
          ValueError: if columns and client_ids differ in their numbers of rows.

        Example:
          >>> FederatedDataset.from_columns({"x": np.arange(3)}, np.array(["b", "a", "b"])).client_ids.tolist()
          ['a', 'b']
        """
        arrays = _as_columns("columns", columns)
        row_ids = _as_array("client_ids", client_ids, "iuU", "integers or strings")
        num_examples = _count_rows(arrays)
        if row_ids.shape != (num_examples,):
            check.fail_value("client_ids", f"to have shape ({num_examples},), one id for each row", row_ids.shape)
        if np.any(row_ids[1:] < row_ids[:-1]):
            order = np.argsort(row_ids, kind="stable")
            row_ids = row_ids[order]
            arrays = {name: array[order] for name, array in arrays.items()}
        starts = np.flatnonzero(np.append(num_examples > 0, row_ids[1:] != row_ids[:-1]))
        return cls(arrays, np.append(starts, num_examples).astype(np.int64), row_ids[starts])

    @classmethod
    def from_offsets(
        cls, columns: Mapping[str, ArrayLike], offsets: ArrayLike, client_ids: ArrayLike | None = None
    ) -> "FederatedDataset":
        """Takes rows that are grouped already; a client may have no example.

        Args:
          columns: ``{name: array[num_examples, ...]}``, rows grouped by client.
          offsets: integers [num_clients + 1], from 0 to num_examples, never falling.
          client_ids: [num_clients], integers or strings, each once; by default 0, 1, 2 ...

        Raises:
          TypeError: if an argument is not an array of the kind above.
          ValueError: if the shapes disagree, offsets fall or an id is there twice.

        Example:
          >>> FederatedDataset.from_offsets({"x": np.arange(3)}, [0, 2, 2, 3]).client_sizes.tolist()
          [2, 0, 1]
        """
        bounds = _as_vector("offsets", offsets, "iu", "integers").astype(np.int64)
        ids = np.arange(max(len(bounds) - 1, 0)) if client_ids is None else client_ids
        ids = _as_vector("client_ids", ids, "iuU", "integers or strings")
        data = cls(_as_columns("columns", columns), bounds, ids)
        for client in np.flatnonzero(data.client_sizes < 0)[:1]:
            check.fail_value("offsets", "never to fall", bounds[client : client + 2].tolist())
        _check_unique("client_ids", ids)
        return data

    @property
    def num_clients(self) -> int:
        """How many clients there are, those without an example among them."""
        return len(self.offsets) - 1

    @property
    def num_examples(self) -> int:
        """How many examples all clients hold together."""
        return int(self.offsets[-1])

    @property
    def rows_held(self) -> tuple[int, int]:
        """The first row that the columns hold, and the end: all rows, but for a data set of which other processes hold parts."""
        if self.part is None:
            return 0, self.num_examples
        first, end = self.part.bounds[self.part.number : self.part.number + 2]
        return int(self.offsets[first]), int(self.offsets[end])

    @property
    def client_sizes(self) -> Int64[np.ndarray, " clients"]:
        """How many examples each client holds, int64[num_clients]."""
        return np.diff(np.asarray(self.offsets))

    def client(self, index: int) -> dict[str, np.ndarray]:
        """Returns the columns of one client, as views.

        Raises:
          TypeError: if ``index`` is not an integer.
          ValueError: if it is not in 0 ... num_clients - 1, or another process holds the client's rows.

        Example:
          >>> FederatedDataset.from_offsets({"x": np.arange(3)}, [0, 2, 3]).client(0)
          {'x': array([0, 1])}
        """
        index = check.integer("index", index, low=0, high=self.num_clients - 1)
        first, end = self.rows_held
        start, stop = self.offsets[index] - first, self.offsets[index + 1] - first
        if start < 0 or stop > end - first:
            check.fail_value("index", "to be of a client whose rows this process holds", index)
        return {name: column[start:stop] for name, column in self.columns.items()}

    def select(self, clients: ArrayLike) -> "FederatedDataset":
        """Returns the data set of some clients, in the order given.

        Args:
          clients: indices (not ids) [num_selected], each at most once.

        Raises:
          TypeError: if ``clients`` are not integers.
          ValueError: if an index is out of range or there twice, or the data set holds only a part of its rows.

        Example:
          >>> FederatedDataset.from_offsets({"x": np.arange(3)}, [0, 2, 3]).select([1, 0]).columns
          {'x': array([2, 0, 1])}
        """
        self.refuse_part()
        clients = _as_vector("clients", clients, "iu", "client indices").astype(np.int64)
        for client in clients[(clients < 0) | (clients >= self.num_clients)][:1].tolist():
            check.fail_value("clients", f"to be between 0 and {self.num_clients - 1}", client)
        _check_unique("clients", clients)
        sizes = self.client_sizes[clients]
        offsets = np.append(0, np.cumsum(sizes)).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[clients] - offsets[:-1], sizes)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return FederatedDataset(columns, offsets, self.client_ids[clients])

    def map(self, function: Callable[[dict[str, np.ndarray]], Mapping[str, ArrayLike]]) -> "FederatedDataset":
        """Computes new columns from the old ones; clients stay what they are.

        Args:
          function: takes a dict of arrays with any number of rows and returns a dict of arrays with as many. It sees
            blocks of 65,536 rows, whichever client they belong to, so it must treat rows independently of one another.

        Raises:
          TypeError: if ``function`` cannot be called or does not return a dict of arrays.
          ValueError: if a returned column has another number of rows, or differs between blocks in shape or dtype.

        Example:
          >>> data = FederatedDataset.from_offsets({"x": np.arange(3)}, [0, 2, 3])
          >>> data.map(lambda columns: {"y": 2 * columns["x"]}).columns
          {'y': array([0, 2, 4])}
        """
        check.function("function", function)
        blocks = []
        # A data set without rows is one empty block, from which the new columns' shapes are learned.
        for start in range(0, max(_count_rows(self.columns), 1), ROWS_PER_BLOCK):
            block = {name: column[start : start + ROWS_PER_BLOCK] for name, column in self.columns.items()}
            rows = _count_rows(block)
            result = _as_columns("the result of function", function(block))
            for name, array in result.items():
                if len(array) != rows:
                    expected = f"to have {rows} rows, as function was given"
                    check.fail_value(f"column {name!r} of the result of function", expected, len(array))
            blocks.append(result)
            have, want = _describe_columns(result), _describe_columns(blocks[0])
            if have != want:
                check.fail_value("the result of function", f"to have the columns {want} in every block", have)
        columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        return FederatedDataset(columns, self.offsets, self.client_ids, self.part)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes a new folder of ``.npy`` files and a small JSON; it appears complete or not at all.

        Raises:
          TypeError: if ``directory`` is not a path.
          FileExistsError: if it exists.
          ValueError: if the data set holds only a part of its rows.

        Example:
          >>> data.save("clients")  # doctest: +SKIP
        """
        self.refuse_part()
        target = _as_path(directory)
        if target.exists():
            raise FileExistsError(f"expected directory to be new, got {str(target)!r}, which exists")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        partial.mkdir()
        try:
            for name, file in column_files(self.columns).items():
                np.save(partial / file, self.columns[name])
            write_index(partial, list(self.columns), self.offsets, self.client_ids)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> "FederatedDataset":
        """Opens what ``save`` wrote, memory-mapped and read-only: instant at any size.

        Raises:
          TypeError: if ``directory`` is not a path.
          FileNotFoundError: if the folder or one of its files is missing.
          ValueError: if it was written in a format that this version does not know.

        Example:
          >>> FederatedDataset.open("clients").num_clients  # doctest: +SKIP
          1152
        """
        folder = _as_path(directory)
        if not (folder / _METADATA).is_file():
            raise FileNotFoundError(f"expected a saved FederatedDataset, got {str(folder)!r}, without {_METADATA}")
        metadata = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
        version = metadata.get("format_version")
        if version != FORMAT_VERSION:
            check.fail_value(f"the format version of {str(folder)!r}", f"to be {FORMAT_VERSION}", version)
        names = ["offsets.npy", "client_ids.npy", *column_files(metadata["columns"]).values()]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"expected {str(folder)!r} to be complete, got it without {', '.join(missing)}")
        offsets, client_ids, *columns = (np.load(folder / name, mmap_mode="r") for name in names)
        return cls(dict(zip(metadata["columns"], columns, strict=True)), offsets, client_ids)

    def refuse_part(self) -> None:
        """Raises ``ValueError`` if other processes hold a part of the rows."""
        if self.part is not None:
            part = f"part {self.part.number} of {len(self.part.bounds) - 1}"
            check.fail_value("the data set", "to hold all its rows", part)

    def describe(self) -> str:
        """Returns clients, examples, sizes, and each column's dtype and shape, in one line; ``ftx.data.describe`` tells more.

        Example:
          >>> FederatedDataset.from_offsets({"x": np.zeros((3, 2))}, [0, 2, 3]).describe()
          '2 clients, 3 examples, 1/1.5/2 (min/median/max) a client, x: float64[2]'
        """
        sizes = self.client_sizes
        spread = f"{sizes.min()}/{np.median(sizes):g}/{sizes.max()} (min/median/max) a client, " if len(sizes) else ""
        columns = ", ".join(f"{name}: {kind}" for name, kind in _describe_columns(self.columns).items())
        return f"{self.num_clients} clients, {self.num_examples} examples, {spread}{columns}"

    def __repr__(self) -> str:
        return f"FederatedDataset({self.describe()})"


class FederatedSplits(NamedTuple):
    """A data set as it is trained on and judged.

    train, test: the same clients in the same order, each one's examples split. unseen: clients that take no part in
    training. report: what was read, kept and left out, in counts.
    """

    train: FederatedDataset
    test: FederatedDataset
    unseen: FederatedDataset
    report: dict[str, int]


def write_index(folder: Path, names: list[str], offsets: np.ndarray, client_ids: np.ndarray) -> None:
    """Writes what a saved data set has beside its columns, those of ``names`` in this order."""
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "client_ids.npy", client_ids)
    metadata = {"format_version": FORMAT_VERSION, "columns": names}
    (folder / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")


def _as_path(directory: Any) -> Path:
    return Path(check.instance("directory", directory, (str, os.PathLike), "a path"))


def _as_array(name: str, value: Any, kinds: str, expected: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"expected {name} to be an array of {expected}: {error}") from error
    if array.size == 0 and isinstance(value, (list, tuple)):
        array = array.astype(np.int64)  # NumPy makes [] float
    array = plain_array(name, array)
    if array.dtype.kind not in kinds:
        check.fail_type(name, f"an array of {expected}", value)
    if array.ndim == 0:
        check.fail_type(name, f"an array of {expected} with at least one axis", value)
    return array


def plain_array(name: str, array: np.ndarray) -> np.ndarray:
    """Returns strings of any kind, such as pandas has, as an array of fixed-width ones; objects that are numbers as numbers.

    Errors: ``TypeError`` naming the first entry that is no string where others are.

    Example:
      >>> plain_array("labels", np.array(["cat", "dog"], object)).dtype.str[1:]
      'U3'
    """
    if array.dtype.kind not in "OT" or not array.size:
        return array
    entries = array.ravel().tolist()
    if not any(isinstance(entry, str) for entry in entries):
        try:
            return np.array(array.tolist())
        except ValueError:  # lists of different lengths
            return array
    for number, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise TypeError(f"expected {name} to be of strings, got {entry!r:.60} ({type(entry).__name__}) in entry {number}")
    return np.array(entries).reshape(array.shape)


def _as_vector(name: str, value: Any, kinds: str, expected: str) -> np.ndarray:
    array = _as_array(name, value, kinds, expected)
    if array.ndim != 1:
        check.fail_value(name, "to be one-dimensional", array.shape)
    return array


def _as_columns(name: str, columns: Any) -> dict[str, np.ndarray]:
    check.mapping(name, columns)
    kinds, expected = "biufcU", "numbers or fixed-width strings"
    return {key: _as_array(f"{name}[{key!r}]", value, kinds, expected) for key, value in columns.items()}


def _count_rows(columns: Mapping[str, np.ndarray]) -> int:
    rows = {}
    for name, column in columns.items():
        if not isinstance(column, np.ndarray) or column.ndim == 0:
            check.fail_type(f"columns[{name!r}]", "an array with at least one axis", column)
        rows[name] = len(column)
    if not rows:
        raise ValueError("expected columns to have at least one column, got {}")
    if len(set(rows.values())) > 1:
        check.fail_value("columns", "to have equal numbers of rows", rows)
    return next(iter(rows.values()))


def _check_unique(name: str, values: np.ndarray) -> None:
    unique, counts = np.unique(values, return_counts=True)
    if len(unique) < len(values):
        repeated = unique[np.argmax(counts)].item()
        check.fail_value(name, "to hold each client once", f"{repeated!r} {counts.max()} times")


def column_files(names: Iterable[str]) -> dict[str, str]:
    """The file of each column in a saved data set; they are numbered, since a column may be called anything."""
    return {name: f"column_{index}.npy" for index, name in enumerate(names)}


def describe_array(array: np.ndarray) -> str:
    """The dtype of a column, and the shape of a row unless it is one number."""
    shape = ", ".join(map(str, array.shape[1:]))
    return f"{array.dtype}[{shape}]" if shape else str(array.dtype)


def _describe_columns(columns: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: describe_array(array) for name, array in columns.items()}
