"""Exact sums: updates as fixed-point integers, added modulo 2^32, as secure aggregation needs them (arXiv 1611.04482)."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tx import check
from fedjax_tx.aggregation.chain import stage
from fedjax_tx.types import Aggregator, Linear

_HALF = 2**31


def integer_mean(max_value: float, resolution: float, max_clients: int) -> Aggregator:
    """The mean of updates sent as 32-bit integers: the sum is exact, whatever the order, and can be hidden by masks.

    A coordinate is clipped to +-max_value and rounded to a multiple of ``resolution``; integers are summed modulo 2^32 and read
    back as signed. The sum can't wrap around: max_clients * round(max_value / resolution) < 2^31 is checked here. Each client
    counts once, whatever its weight. A coordinate that is not a number is sent as 0.

    Args:
      max_value: > 0. resolution: > 0, the unit of the integers. max_clients: the most clients of a round.

    Errors: ``ValueError`` if a sum of max_clients could overflow; where it is used, if a round can have more clients.

    Example:
      >>> import fedjax_tx as ftx
      >>> exact = integer_mean(max_value=4.0, resolution=0.25, max_clients=10)
      >>> update, _, _ = ftx.aggregation.aggregate(exact, {"w": jnp.array([1.1, 2.0])}, jnp.ones(2))
      >>> float(update["w"])
      1.5
    """
    check.number("max_value", max_value, above=0)
    check.number("resolution", resolution, above=0)
    check.integer("max_clients", max_clients, low=1)
    largest = round(max_value / resolution)
    if max_clients * largest >= _HALF:
        expected = f"at most {(_HALF - 1) // max(largest, 1)} for max_value / resolution = {largest}, lest a sum reach 2^31"
        check.fail_value("max_clients", expected, max_clients)

    limit = np.float32(largest)
    if int(limit) > largest:  # float32 has not every integer: clip to the one below
        limit = np.nextafter(limit, np.float32(0))

    def encode(update, weight, shared, client_state, client_key, round_key):
        def fixed_point(leaf):
            units = jnp.round(jnp.nan_to_num(leaf.astype(jnp.float32) / resolution, nan=0.0))
            return jnp.clip(units, -limit, limit).astype(jnp.int32).astype(jnp.uint32)

        return jax.tree.map(fixed_point, update), (weight > 0).astype(jnp.float32), client_state

    def decode(reduced, totals, state, key):
        unit = resolution / jnp.maximum(totals.clients, 1)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.int32).astype(jnp.float32) * unit, reduced), state, {}

    name = f"integer_mean({max_value}, {resolution}, {max_clients})"
    return stage(name, encode=encode, reduce=Linear(), decode=decode, sums_only=True, max_clients=max_clients)
