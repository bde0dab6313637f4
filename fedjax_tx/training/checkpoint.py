"""Checkpoints of a run, written whole by orbax: the state of the next round, and the costs so far."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedjax_tx.simulation import RoundState


def open_checkpoints(directory: Path, keep: int = 3) -> ocp.CheckpointManager:
    """Opens (or makes) a folder of checkpoints, numbered by rounds finished; the last ``keep`` are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(directory.absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: RoundState, ledger: dict[str, int]) -> None:
    """Writes the state after ``state.round`` rounds."""
    arrays, _ = _flatten(state)
    notes = {"seed": state.seed, "round": state.round, "ledger": ledger}
    arguments = {"arrays": ocp.args.StandardSave(arrays), "notes": ocp.args.JsonSave(notes)}
    manager.save(state.round, args=ocp.args.Composite(**arguments), force=True)
    manager.wait_until_finished()


def restore(manager: ocp.CheckpointManager, like: RoundState) -> tuple[RoundState, dict[str, Any]] | None:
    """Returns the last state saved and the costs until then, None if nothing was saved.

    ``like`` is a state of the same experiment: it says the structure, the dtypes and the devices.
    """
    step = manager.latest_step()
    if step is None:
        return None
    arrays, rebuild = _flatten(like)
    arguments = {"arrays": ocp.args.StandardRestore(arrays), "notes": ocp.args.JsonRestore()}
    saved = manager.restore(step, args=ocp.args.Composite(**arguments))
    return rebuild(saved["arrays"], saved["notes"]), saved["notes"]["ledger"]


def _flatten(state: RoundState):
    """The state's leaves by path, and the function that puts such leaves back."""
    tree = (state.device, state.cohorts, state.last_metrics)
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    on_device = [isinstance(leaf, jax.Array) for _, leaf in paths]
    arrays = {name: np.asarray(jax.device_get(leaf)) for name, (_, leaf) in zip(names, paths, strict=True)}

    def rebuild(saved: dict[str, np.ndarray], notes: dict[str, Any]) -> RoundState:
        leaves = [
            jax.device_put(saved[name], leaf.sharding) if is_device else np.asarray(saved[name])[()]
            for name, is_device, (_, leaf) in zip(names, on_device, paths, strict=True)
        ]
        device, cohorts, last_metrics = jax.tree.unflatten(structure, leaves)
        return RoundState(device, cohorts, int(notes["seed"]), int(notes["round"]), last_metrics)

    return arrays, rebuild
