"""A mesh of devices that share a round's lanes.

The whole program of a call runs on every device of the mesh (``jax.shard_map``), with the same state, data and keys. Only the
schedule differs: each device has its own lanes, clients and number of ticks, so none waits for another within a pass. After a
pass's loop, one ``psum`` brings together what they collected:

* sums are added; integers keep their type, so their sums are those of one device, bit for bit;
* rows (weights, states, metrics, the summands of a stacked reduction) are copied from the device that served the slot: each
  device gives the bits of its own rows and zeros elsewhere. A gather would hold every device's rows before choosing.

What follows (decode, combine) each device computes alike.

A mesh may span several processes (``jax.distributed``). Then each device holds the rows of its own process's clients only, and
trains only those clients. All else is as above: each process makes the same plan from the clients' ids and sizes, so they talk to
one another nowhere but in that sum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Bool

from fedjax_tx import check
from fedjax_tx.data import FederatedDataset
from fedjax_tx.data.parts import Owners, part_bounds
from fedjax_tx.data.schedule import PER_DEVICE, Schedule
from fedjax_tx.types import Execution, PyTree

_ALIGNMENT = 64  # bytes, as JAX asks for on a CPU
_LARGE = 2**16  # bytes: below, a copy a device costs less than looking


def resolve_mesh(execution: Execution) -> Mesh | None:
    """Returns the mesh of an execution, None for one device; ``"auto"`` is all devices of all processes, if there are several.

    Errors: ``ValueError`` if a given mesh spans some of the processes, but not all.
    """
    if execution.debug:
        return None
    if isinstance(execution.mesh, Mesh):
        # Not its axis types: on an axis of type Explicit, arrays carry their placement in their types.
        mesh = Mesh(execution.mesh.devices, execution.mesh.axis_names)
        spanned = {device.process_index for device in mesh.devices.flat}
        if spanned not in ({jax.process_index()}, set(range(jax.process_count()))):
            check.fail_value("mesh", f"to have devices of this process only, or of all {jax.process_count()}", sorted(spanned))
        return mesh
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("device",)) if execution.mesh == "auto" and len(devices) > 1 else None


def axis_name(mesh: Mesh | None) -> Any:
    """Returns the name of the mesh's axis, None without a mesh."""
    return None if mesh is None else mesh.axis_names[0]


def owners(dataset: FederatedDataset, mesh: Mesh | None) -> Owners | None:
    """Returns which process of the mesh holds which clients; None where one process holds them all.

    Errors: ``ValueError`` if the data set holds a part, but not the part of this process in a run of as many processes.
    """
    part, count = dataset.part, jax.process_count()
    together = count if mesh is not None and mesh.is_multi_process else 1
    if part is not None and (part.number, len(part.bounds) - 1) != (jax.process_index() % together, together):
        expected = f"to hold all its rows, or part {jax.process_index() % together} of {together}, as this process takes part"
        check.fail_value("the data set", expected, f"part {part.number} of {len(part.bounds) - 1}")
    if mesh is None or not mesh.is_multi_process:
        return None
    devices = np.array([device.process_index for device in mesh.devices.flat])
    return Owners(part_bounds(dataset.offsets, count) if part is None else part.bounds, devices)


def place(values: PyTree, mesh: Mesh | None) -> PyTree:
    """Returns arrays that are on every device of the mesh (on the default device without one)."""
    if mesh is None:
        return jax.device_put(values)
    whole = NamedSharding(mesh, PartitionSpec())
    if not mesh.is_multi_process:
        return jax.device_put(jax.tree.map(_aligned, values) if on_host(mesh) else values, whole)
    return jax.tree.map(lambda leaf: put(leaf, whole), values)


def on_host(mesh: Mesh) -> bool:
    """Whether devices read host memory in place: those of a CPU do, so data that lies right is there once for all of them."""
    return mesh.devices.flat[0].platform == "cpu"


def aligned_zeros(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Returns zeros that a CPU's devices take as they are, without a copy: at an address that is a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)


def _aligned(leaf: Any) -> Any:
    """A large array as one that devices of a CPU share; otherwise each would make a copy of its own."""
    if not isinstance(leaf, np.ndarray) or leaf.nbytes < _LARGE:
        return leaf
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if dtype == leaf.dtype and leaf.flags.c_contiguous and leaf.ctypes.data % _ALIGNMENT == 0:
        return leaf
    shared = aligned_zeros(leaf.shape, dtype)
    shared[...] = leaf
    return shared


def put(leaf: Any, sharding: Sharding) -> Array:
    """Returns a value that is the same in all processes as one array of all their devices; none is sent to another."""
    if isinstance(leaf, jax.Array):
        if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def place_rows(dataset: FederatedDataset, mesh: Mesh | None) -> dict[str, Array]:
    """Returns a data set's columns where ``run_on_each`` takes them: all rows on every device of the mesh.

    Over several processes they are [device, row, ...], with the rows of a device's own process, padded to those of the largest.
    """
    owned = owners(dataset, mesh)
    if owned is None or mesh is None:
        return place(dict(dataset.columns), mesh)
    ends = dataset.offsets[owned.bounds]
    held, own = dataset.rows_held[0], ends[jax.process_index() : jax.process_index() + 2]
    sharding, capacity = NamedSharding(mesh, PartitionSpec(axis_name(mesh))), max(1, int(np.diff(ends).max()))

    def put_own(column):
        rows = aligned_zeros((1, capacity, *column.shape[1:]), jax.dtypes.canonicalize_dtype(column.dtype))
        rows[0, : own[1] - own[0]] = column[own[0] - held : own[1] - held]
        shards = [jax.device_put(rows, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays((mesh.size, *rows.shape[1:]), sharding, shards)

    return {name: put_own(column) for name, column in dataset.columns.items()}


def run_on_each(
    mesh: Mesh | None,
    function: Callable[..., PyTree],
    schedules: PyTree,
    columns: dict[str, Array],
    *arrays: PyTree,
    device_axis: int = 0,
):
    """Returns ``function(schedules, columns, *arrays)``, run on each device of the mesh with its own part of the schedules.

    Args:
      mesh: None for a plain call. schedules: a pytree of schedules. columns: as ``place_rows`` gives them. arrays: what every
        device has alike.
      device_axis: which axis of the schedules' ``PER_DEVICE`` fields is that of devices.
    """
    if mesh is None:
        return function(schedules, columns, *arrays)
    split = PartitionSpec(*[None] * device_axis, axis_name(mesh))
    whole = PartitionSpec()
    spec = Schedule._make(split if name in PER_DEVICE else whole for name in Schedule._fields)

    def is_schedule(value):
        return isinstance(value, Schedule)

    def own(schedule):
        parts = {name: getattr(schedule, name) for name in PER_DEVICE}
        return schedule._replace(**jax.tree.map(lambda part: part.squeeze(device_axis), parts))

    def on_one(schedules, columns, arrays):
        if mesh.is_multi_process:
            columns = {name: column.squeeze(0) for name, column in columns.items()}
        return function(jax.tree.map(own, schedules, is_leaf=is_schedule), columns, *arrays)

    rows = PartitionSpec(axis_name(mesh)) if mesh.is_multi_process else whole
    specs = jax.tree.map(lambda _: spec, schedules, is_leaf=is_schedule)
    # Which values are alike on all devices is not tracked: code for one client knows of no mesh.
    mapped = jax.shard_map(on_one, mesh=mesh, in_specs=(specs, rows, whole), out_specs=whole, check_vma=False)
    return mapped(schedules, columns, arrays)


def join(sums: PyTree, rows: PyTree, served: Bool[Array, " slot"], axis: Any) -> tuple[PyTree, PyTree]:
    """Returns (the devices' sums added, each row from the device that ``served`` its slot), alike on all devices.

    A row that no device served is zero.
    """

    def own(leaf):
        bits = _to_bits(leaf)
        return jnp.where(served.reshape(-1, *[1] * (bits.ndim - 1)), bits, jnp.zeros_like(bits))

    sums, bits = lax.psum((sums, jax.tree.map(own, rows)), axis)
    return sums, jax.tree.map(_from_bits, bits, rows)


def _to_bits(leaf: Array) -> Array:
    """The leaf as integers of its width, which a sum with zeros leaves as they are (-0.0 and NaN too)."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint8)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
    return leaf


def _from_bits(bits: Array, like: Array) -> Array:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(like))
    if jnp.issubdtype(like.dtype, jnp.floating):
        return lax.bitcast_convert_type(bits, like.dtype)
    return bits.astype(like.dtype)
