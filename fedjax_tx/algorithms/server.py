"""What servers share: the state made from a task, the broadcast of its parameters, and steps of an optax optimiser."""

from collections.abc import Callable

import jax
import optax

from fedjax_tx import check, tree
from fedjax_tx.clients import ModelBroadcast
from fedjax_tx.types import PyTree, ServerState, Task


def init_server(task: Task, optimizer: optax.GradientTransformation) -> Callable[..., ServerState]:
    """Returns ``init(key, init_params) -> ServerState``.

    ``init_params`` is None (draw them from the task), the trainable tree where the task freezes nothing, or where it does the
    pair (trainable, frozen), or both merged into one tree; it must match the task's shapes and dtypes.
    """

    def init(key, init_params=None):
        trainable, frozen = task.init(key)
        if init_params is not None:
            trainable, frozen = _given_parts(init_params, trainable, frozen)
        return ServerState(trainable, frozen, optimizer.init(trainable))

    return init


def _given_parts(init_params: PyTree, trainable: PyTree, frozen: PyTree) -> tuple[PyTree, PyTree]:
    """Returns ``init_params`` as (trainable, frozen) of the task's structure."""
    if not jax.tree.leaves(frozen):
        check.same_tree("init_params", init_params, trainable)
        return init_params, frozen
    if isinstance(init_params, dict):
        whole = tree.join(trainable, frozen)
        check.same_tree("init_params", init_params, whole)
        return tree.partition(init_params, tree.paths(trainable).__contains__)
    check.same_tree("init_params", init_params, (trainable, frozen))
    return init_params


def broadcast_model(state: ServerState) -> ModelBroadcast:
    """Returns what clients of a plain method receive: the parameters, trainable and frozen."""
    return ModelBroadcast(state.params, state.frozen)


def optax_server(optimizer: optax.GradientTransformation) -> Callable[..., tuple[ServerState, dict]]:
    """Returns ``combine``: one step of any optax optimiser that takes the aggregate's ``delta`` for the gradient.

    delta is server - client, so ``optax.sgd(1.0)`` moves to the clients' average (FedAvg), ``optax.sgd(1.0, momentum=0.9)`` is
    FedAvgM (arXiv 1909.06335), and adaptive optimisers are those of FedOpt but for their first steps (see ``fed_opt.py``).

    Example:
      >>> import jax.numpy as jnp
      >>> state = ServerState({"w": jnp.array(1.0)}, (), optax.sgd(1.0).init({"w": jnp.array(1.0)}))
      >>> state, info = optax_server(optax.sgd(1.0))(state, {"delta": {"w": jnp.array(0.25)}}, None)
      >>> float(state.params["w"])
      0.75
    """
    check.instance("optimizer", optimizer, optax.GradientTransformation, "an optax optimiser")

    def combine(state: ServerState, aggregate: PyTree, key) -> tuple[ServerState, dict]:
        # Sums come in float32: the optimiser's state keeps the parameters' own dtypes.
        delta = tree.cast(aggregate["delta"], state.params)
        updates, optimizer_state = optimizer.update(delta, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        info = {"update_norm": tree.norm(delta)}
        return state._replace(params=params, optimizer=optimizer_state), info

    return combine
