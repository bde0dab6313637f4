"""The directory of a sweep: what it is (``sweep.json``), and the histories of the settings that are done (``settings.jsonl``)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_tx.training import records
from fedjax_tx.training.pieces import Setup
from fedjax_tx.types import Execution


def describe_sweep(first, first_state, evaluate, evaluate_every, grid, rounds, vary_cohort) -> dict[str, Any]:
    """What decides the records of a sweep; what the grid varies is told by the grid alone."""
    described = records.describe(first, first_state, evaluate, evaluate_every, {})
    swept = {f"hyper.{name}" for name in grid} | ({"seed"} if "seed" in grid and vary_cohort else set())
    told = {name: value for name, value in described.items() if name not in swept}
    values = {f"grid.{name}": np.asarray(given).tolist() for name, given in grid.items()}
    return json.loads(json.dumps({**told, **values, "rounds": rounds, "vary_cohort": vary_cohort}))


def saved_choices(directory: Path, description, execution: Execution, settings_at_once) -> tuple[Execution, Any]:
    """What was chosen for this machine before, in place of ``"auto"``; makes the directory if there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    saved = records.read_json(directory / "sweep.json")
    if saved is None:
        return execution, settings_at_once
    records.refuse_other(directory, saved["sweep"], description)
    chosen = saved["execution"]
    auto = {name: chosen[name] for name in ("num_lanes", "rounds_per_call") if getattr(execution, name) == "auto"}
    return dataclasses.replace(execution, **auto), chosen["settings_at_once"] if settings_at_once == "auto" else settings_at_once


def save_sweep(directory: Path, description: dict[str, Any], setup: Setup, settings_at_once: int) -> dict[int, list]:
    """Writes down what the sweep is and what was chosen for it; gives the histories of the settings that are done."""
    choices = {"num_lanes": setup.round_fn.num_lanes, "rounds_per_call": setup.round_fn.rounds_per_call}
    saved = {"sweep": description, "settings": setup.cells, "execution": {**choices, "settings_at_once": settings_at_once}}
    records.write_json(directory / "sweep.json", saved)
    return read_done(directory, setup.rounds)


def read_done(directory: Path, rounds: int) -> dict[int, list[dict[str, Any]]]:
    """The histories of the settings that are finished; lines of one that a kill cut short are deleted."""
    histories: dict[int, list[dict[str, Any]]] = {}
    for line in records.read_lines(directory / "settings.jsonl"):
        histories.setdefault(line.pop("setting"), []).append(line)
    done = {number: lines for number, lines in histories.items() if len(lines) == rounds}
    kept = [{"setting": number, **line} for number, lines in done.items() for line in lines]
    records.rewrite_lines(directory / "settings.jsonl", kept)
    return done
