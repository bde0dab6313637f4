"""What clients will send, tried out before anything compiles: an aggregator refuses settings that don't fit the updates.

Hyperparameters are traced in a compiled round and have no value to look at there. Here they are plain numbers, and of the rest
only shapes are known: nothing is computed.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tx import tree
from fedjax_tx.simulation.experiment import Experiment
from fedjax_tx.simulation.lanes import batch_shapes, update_shapes
from fedjax_tx.simulation.round import DeviceState, pass_work, resolve
from fedjax_tx.types import Aggregator, ClientInfo, Hyper, LocalWork, Pass, PyTree


def refuse_settings(experiment: Experiment, state: DeviceState, settings: Sequence[Hyper]) -> None:
    """Lets each pass's aggregator encode an update, in each setting of the hyperparameters; ``state`` are shapes of the first.

    Errors: what an aggregator raises, as a rule a ``ValueError``, of numbers that can't work.
    """
    # Numbers of JAX would be traced here too.
    plain = [{name: np.asarray(value).item() for name, value in hyper.items()} for hyper in settings]
    algorithms = [resolve(experiment.make_algorithm, hyper) for hyper in plain]
    passes = [(a_pass, pass_work(a_pass, experiment.local)) for a_pass in algorithms[0].passes]
    updates = [_update_shapes(experiment, *one, state) for one in passes]  # alike in all settings
    encoders = [tree.first_shapes(encoder) for encoder in state.encoders]
    for algorithm in algorithms:
        for a_pass, *given in zip(algorithm.passes, updates, state.aggregators, encoders, strict=True):
            _try_encoder(a_pass.aggregator, *given)


def _update_shapes(experiment: Experiment, a_pass: Pass, work: LocalWork, state: DeviceState) -> PyTree:
    batch = batch_shapes(dict(experiment.train.columns), work.batch_size)

    def one_client(server, client):
        zero = jnp.int32(0)
        info = ClientInfo(zero, zero, zero, zero, zero, {}, jax.random.key(0), batch)
        return tree.zeros(update_shapes(a_pass, a_pass.broadcast(server), client, info))

    return jax.eval_shape(one_client, state.server, tree.first_shapes(state.clients))


def _try_encoder(aggregator: Aggregator, update: PyTree, shared: PyTree, client_state: PyTree) -> None:
    def encode(update, shared, client_state):
        key = jax.random.key(0)
        return aggregator.encode(update, jnp.float32(1), shared, client_state, key, key)

    jax.eval_shape(encode, update, shared, client_state)
