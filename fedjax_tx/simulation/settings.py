"""Whole runs side by side: the compiled programs of a run, for settings that share their schedules.

A setting is a choice of hyperparameters, and maybe of a seed. On each device of a mesh some settings run side by side
(``stacked.py``), in one loop: data, schedules and counts carry no setting axis, so every loop keeps its one trip count, and a
batch is gathered once for all settings. Devices have nothing to say to each other. One setting a device is the plain program of
a single run.

Arrays that differ among settings are [device, ..., setting] in states, and [device, setting] in ``Settings``; in results they are
[setting, ...] over all devices.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from fedjax_tx.simulation.mesh import axis_name
from fedjax_tx.simulation.program import Program
from fedjax_tx.simulation.round import DeviceState, RoundOutput, init_state, run_evaluation_uncompiled, run_rounds_uncompiled
from fedjax_tx.simulation.rounds import hyper_arrays
from fedjax_tx.simulation.stacked import Settings, settings_axes, stack_algorithm
from fedjax_tx.types import Hyper, MakeAlgorithm, Metrics, PyTree, ServerState, Totals


def stack_settings(
    hyper: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], seed: int | Sequence[int], num_devices: int
) -> Settings:
    """Stacks the hyperparameters that ``cells`` change in ``hyper``, an equal share of the cells to each device.

    ``seed`` is one number, or one for each cell.
    """
    names = [name for name in cells[0] if name in hyper]
    varied = hyper_arrays({name: np.reshape([cell[name] for cell in cells], (num_devices, -1)) for name in names})
    shared = hyper_arrays({name: value for name, value in hyper.items() if name not in names})
    seeds = np.asarray(seed, np.uint32)
    return Settings(varied, shared, seeds.reshape(num_devices, -1) if seeds.ndim else seeds)


@partial(jax.jit, static_argnames=("make_algorithm", "num_clients", "batch_size", "num_settings", "mesh"))
def init_settings(
    make_algorithm, num_clients: int, batch_size: int, num_settings: int, mesh: Mesh, settings: Settings, init_params, columns
) -> DeviceState:
    """Makes the states before round 0 of ``num_settings`` settings a device."""

    def on_one(settings, _, init_params, columns):
        own = _own(settings)

        def one(varied, seed):
            return init_state(make_algorithm, num_clients, batch_size, {**own.shared, **varied}, seed, init_params, columns)

        server, key = settings_axes(own.seed)
        in_axes = (0, None if key is None else 0)
        state = jax.vmap(one, in_axes, DeviceState(server, -1, -1, -1), axis_size=num_settings)(own.varied, own.seed)  # type: ignore[arg-type]
        return _map_varied(lambda leaf: leaf[None], state, own)

    return _on_each(on_one, mesh, settings, (), _state_specs(settings, mesh), init_params, columns)


def _run_settings(
    make_algorithm,
    batch_sizes: tuple[int, ...],
    num_settings: int,
    mesh: Mesh,
    settings: Settings,
    first_round,
    num_rounds,
    state: DeviceState,
    columns,
    schedules,
    population,
) -> tuple[DeviceState, RoundOutput]:
    """Runs some rounds of every setting; arguments and result are those of ``run_rounds``, the result with settings first."""

    def on_one(settings, state, first_round, num_rounds, *rest):
        maker, hyper, seed = _one_algorithm(make_algorithm, num_settings, _own(settings))
        state = _map_varied(lambda leaf: _from_device(leaf, num_settings), state, settings)
        state, output = run_rounds_uncompiled(maker, batch_sizes, hyper, seed, first_round, num_rounds, state, *rest)
        state = _map_varied(lambda leaf: _to_device(leaf, num_settings), state, settings)
        if num_settings > 1:  # what the schedule says is the same in all settings
            like = output.totals.weight
            totals = [leaf if leaf.ndim == like.ndim else jnp.broadcast_to(leaf[:, None], like.shape) for leaf in output.totals]
            output = output._replace(totals=Totals(*totals))
        return state, _settings_first(output, num_settings)

    out = _state_specs(settings, mesh), PartitionSpec(axis_name(mesh))
    return _on_each(on_one, mesh, settings, state, out, first_round, num_rounds, columns, schedules, population)


run_settings = Program(
    _run_settings, static_argnames=("make_algorithm", "batch_sizes", "num_settings", "mesh"), donate_argnames="state"
)


def _evaluate_settings(
    make_algorithm,
    batch_size: int,
    population: int,
    num_settings: int,
    mesh: Mesh,
    settings: Settings,
    state: DeviceState,
    rows,
    columns,
    schedule,
) -> Metrics:
    """Scores a data set's clients in every setting: ``{name: (value[setting, slot], weight[setting, slot])}``."""

    def on_one(settings, state, *rest):
        maker, hyper, seed = _one_algorithm(make_algorithm, num_settings, _own(settings))
        state = _map_varied(lambda leaf: _from_device(leaf, num_settings), state, settings)
        metrics = run_evaluation_uncompiled(maker, batch_size, population, hyper, seed, state, *rest)
        return _settings_first(metrics, num_settings)

    return _on_each(on_one, mesh, settings, state, PartitionSpec(axis_name(mesh)), rows, columns, schedule)


evaluate_settings = Program(
    _evaluate_settings, static_argnames=("make_algorithm", "batch_size", "population", "num_settings", "mesh")
)


def _one_algorithm(make_algorithm: MakeAlgorithm, num_settings: int, own: Settings) -> tuple[MakeAlgorithm, Hyper, Any]:
    """The maker, hyperparameters and seed of the one program that runs a device's settings."""
    if num_settings == 1:
        hyper = {**own.shared, **{name: value[0] for name, value in own.varied.items()}}
        return make_algorithm, hyper, own.seed[0] if np.ndim(own.seed) else own.seed
    return lambda hyper: stack_algorithm(make_algorithm, num_settings, Settings(**hyper)), own._asdict(), own.seed


def _from_device(leaf: Array, num_settings: int) -> Array:
    """A leaf of a state on its device: [device = 1, ..., setting] without the device axis, and without that of one setting."""
    return leaf[0, ..., 0] if num_settings == 1 else leaf[0]


def _to_device(leaf: Array, num_settings: int) -> Array:
    return leaf[None, ..., None] if num_settings == 1 else leaf[None]


def _settings_first(results: PyTree, num_settings: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None] if num_settings == 1 else jnp.moveaxis(leaf, -1, 0), results)


def _map_varied(function: Callable[[Array], Array], state: DeviceState, settings: Settings) -> DeviceState:
    """A state with ``function`` of every leaf that differs among the settings: of what is frozen only where seeds do."""
    frozen = state.server.frozen
    mapped = jax.tree.map(function, state._replace(server=state.server._replace(frozen=())))
    frozen = jax.tree.map(function, frozen) if np.ndim(settings.seed) else frozen
    return mapped._replace(server=mapped.server._replace(frozen=frozen))


def _own(settings: Settings) -> Settings:
    """A device's own settings, without the device axis."""
    varied = {name: value[0] for name, value in settings.varied.items()}
    return Settings(varied, settings.shared, settings.seed[0] if np.ndim(settings.seed) else settings.seed)


def _state_specs(settings: Settings, mesh: Mesh) -> DeviceState:
    """How states lie on the devices: each has its own settings; what is frozen is shared where the seed is."""
    split, whole = PartitionSpec(axis_name(mesh)), PartitionSpec()
    return DeviceState(ServerState(split, split if np.ndim(settings.seed) else whole, split, split), split, split, split)  # type: ignore[arg-type]


def _on_each(function: Callable, mesh: Mesh, settings: Settings, state: PyTree, out_specs: PyTree, *whole: PyTree) -> PyTree:
    """``function(settings, state, *whole)`` on each device, with its own settings and states."""
    split, all_of_it = PartitionSpec(axis_name(mesh)), PartitionSpec()
    own = Settings(split, all_of_it, split if np.ndim(settings.seed) else all_of_it)  # type: ignore[arg-type]
    own_state = _state_specs(settings, mesh) if isinstance(state, DeviceState) else all_of_it

    def on_one(settings, state, whole):
        return function(settings, state, *whole)

    mapped = jax.shard_map(on_one, mesh=mesh, in_specs=(own, own_state, all_of_it), out_specs=out_specs, check_vma=False)
    return mapped(settings, state, whole)
