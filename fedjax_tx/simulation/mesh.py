"""A mesh of devices that share a round's lanes.

The whole program of a call runs on every device of the mesh (``jax.shard_map``), with the same state, data and keys. Only the
schedule differs: each device has its own lanes, clients and number of ticks, so none waits for another within a pass. After a
pass's loop, one ``psum`` brings together what they collected:

* sums are added; integers keep their type, so their sums are those of one device, bit for bit;
* rows (weights, states, metrics, the summands of a stacked reduction) are copied from the device that served the slot: each
  device gives the bits of its own rows and zeros elsewhere. A gather would hold every device's rows before choosing.

What follows (decode, combine) each device computes alike.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from fedjax_tx.data.schedule import PER_DEVICE, Schedule
from fedjax_tx.types import Execution, PyTree


def resolve_mesh(execution: Execution) -> Mesh | None:
    """Returns the mesh of an execution, None for one device; ``"auto"`` is all local devices, if there are several."""
    if execution.debug:
        return None
    if isinstance(execution.mesh, Mesh):
        # Not its axis types: on an axis of type Explicit, arrays carry their placement in their types.
        return Mesh(execution.mesh.devices, execution.mesh.axis_names)
    devices = jax.local_devices()
    return Mesh(np.array(devices), ("device",)) if execution.mesh == "auto" and len(devices) > 1 else None


def axis_name(mesh: Mesh | None) -> Any:
    """Returns the name of the mesh's axis, None without a mesh."""
    return None if mesh is None else mesh.axis_names[0]


def place(values: PyTree, mesh: Mesh | None) -> PyTree:
    """Returns arrays that are on every device of the mesh (on the default device without one)."""
    return jax.device_put(values, None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def run_on_each(mesh: Mesh | None, function: Callable[..., PyTree], schedules: PyTree, *arrays: PyTree, device_axis: int = 0):
    """Returns ``function(schedules, *arrays)``, run on each device of the mesh with its own part of the schedules.

    Args:
      mesh: None for a plain call. schedules: a pytree of schedules. arrays: what every device has alike.
      device_axis: which axis of the schedules' ``PER_DEVICE`` fields is that of devices.
    """
    if mesh is None:
        return function(schedules, *arrays)
    split = PartitionSpec(*[None] * device_axis, axis_name(mesh))
    whole = PartitionSpec()
    spec = Schedule._make(split if name in PER_DEVICE else whole for name in Schedule._fields)

    def is_schedule(value):
        return isinstance(value, Schedule)

    def own(schedule):
        return schedule._replace(**{name: getattr(schedule, name).squeeze(device_axis) for name in PER_DEVICE})

    def on_one(schedules, arrays):
        return function(jax.tree.map(own, schedules, is_leaf=is_schedule), *arrays)

    specs = jax.tree.map(lambda _: spec, schedules, is_leaf=is_schedule)
    # Which values are alike on all devices is not tracked: code for one client knows of no mesh.
    mapped = jax.shard_map(on_one, mesh=mesh, in_specs=(specs, whole), out_specs=whole, check_vma=False)
    return mapped(schedules, arrays)


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
