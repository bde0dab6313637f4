"""The directory of a sweep.

``sweep.json`` what is swept, its grid, and what was chosen for that on this machine; ``settings.jsonl`` the histories of the
settings that are done, each line with its setting's values, so that another grid finds them; ``pieces/`` how far the piece
under way is (``piece_store.py``).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_tx.simulation.rounds import hyper_arrays
from fedjax_tx.training import records
from fedjax_tx.types import Execution

History = list[dict[str, Any]]


class Found(NamedTuple):
    """Where a sweep begins or goes on.

    done: the histories of finished settings, by ``cell_key``; those of other grids are among them. left: the numbers of the
    settings that were not done when this grid was begun; they are dealt out in the same pieces however often the sweep goes on.
    choices: what was chosen for this grid on this machine. programs: fingerprints, by the types of the grid's numbers.
    """

    done: dict[str, History]
    left: list[int]
    choices: dict[str, Any]
    programs: dict[str, str]


def cell_key(cell: Mapping[str, Any]) -> str:
    """Returns the values of a cell as they are computed with, as a text that names its history in whatever grid it stands.

    Example:
      >>> cell_key({"seed": 0, "client_lr": 0.1}) == cell_key({"client_lr": 0.1 + 1e-12, "seed": 0})
      True
    """
    return json.dumps({**cell, **{name: value.item() for name, value in _numbers(cell).items()}}, sort_keys=True)


def _numbers(cell: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return hyper_arrays({name: value for name, value in cell.items() if name != "seed"})


def describe_sweep(first, first_state, evaluate, evaluate_every, grid, rounds, vary_cohort, init_params=None) -> dict[str, Any]:
    """What decides the history of a setting, but for the setting's own values; ``first`` is the experiment of any of them."""
    described = records.describe(first, first_state, evaluate, evaluate_every, {}, init_params)
    swept = {f"hyper.{name}" for name in grid} | ({"seed"} if "seed" in grid and vary_cohort else set())
    told = {name: value for name, value in described.items() if name not in swept}
    return json.loads(json.dumps({**told, "grid": sorted(grid), "rounds": rounds, "vary_cohort": vary_cohort}))


def open_sweep(directory: Path, description: dict[str, Any], cells: Sequence[dict[str, Any]], rounds: int) -> Found:
    """Reads what a directory holds of a sweep; makes the directory if there is none.

    Errors: ``ValueError`` if it holds another sweep, or one of other names.
    """
    directory.mkdir(parents=True, exist_ok=True)
    saved = records.read_json(directory / "sweep.json") or {}
    # Numbers of another type are another program, and none of its settings is taken for one of this program's.
    types = json.dumps({name: str(value.dtype) for name, value in _numbers(cells[0]).items()}, sort_keys=True)
    programs = saved.get("programs", {})
    if saved:
        there = {**saved["sweep"], "program": programs.get(types, description["program"])}
        records.refuse_other(directory, there, description)
    programs = {**programs, types: description["program"]}
    done = read_done(directory, rounds)
    undone = {number for number, cell in enumerate(cells) if cell_key(cell) not in done}
    if saved.get("settings") != cells:
        return Found(done, sorted(undone), {}, programs)
    return Found(done, sorted(undone | {*saved["left"]}), saved["execution"], programs)


def with_choices(found: Found, execution: Execution, settings_at_once) -> tuple[Execution, Any]:
    """The execution and the settings at once with what was chosen before in place of ``"auto"``."""
    names = [name for name in ("num_lanes", "rounds_per_call") if name in found.choices and getattr(execution, name) == "auto"]
    at_once = found.choices.get("settings_at_once", "auto") if settings_at_once == "auto" else settings_at_once
    return dataclasses.replace(execution, **{name: found.choices[name] for name in names}), at_once


def save_sweep(directory: Path, description, cells, found: Found, choices: Mapping[str, Any]) -> None:
    """Writes down what is swept, which settings were left, and what was chosen for them."""
    saved = {"sweep": description, "programs": found.programs, "settings": cells, "left": found.left, "execution": choices}
    records.write_json(directory / "sweep.json", saved)


def read_done(directory: Path, rounds: int) -> dict[str, History]:
    """The histories of the settings that are finished; lines of one that a kill cut short are deleted."""
    lines = records.read_lines(directory / "settings.jsonl")
    keys = [cell_key(line["setting"]) for line in lines]
    histories: dict[str, History] = {}
    for key, line in zip(keys, lines, strict=True):
        histories.setdefault(key, []).append({name: value for name, value in line.items() if name != "setting"})
    done = {key: history for key, history in histories.items() if len(history) == rounds}
    records.rewrite_lines(directory / "settings.jsonl", [line for key, line in zip(keys, lines, strict=True) if key in done])
    return done


def append_done(directory: Path, finished: Sequence[tuple[dict[str, Any], History]]) -> None:
    """Writes finished settings, each with its history, and waits until they are on the disk."""
    lines = [{"setting": cell, **line} for cell, history in finished for line in history]
    records.append_lines(directory / "settings.jsonl", lines)
    records.flush(directory / "settings.jsonl")
