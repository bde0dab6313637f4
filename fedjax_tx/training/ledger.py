"""What a run has cost so far: rounds, client updates, examples, and bytes between server and clients."""

import jax
import jax.numpy as jnp

from fedjax_tx import tree
from fedjax_tx.simulation import RoundFunction, RoundInfo, RoundState
from fedjax_tx.simulation.lanes import batch_shapes, update_shapes
from fedjax_tx.simulation.round import resolve
from fedjax_tx.types import ClientInfo


def new_ledger() -> dict[str, int | float]:
    """Returns the ledger of a run that has not begun."""
    return dict.fromkeys(("rounds", "client_updates", "examples", "steps", "bytes_down", "bytes_up"), 0)


def charge(ledger: dict[str, int | float], infos: list[RoundInfo], bytes_a_client: tuple[int, int]) -> dict[str, int | float]:
    """Returns the ledger with some rounds added; each client of a cohort is charged (bytes down, bytes up).

    One that dropped out received, but sent nothing; what it did until then is not known.
    """
    invited = sum(info.client_ids.size for info in infos)
    updates = invited - sum(info.dropped.size for info in infos)
    return {
        "rounds": ledger["rounds"] + len(infos),
        "client_updates": ledger["client_updates"] + updates,
        "examples": ledger["examples"] + sum(info.num_examples for info in infos),
        "steps": ledger["steps"] + sum(info.num_steps for info in infos),
        "bytes_down": ledger["bytes_down"] + invited * bytes_a_client[0],
        "bytes_up": ledger["bytes_up"] + updates * bytes_a_client[1],
    }


def bytes_a_client(round_fn: RoundFunction, state: RoundState) -> tuple[int, int]:
    """Returns the bytes of one client's broadcasts and messages in a round, as arrays (no headers)."""
    experiment = round_fn.experiment
    algorithm = resolve(experiment.make_algorithm, experiment.hyper)
    down = up = 0
    for number, (a_pass, work) in enumerate(zip(algorithm.passes, round_fn.works, strict=True)):
        broadcast = jax.eval_shape(a_pass.broadcast, state.device.server)
        zero = jnp.int32(0)
        info = ClientInfo(zero, zero, zero, zero, zero, {}, jax.random.key(0), batch_shapes(round_fn.columns, work.batch_size))
        client = tree.first_shapes(state.device.clients)
        update = update_shapes(a_pass, broadcast, client, info)
        shared, encoder = state.device.aggregators[number], tree.first_shapes(state.device.encoders[number])
        key = jax.random.key(0)
        encode = a_pass.aggregator.encode
        message, _, _ = jax.eval_shape(encode, update, jnp.float32(0), shared, encoder, key, key)
        sent, returned = jax.eval_shape(a_pass.travels, broadcast, message)
        down, up = down + tree.num_bytes(sent), up + tree.num_bytes(returned)
    return down, up
