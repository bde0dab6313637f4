"""Where the first NaN comes from: rounds on one lane, uncompiled, looking at every value.

``Execution(debug=True)`` runs the same rounds under ``jax.disable_jit()``, client after client, step after step. The first NaN in
what a client starts with, carries from step to step or hands over, or in the server's state, ends the run with an error that
names client, round, pass and step. It is slow; code of your own can print or set breakpoints meanwhile, as nothing is traced.
"""

from collections.abc import Mapping
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tx.simulation.lanes import Watch
from fedjax_tx.simulation.round import DeviceState, RoundOutput, run_rounds_uncompiled
from fedjax_tx.types import PyTree


def run_round_watched(arguments: tuple, round_number: int, names: list) -> tuple[DeviceState, RoundOutput]:
    """Runs the one round that ``arguments`` (those of ``run_rounds``) describe.

    ``names`` are the cohort's client ids, by slot.

    Errors: ``FloatingPointError`` at the first NaN, naming client, round, pass, step and the leaf that holds it.
    """
    arrays = jax.tree.map(jnp.asarray, arguments[2:])  # NumPy's arrays do not take JAX's indices
    with jax.disable_jit():
        return run_rounds_uncompiled(*[*arguments[:2], *arrays, make_watch(round_number, names)])


def make_watch(round_number: int, names: list) -> Watch:
    """Returns ``watch(pass_number, place, values, slot=None, step=None, batch=None)``, which raises at a NaN."""

    def watch(pass_number: int, place: str, values: PyTree, slot=None, step=None, batch: Mapping | None = None) -> None:
        leaf = first_nan(values)
        if leaf is None:
            return
        where = [f"round {round_number}", f"pass {pass_number}"]
        if slot is not None:
            where.insert(0, f"client {names[int(slot)]!r}")
        if step is not None:
            where.append(f"step {int(step)}")
        _fail(f"{', '.join(where)}: {place} holds a NaN at {leaf or 'its only leaf'}", batch)

    return watch


def first_nan(values: PyTree) -> str | None:
    """Returns the path of the first leaf that holds a NaN, None if there is none (or nothing concrete to look at)."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        if bool(np.isnan(np.asarray(leaf, np.float32)).any()):
            return jax.tree_util.keystr(path)
    return None


def _fail(message: str, batch: Mapping | None) -> NoReturn:
    column = None if batch is None else first_nan(dict(batch))
    raise FloatingPointError(message if column is None else f"{message}; so does its batch, at {column}")
