"""Where the data lies: on the devices, or in host memory, from which each call is sent the rows that it uses.

With ``placement="host"`` the columns stay where they are (memory-mapped, say) and may be larger than a device. A call's rows are
gathered into a buffer of fixed capacity, each once however many epochs, passes and rounds use it, and the schedules' ``order``
counts among these: to the compiled program the buffer is a small data set. ``RoundFunction.run`` does this for the next call
while the devices are busy with this one, so there are two buffers at a time.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_tx import check
from fedjax_tx.data import FederatedDataset
from fedjax_tx.data.schedule import Schedule, count_steps
from fedjax_tx.simulation.mesh import aligned_zeros, on_host, owners, place_rows
from fedjax_tx.types import LocalWork

BUFFER_BYTES = 128 * 2**20  # where the rounds of a call may be chosen: of the rows of a call, and there are two calls at a time
_MOST_ROWS = 2**31 - 1  # on a device, rows are numbered by int32


def place_columns(dataset: FederatedDataset, placement: str, mesh: Mesh | None) -> dict:
    """Returns the columns on each device of the mesh, or for ``placement="host"`` as they are.

    Over several processes, a device holds the rows of its own process only.

    Errors: ``ValueError`` if they do not fit into the memory that is free on a device; for ``"host"`` over several processes.
    """
    owned = owners(dataset, mesh)
    if placement == "host":
        if owned is not None:
            check.fail_value("placement", "'device' where several processes compute together", placement)
        return dict(dataset.columns)
    rows = dataset.num_examples if owned is None else int(np.diff(dataset.offsets[owned.bounds]).max())
    needed, free = rows * row_bytes(dataset.columns), free_bytes(_copies(mesh))
    if needed > free:
        raise ValueError(
            f'expected data of {needed} bytes to fit into the {free} bytes that are free on a device; with placement="host" it '
            "stays in host memory, and each call is sent the rows that it uses"
        )
    if rows > _MOST_ROWS:
        raise ValueError(f'expected at most {_MOST_ROWS} rows with placement="device", got {rows}')
    return place_rows(dataset, mesh)


def row_bytes(columns: Mapping[str, np.ndarray]) -> int:
    """Returns the bytes that a row of all columns takes on a device."""
    return sum(int(np.prod(c.shape[1:])) * jax.dtypes.canonicalize_dtype(c.dtype).itemsize for c in columns.values())


def rows_that_fit(columns: Mapping[str, np.ndarray]) -> int:
    """Returns the rows that a buffer of ``BUFFER_BYTES`` holds, at least one."""
    return max(1, BUFFER_BYTES // max(1, row_bytes(columns)))


def rows_of_a_round(sizes: np.ndarray, works: Sequence[LocalWork], max_clients: int) -> int:
    """Returns the most distinct rows that a round of ``max_clients`` clients uses, over all its passes."""
    used = np.minimum(sizes, sum(count_steps(sizes, work)[1] for work in works))
    return max(1, int(np.sort(used)[::-1][:max_clients].sum()))


def refuse_buffers(columns: Mapping[str, np.ndarray], num_rows: int, mesh: Mesh | None) -> None:
    """Refuses calls whose two buffers do not fit into the memory that is free on a device."""
    needed, free = 2 * num_rows * row_bytes(columns), free_bytes(_copies(mesh))
    if needed > free:
        raise ValueError(
            f"expected the rows of two calls, at most {needed} bytes, to fit into the {free} bytes that are free on a device; "
            "fewer rounds_per_call or smaller cohorts need less"
        )


def gather_rows(
    columns: Mapping[str, np.ndarray], schedules: tuple[list[Schedule], ...], num_rows: int
) -> tuple[dict[str, np.ndarray], tuple[list[Schedule], ...]]:
    """Returns the rows that the schedules use, in new arrays of ``num_rows`` rows, and schedules that count among these."""
    used = [[one.order[: rows_in_use(one)] for one in planned] for planned in schedules]
    rows, position = np.unique(np.concatenate([order for planned in used for order in planned]), return_inverse=True)
    buffers = {name: pad(np.asarray(column)[rows], num_rows) for name, column in columns.items()}
    ends = np.cumsum([order.size for planned in used for order in planned])
    positions = iter(np.split(position.astype(np.int32), ends[:-1]))
    return buffers, tuple([_with_order(one, next(positions)) for one in planned] for planned in schedules)


def _with_order(schedule: Schedule, position: np.ndarray) -> Schedule:
    order = np.zeros(schedule.order.size, np.int32)
    order[: position.size] = position
    return schedule._replace(order=order)


def rows_in_use(schedule: Schedule) -> int:
    """Returns how many entries of ``order`` a schedule uses."""
    return int((schedule.first + schedule.count).max())


def pad(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns a new array of ``num_rows`` rows: these, and zeros behind."""
    # Never one that was used before: a device may still be reading it, and on CPU it may itself be what the program reads.
    out = aligned_zeros((num_rows, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out


def _copies(mesh: Mesh | None) -> int:
    """In how many places of one memory the data of this process lies: once on a CPU, however many devices it has."""
    return 1 if mesh is None or on_host(mesh) else mesh.local_mesh.size


def free_bytes(num_devices: int = 1) -> int:
    """Returns the memory free on the first device; on CPU, a device's share of what the operating system has available."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return _host_bytes() // num_devices


def _host_bytes() -> int:
    """What programs can still get, files kept in memory for later not counted as taken (where the system tells)."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
