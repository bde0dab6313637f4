"""Several processes as one computation: joining JAX's distributed runtime, and what the processes agree on.

Every process runs the same program, and each call of it takes all of them. A decision of the host that rests on what only one of
them sees (a clock, a signal, a file) would part them for ever, so such decisions are made together, by the functions below
``join``. With one process they do nothing.
"""

import pickle
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the client of JAX's coordination service has no public name
from jax.experimental import multihost_utils

from fedjax_tx import check

__all__ = ["join"]

_FAILED = "fedjax_tx/failed/"
_PIECE = 2**20  # lengths travel as two numbers, as JAX's integers have 32 bits


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = 30,
) -> None:
    """Makes this process one of several that compute together.

    Called first thing in a script, before JAX starts, in each of them (``python -m fedjax_tx.launch`` does it for a script).
    Without arguments JAX finds the others itself: under SLURM, Open MPI and Kubernetes, and on TPU pods.

    Args:
      coordinator: ``"HOST:PORT"`` of process 0, at which it will listen and which all others can reach.
      num_processes: how many there are. process_id: which of them this is, from 0. All three are given, or none.
      timeout_seconds: how long a process may be silent until it counts as dead, which ends the others.

    Errors: ``ValueError`` if the address has no port, the id is out of range or there is nothing to find the others by;
    ``RuntimeError`` if JAX has started.

    Example:
      >>> join("127.0.0.1:12345", num_processes=2, process_id=0)  # doctest: +SKIP
    """
    check.integer("timeout_seconds", timeout_seconds, low=1)
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        check.fail_value("coordinator, num_processes and process_id", "to be given together, or none of them", given)
    if missing:
        _join_found(timeout_seconds)
    else:
        host, port = read_address("coordinator", coordinator)
        count = check.integer("num_processes", num_processes, low=1)
        number = check.integer("process_id", process_id, low=0, high=count - 1)
        jax.distributed.initialize(
            coordinator,
            count,
            number,
            heartbeat_timeout_seconds=timeout_seconds,
            shutdown_timeout_seconds=timeout_seconds,
            coordinator_bind_address=coordinator if host == "127.0.0.1" else f"[::]:{port}",
        )


def _join_found(timeout_seconds: int) -> None:
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=timeout_seconds, shutdown_timeout_seconds=timeout_seconds)
    except ValueError as error:  # what JAX raises where it finds no cluster
        raise ValueError(
            "expected coordinator, num_processes and process_id, or a place where JAX finds other processes itself (SLURM, Open "
            f"MPI, Kubernetes, a TPU pod), got neither: {error}"
        ) from error


def read_address(name: str, address: Any) -> tuple[str, int]:
    """Returns host and port of ``"HOST:PORT"``."""
    check.instance(name, address, str, "a string HOST:PORT")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        check.fail_value(name, "to be HOST:PORT, such as '10.0.0.1:1234'", address)
    return host, int(port)


def who() -> tuple[int, int]:
    """Returns (this process's number, how many there are) as ``join`` knows them; unlike asking JAX, it starts no backend."""
    return distributed.global_state.process_id, distributed.global_state.num_processes


def _client() -> Any:
    return distributed.global_state.client


def announce_failure(why: str) -> None:
    """Tells the other processes that this one fails, and why."""
    _client().key_value_set(f"{_FAILED}{who()[0]}", why, allow_overwrite=True)


def announced_failures() -> dict[int, str]:
    """Returns why processes fail, of those that announced it.

    Errors: ``jax.errors.JaxRuntimeError`` if process 0, which keeps the announcements, is out of reach.
    """
    told = _client().key_value_dir_get(_FAILED)
    return {int(key.rpartition("/")[2]): why for key, why in told}


def is_first() -> bool:
    """Whether this process is the one that writes files: number 0."""
    return jax.process_index() == 0


def largest(*numbers: float) -> list[float]:
    """Returns the largest that any process gives, of each number, in float32.

    Example:
      >>> largest(0.5, True)
      [0.5, True]
    """
    if jax.process_count() == 1:
        return list(numbers)
    return multihost_utils.process_allgather(np.array(numbers, np.float32)).max(axis=0).tolist()


def gather(payload: bytes) -> list[bytes]:
    """Returns what each process gives, in their order.

    Example:
      >>> gather(b"sizes")
      [b'sizes']
    """
    if jax.process_count() == 1:
        return [payload]
    lengths = _lengths(payload)
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(payload)] = np.frombuffer(payload, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def from_first(function: Callable[[], Any]) -> Any:
    """Returns ``function()`` as process 0 computes it, which alone calls it; it may read files that others don't see.

    Errors: what it raises at process 0; ``RuntimeError`` with its message at the others.

    Example:
      >>> from_first(lambda: {"num_lanes": 4})
      {'num_lanes': 4}
    """
    if jax.process_count() == 1:
        return function()
    payload, raised = b"", None
    if is_first():
        try:
            payload = pickle.dumps((function(), ""))
        except Exception as error:  # whatever it is, the others must hear of it before it goes on its way
            payload, raised = pickle.dumps((None, f"{type(error).__name__}: {error}")), error
    value, failure = pickle.loads(_broadcast(payload))
    if raised is not None:
        raise raised
    if failure:
        raise RuntimeError(f"process 0 of {jax.process_count()} could not go on: {failure}")
    return value


def check_same(name: str, facts: dict[str, Any]) -> None:
    """Refuses processes that were given different things: ``ValueError`` names the process and the fields, at each of them."""
    if jax.process_count() == 1:
        return
    first, *others = [pickle.loads(one) for one in gather(pickle.dumps(facts))]
    for number, other in enumerate(others, 1):
        fields = [field for field in sorted({*first, *other}) if first.get(field) != other.get(field)]
        if fields:
            listed = "; ".join(
                f"{field} is {first.get(field)!r} at process 0 and {other.get(field)!r} there" for field in fields[:5]
            )
            check.fail_value(name, "to be the same in all processes", f"another at process {number}: {listed}")


def _broadcast(payload: bytes) -> bytes:
    """What process 0 gives."""
    padded = np.zeros(_lengths(payload)[0], np.uint8)
    if is_first():
        padded[:] = np.frombuffer(payload, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes()


def _lengths(payload: bytes) -> list[int]:
    rows = multihost_utils.process_allgather(np.array(divmod(len(payload), _PIECE), np.int32))
    return [int(pieces) * _PIECE + int(rest) for pieces, rest in rows]
