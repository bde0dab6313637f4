"""Padded clients under vmap in plain JAX, as DrJAX maps over clients: all of a cohort make as many steps as its longest.

The clients of a round lie on one axis, shared out over a device a core; steps beyond a client's own are masked. The number of
steps is an argument, so one program serves all rounds.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from models_jax import masked_gradient
from turns import read_arguments, turns
from works import LEARNING_RATE, Work

import fedjax_tx as ftx


def make_round(work: Work):
    """Returns ``round(server, firsts, sizes, steps)``: parameters after a round; each device holds some of the clients."""
    mesh = jax.make_mesh((jax.device_count(),), ("clients",), axis_types=(AxisType.Auto,))
    gradient, size = masked_gradient(work.name, in_loop=True), work.batch_size
    whole = NamedSharding(mesh, PartitionSpec())
    columns = tuple(jax.device_put(column, whole) for column in work.columns.values())

    def train_client(server, columns, first, count, steps):
        def step(number, params):
            place = number * size + jnp.arange(size)
            rows = first + jnp.minimum(place, count - 1)
            slopes = gradient(params, tuple(column[rows] for column in columns), place < count)
            return jax.tree.map(lambda p, slope: p - LEARNING_RATE * slope, params, slopes)

        return jax.lax.fori_loop(0, steps, step, server)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(),) * 2 + (PartitionSpec("clients"),) * 2 + (PartitionSpec(),),
             out_specs=PartitionSpec(), check_vma=False)  # fmt: skip
    def run_round(server, columns, firsts, counts, steps):
        params = jax.vmap(train_client, in_axes=(None, None, 0, 0, None))(server, columns, firsts, counts, steps)
        sums = jax.tree.map(lambda p: jnp.tensordot(counts.astype(p.dtype), p, axes=1), params)
        total = jax.lax.psum(jnp.sum(counts), "clients")
        return jax.tree.map(lambda p: p / total, jax.lax.psum(sums, "clients"))

    return lambda server, firsts, counts, steps: run_round(server, columns, firsts, counts, steps)


def main() -> None:
    ftx.devices.use_all_cores()
    work = read_arguments()
    run_round, server, devices = make_round(work), work.params, jax.device_count()
    for number in turns(("jax", "jaxlib"), lambda: jax.device_get(server)):  # noqa: B023  the latest
        cohort = work.cohorts[number]
        cohort = np.append(cohort, np.full(-len(cohort) % devices, cohort[0]))  # a client more has weight 0
        counts = work.sizes[cohort].astype(np.int32)
        counts[len(work.cohorts[number]) :] = 0
        firsts, steps = work.offsets[cohort].astype(np.int32), np.int32(work.steps(cohort).max())
        server = jax.block_until_ready(run_round(server, firsts, counts, steps))


if __name__ == "__main__":
    main()
