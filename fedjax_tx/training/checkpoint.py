"""Checkpoints of a run, written whole by orbax: the state of the next round, and the costs so far.

Orbax writes a checkpoint beside its place and renames it, so one that was being written when the run died is never seen. It
doesn't notice every damage that comes later (a flipped byte in an array is read as another number), so each has a checksum.

A checkpoint says nothing of processes: the first of them writes it, from what all have alike, and reads it for the others.
"""

import json
import shutil
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fedjax_tx.simulation import RoundState
from fedjax_tx.simulation.mesh import put

# What orbax 0.12 raises for a checkpoint with files cut, missing or overwritten, found by damaging each file in turn: TensorStore
# and JSON raise a ValueError, and JSON of another form is looked into as if it were of the right one.
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, FileNotFoundError, NotADirectoryError)


def open_checkpoints(directory: Path, keep: int = 3) -> ocp.CheckpointManager:
    """Opens (or makes) a folder of checkpoints, numbered by rounds finished; the last ``keep`` are kept."""
    alone = {}
    if jax.process_count() > 1:  # or orbax would wait for the other processes
        directory.mkdir(parents=True, exist_ok=True)
        own = jax.process_index()
        options = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
        alone = {"create": False, "multiprocessing_options": options}
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True, **alone
    )
    return ocp.CheckpointManager(directory.absolute(), options=options)


def last_round(directory: Path) -> int:
    """Returns how many rounds the newest checkpoint of a folder holds, 0 if there is none."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def save(manager: ocp.CheckpointManager, state: RoundState, ledger: dict[str, Any]) -> None:
    """Writes the state after ``state.round`` rounds; what stands beside it (the costs) are plain values."""
    arrays = _arrays(state)
    notes: dict[str, Any] = {
        "seed": state.seed,
        "round": state.round,
        "ledger": ledger,
        "arrays": [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()],
    }
    notes["checksum"] = _checksum(list(arrays.values()), notes)
    # Orbax can't write arrays without entries. Numbers for names: a parameter may be called anything.
    filled = {str(number): array for number, array in enumerate(arrays.values()) if array.size}
    arguments = {"arrays": ocp.args.StandardSave(filled), "notes": ocp.args.JsonSave(notes)}
    manager.save(state.round, args=ocp.args.Composite(**arguments), force=True)
    manager.wait_until_finished()


class Saved(NamedTuple):
    """A checkpoint as it was read: its arrays by name, and its notes."""

    arrays: dict[str, np.ndarray]
    notes: dict[str, Any]


def read_last(manager: ocp.CheckpointManager) -> Saved | None:
    """Returns the last whole checkpoint, None if nothing was saved.

    Damaged checkpoints behind it are reported by a warning and moved to a folder ``damaged`` beside the checkpoints.

    Errors: ``ValueError`` naming all checkpoints if every one is damaged; nothing is moved then.
    """
    damaged: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            saved = _read(partial(_restore, manager, step))
        except _DAMAGED as error:
            damaged[step] = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
            continue
        _set_aside(manager, damaged, step)
        return saved
    if damaged:
        listed = "; ".join(f"{step} ({why})" for step, why in damaged.items())
        raise ValueError(
            f"expected a whole checkpoint in {str(manager.directory)!r}, but all are damaged: {listed}. "
            "Nothing was deleted; put a good copy there, or start again in another run_dir"
        )
    return None


def peek(directory: Path) -> Saved | None:
    """Returns the last checkpoint of a folder and changes nothing there, where a run may be writing; None without one.

    Errors: ``ValueError`` if it is damaged.
    """
    step = last_round(directory)
    if not step:
        return None
    handlers = ocp.CompositeCheckpointHandler(arrays=ocp.StandardCheckpointHandler(), notes=ocp.JsonCheckpointHandler())
    with ocp.Checkpointer(handlers) as reader:
        try:
            return _read(lambda args: reader.restore(directory.absolute() / str(step), args))
        except _DAMAGED as error:
            raise ValueError(f"expected checkpoint {step} in {str(directory)!r} to be whole, got {error}") from error


def refuse_incomplete(like: RoundState, saved: Saved) -> None:
    """Raises ``ValueError`` if a checkpoint lacks an array of a state like ``like``."""
    for path, _ in jax.tree_util.tree_leaves_with_path((like.device, like.cohorts)):
        name = jax.tree_util.keystr(path)
        if name not in saved.arrays:
            raise ValueError(f"expected the checkpoint after round {saved.notes['round']} to hold {name}, which is missing")


def _restore(manager: ocp.CheckpointManager, step: int, args: ocp.args.Composite) -> Any:
    return manager.restore(step, args=args)


def _read(restore: Callable[[ocp.args.Composite], Any]) -> Saved:
    notes = restore(ocp.args.Composite(notes=ocp.args.JsonRestore()))["notes"]
    empty = [np.zeros(shape, jnp.dtype(dtype)) for _, dtype, shape in notes["arrays"]]
    filled = {str(number): array for number, array in enumerate(empty) if array.size}
    read = restore(ocp.args.Composite(arrays=ocp.args.StandardRestore(filled)))["arrays"]
    arrays = [np.asarray(read.get(str(number), array)) for number, array in enumerate(empty)]
    checksum = _checksum(arrays, notes)
    if checksum != notes["checksum"]:
        raise ValueError(f"its checksum is {checksum}, and was {notes['checksum']} when it was written")
    return Saved({name: array for (name, _, _), array in zip(notes["arrays"], arrays, strict=True)}, notes)


def _set_aside(manager: ocp.CheckpointManager, damaged: dict[int, str], used: int) -> None:
    folder = Path(manager.directory)
    for step, why in damaged.items():
        target = folder.with_name("damaged") / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(target)
        warnings.warn(
            f"checkpoint {step} in {str(folder)!r} is damaged ({why}); it was moved to {str(target)!r} and the run goes on "
            f"from checkpoint {used}",
            stacklevel=2,
        )
    if damaged:
        manager.reload()


def _arrays(state: RoundState) -> dict[str, np.ndarray]:
    """All arrays of a state, by path."""
    leaves = jax.tree_util.tree_leaves_with_path((state.device, state.cohorts))
    arrays = {jax.tree_util.keystr(path): _plain(leaf) for path, leaf in leaves}
    if state.last_metrics is not None:
        ids, metrics = state.last_metrics
        arrays["last ids"] = np.asarray(ids)
        for name, (value, weight) in metrics.items():
            arrays[f"last value {name}"], arrays[f"last weight {name}"] = np.asarray(value), np.asarray(weight)
    return arrays


def rebuild(like: RoundState, saved: Saved) -> tuple[RoundState, dict[str, Any]]:
    """Returns the state of a checkpoint and the costs until then; ``like`` says the structure and the devices."""
    refuse_incomplete(like, saved)
    arrays, notes = saved
    paths, structure = jax.tree_util.tree_flatten_with_path((like.device, like.cohorts))
    leaves = [_like(arrays[jax.tree_util.keystr(path)], leaf) for path, leaf in paths]
    device, cohorts = jax.tree.unflatten(structure, leaves)
    last = None
    if "last ids" in arrays:
        names = [name.removeprefix("last value ") for name in arrays if name.startswith("last value ")]
        metrics = {name: (arrays[f"last value {name}"], arrays[f"last weight {name}"]) for name in names}
        last = (arrays["last ids"], metrics)
    return RoundState(device, cohorts, int(notes["seed"]), int(notes["round"]), last), notes["ledger"]


def _plain(leaf: Any) -> np.ndarray:
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return np.asarray(jax.device_get(leaf))


def _like(array: np.ndarray, leaf: Any) -> Any:
    """An array where ``leaf`` is: on its devices, or on the host; bound to them as it is, or the program would compile anew."""
    if not isinstance(leaf, jax.Array):
        return array[()]
    new = put(array, leaf.sharding) if leaf.committed else jnp.asarray(array)
    return jax.random.wrap_key_data(new, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else new


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _checksum(arrays: list[np.ndarray], notes: dict[str, Any]) -> str:
    """A CRC-32 of all that a checkpoint says."""
    said = {name: value for name, value in notes.items() if name != "checksum"}
    checksum = zlib.crc32(json.dumps(said, sort_keys=True).encode())
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return f"{checksum:08x}"
