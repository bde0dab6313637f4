# ruff: noqa: E402  eight devices come before all else
"""Sweeps over two and eight CPU devices against single runs on one; run by ``test_sweep_mesh.py`` in a process of eight.

Prints a JSON dict. ``apart`` is the largest difference from single runs, in units of the tolerance 1e-6 + 1e-4 |value|.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np
import problems

import fedjax_tx as ftx
from fedjax_tx.training import pieces

ROUNDS = 2
EIGHT, TWO = (jax.sharding.Mesh(jax.devices()[:count], ("clients",)) for count in (8, 2))
RATES = [0.02, 0.05, 0.1, 0.2, 0.4]
TEST = problems.ragged_clients((2, 3), seed=1)
EXPERIMENT = problems.experiment(hyper={"client_lr": 0.1}, cohorts=ftx.data.uniform_cohorts(3))
EXECUTION = ftx.Execution(num_lanes=2, rounds_per_call=2, mesh=None)
COMMON = {"evaluate": {"test": TEST}, "progress": False, "evaluate_every": ROUNDS}


def single(rate: float) -> list[dict]:
    return ftx.run(dataclasses.replace(EXPERIMENT, hyper={"client_lr": rate}), ROUNDS, execution=EXECUTION, **COMMON).history


def sweep(mesh, at_once, run_dir=None) -> ftx.SweepResult:
    execution = dataclasses.replace(EXECUTION, mesh=mesh)
    grid = {"client_lr": RATES}
    return ftx.sweep(EXPERIMENT, ROUNDS, grid, execution=execution, settings_at_once=at_once, run_dir=run_dir, **COMMON)


def apart(result: ftx.SweepResult, wanted: list[list[dict]]) -> float:
    worst = 0.0
    for ours, theirs in zip(result.history, wanted, strict=True):
        assert [list(line) for line in ours] == [list(line) for line in theirs]
        for line, other in zip(ours, theirs, strict=True):
            floats = [name for name, value in line.items() if isinstance(value, float)]
            assert all(line[name] == other[name] for name in line if name not in floats)
            worst = max(worst, *(abs(line[name] - other[name]) / (1e-6 + 1e-4 * abs(other[name])) for name in floats))
    return worst


def resumed(directory: Path, wanted) -> dict:
    """A sweep on two devices whose last setting was cut off; it goes on, on eight."""
    sweep(TWO, 1, directory)
    path = directory / "settings.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    begun, run_piece = [], pieces.run_piece

    def noted(setup, piece, *rest):
        begun.append([piece.numbers, setup.mesh.size])
        return run_piece(setup, piece, *rest)

    pieces.run_piece = noted
    result = sweep(EIGHT, 1, directory)
    pieces.run_piece = run_piece
    return {"begun": begun, "apart": apart(result, wanted)}


def where_settings_lie() -> list:
    """Devices of the states of a piece, and how many settings each has."""
    seen, init = [], pieces.first_state

    def noted(setup, piece):
        state = init(setup, piece)
        leaf = jax.tree.leaves(state.device.server.params)[0]
        seen.append([len(leaf.sharding.device_set), leaf.addressable_shards[0].data.shape[0], leaf.shape[-1]])
        return state

    pieces.first_state = noted
    sweep("auto", 9)
    sweep(TWO, 9)
    pieces.first_state = init
    return seen


def main() -> None:
    wanted = [single(rate) for rate in RATES]
    with tempfile.TemporaryDirectory() as directory:
        told = {
            "two, three a device": apart(sweep(TWO, 3), wanted),
            "two, one a device": apart(sweep(TWO, 1), wanted),
            "eight": apart(sweep(EIGHT, 4), wanted),
            "resumed": resumed(Path(directory), wanted),
            "lie": where_settings_lie(),
            "differ": float(np.ptp([history[-1]["train/loss"] for history in wanted])),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
