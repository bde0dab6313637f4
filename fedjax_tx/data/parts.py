"""Data sets of which each process holds a part: all clients' ids and sizes, but the rows of its own clients only.

Parts are ranges of clients, so a part's rows are a range of rows: a view of a memory-mapped column, of which nothing else is
read.
"""

import io
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from fedjax_tx import check, processes
from fedjax_tx.data.federated import FederatedDataset, Part


class Owners(NamedTuple):
    """Which process holds which client, and which devices are its own.

    bounds [process + 1]: process p holds the clients bounds[p] to bounds[p + 1]. devices [device]: the process of each device.
    """

    bounds: np.ndarray
    devices: np.ndarray

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Returns the process that holds each client."""
        return np.searchsorted(self.bounds, ids, side="right") - 1

    def first_rows(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns where each client begins among the rows of its process."""
        return offsets[ids] - offsets[self.bounds[self.of(ids)]]

    def fewest_devices(self) -> int:
        """Returns the number of devices of the process that has fewest."""
        return int(np.bincount(self.devices, minlength=len(self.bounds) - 1).min())


def part_bounds(offsets: np.ndarray, num_parts: int) -> np.ndarray:
    """Returns the clients at which ``num_parts`` parts of about equal numbers of examples begin, and their end.

    Example:
      >>> part_bounds(np.array([0, 5, 6, 7, 10]), 2).tolist()
      [0, 1, 4]
    """
    ideal = offsets[-1] * np.arange(1, num_parts) / num_parts
    after = np.searchsorted(offsets, ideal)  # the first client that begins there or later
    nearer = ideal - offsets[np.maximum(after - 1, 0)] < offsets[after] - ideal
    return np.concatenate([[0], np.maximum(after - nearer, 0), [len(offsets) - 1]]).astype(np.int64)


def take_part(data: FederatedDataset, index: int, num_parts: int) -> FederatedDataset:
    """Returns a data set that knows all clients, but holds only the rows of one part of them.

    The parts are ranges of clients with about equal numbers of examples. A run of several processes does this itself with a
    whole data set; done beforehand, it keeps the rows of others out of host memory too (columns in memory are copied).

    Args:
      data: a whole data set. index: of the part, from 0. num_parts: how many parts there are.

    Errors: ``ValueError`` if the index is out of range, or the data set holds a part only.

    Example:
      >>> data = FederatedDataset.from_offsets({"x": np.arange(5)}, [0, 2, 3, 5])
      >>> part = take_part(data, 1, 2)
      >>> part.num_clients, part.columns["x"].tolist()
      (3, [3, 4])
    """
    check.instance("data", data, FederatedDataset, "a FederatedDataset")
    check.integer("num_parts", num_parts, low=1)
    check.integer("index", index, low=0, high=num_parts - 1)
    data.refuse_part()
    bounds = part_bounds(data.offsets, num_parts)
    start, stop = (int(data.offsets[bound]) for bound in bounds[index : index + 2])
    columns = {name: _rows(column, start, stop) for name, column in data.columns.items()}
    return replace(data, columns=columns, part=Part(index, bounds))


def gather_parts(data: FederatedDataset) -> FederatedDataset:
    """Returns the data set of all processes' clients, of which this process holds those in ``data``; all processes call it.

    For data that is nowhere together: only the clients' ids and sizes are exchanged. Clients are in the order of processes.

    Errors: ``ValueError`` if a client is at two processes, or the columns differ among them; each process raises it.

    Example:
      >>> data = FederatedDataset.from_offsets({"x": np.arange(3)}, [0, 2, 3])
      >>> gather_parts(data).part.bounds.tolist()  # one process has it all
      [0, 2]
    """
    check.instance("data", data, FederatedDataset, "a FederatedDataset")
    data.refuse_part()
    kinds = {name: f"{column.dtype}{list(column.shape[1:])}" for name, column in sorted(data.columns.items())}
    processes.check_same("the columns of data", kinds)
    told = io.BytesIO()
    np.savez(told, ids=data.client_ids, sizes=data.client_sizes)
    all_ids, all_sizes = [], []
    for payload in processes.gather(told.getvalue()):
        with np.load(io.BytesIO(payload)) as arrays:
            all_ids.append(arrays["ids"])
            all_sizes.append(arrays["sizes"])
    bounds = np.cumsum([0, *map(len, all_ids)]).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(all_sizes))]).astype(np.int64)
    ids = np.concatenate(all_ids)
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        check.fail_value("data", "to hold clients that no other process holds", unique[counts > 1][:5].tolist())
    return FederatedDataset(data.columns, offsets, ids, Part(jax.process_index(), bounds))


def _rows(column: np.ndarray, start: int, stop: int) -> np.ndarray:
    """A range of rows: a view of a file, or a copy, so that the whole column can go."""
    return column[start:stop] if isinstance(column, np.memmap) else column[start:stop].copy()
