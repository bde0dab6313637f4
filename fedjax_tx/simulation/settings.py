"""Whole runs side by side: the compiled programs of a run, vmapped over settings that share their schedules.

A setting is a choice of hyperparameters, and maybe of a seed. Data, schedules and counts carry no setting axis: every loop keeps
its one trip count, and a batch is gathered once for all settings. What clients only read (``frozen``) is kept once where the
settings share a seed, and so is the randomness.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_tx.simulation.round import DeviceState, RoundOutput, init_state, run_evaluation, run_rounds
from fedjax_tx.simulation.rounds import hyper_arrays
from fedjax_tx.types import Metrics, PyTree, ServerState


class Settings(NamedTuple):
    """What differs among runs side by side, and what they share of the same kind.

    varied: ``{name: value[setting]}``. shared: ``{name: value}``. seed: one for all, or [setting].
    """

    varied: Mapping[str, Any]
    shared: Mapping[str, Any]
    seed: Any


def stack_settings(hyper: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], seed: int | Sequence[int]) -> Settings:
    """Stacks the hyperparameters that ``cells`` change in ``hyper``; ``seed`` is one number, or one for each cell."""
    names = [] if not cells else [name for name in cells[0] if name in hyper]
    varied = hyper_arrays({name: [cell[name] for cell in cells] for name in names})
    shared = hyper_arrays({name: value for name, value in hyper.items() if name not in names})
    return Settings(varied, shared, np.asarray(seed, np.uint32))


@partial(jax.jit, static_argnames=("make_algorithm", "num_clients", "batch_size", "num_settings"))
def init_settings(
    make_algorithm, num_clients: int, batch_size: int, num_settings: int, settings: Settings, init_params: PyTree, columns
) -> DeviceState:
    """Makes the states before round 0, stacked along a leading axis."""

    def one(varied, seed):
        hyper = {**settings.shared, **varied}
        return init_state(make_algorithm, num_clients, batch_size, hyper, seed, init_params, columns)

    seed_axis, state_axes = _axes(settings)
    mapped = jax.vmap(one, in_axes=(0, seed_axis), out_axes=state_axes, axis_size=num_settings)
    return mapped(settings.varied, settings.seed)


@partial(jax.jit, static_argnames=("make_algorithm", "batch_sizes"), donate_argnames="state")
def run_settings(
    make_algorithm,
    batch_sizes: tuple[int, ...],
    settings: Settings,
    first_round,
    num_rounds,
    state: DeviceState,
    columns,
    schedules,
    population,
) -> tuple[DeviceState, RoundOutput]:
    """Runs some rounds of every setting; the arguments are those of ``run_rounds``, and so is the result, stacked."""

    def one(varied, seed, state):
        hyper = {**settings.shared, **varied}
        return run_rounds(
            make_algorithm, batch_sizes, hyper, seed, first_round, num_rounds, state, columns, schedules, population
        )

    return _over_settings(one, settings, with_state=True)(settings.varied, settings.seed, state)


@partial(jax.jit, static_argnames=("make_algorithm", "batch_size", "population"))
def evaluate_settings(
    make_algorithm, batch_size: int, population: int, settings: Settings, state: DeviceState, rows, columns, schedule
) -> Metrics:
    """Scores a data set's clients in every setting: ``{name: (value[setting, slot], weight[setting, slot])}``."""

    def one(varied, seed, state):
        hyper = {**settings.shared, **varied}
        return run_evaluation(make_algorithm, batch_size, population, hyper, seed, state, rows, columns, schedule)

    return _over_settings(one, settings, with_state=False)(settings.varied, settings.seed, state)


def _over_settings(one: Callable, settings: Settings, with_state: bool) -> Callable:
    seed_axis, state_axes = _axes(settings)
    return jax.vmap(one, in_axes=(0, seed_axis, state_axes), out_axes=(state_axes, 0) if with_state else 0)


def _axes(settings: Settings) -> tuple[int | None, Any]:
    """Where seed and state have their setting axis."""
    seed_axis = 0 if np.ndim(settings.seed) else None
    axes: list[Any] = [ServerState(0, seed_axis, 0, 0), 0, 0, 0]
    return seed_axis, DeviceState(*axes)
