"""A sweep that the test of kills starts, kills and starts again: ``python killed_sweep.py RUN_DIR``.

It writes a checkpoint after every call, so that most of its time goes there, and at its end all histories as ``final.json``.
"""

import json
import sys
import warnings
from pathlib import Path

import problems
import runs

import fedjax_tx as ftx
from fedjax_tx.training import piece_store


def main(run_dir: Path) -> None:
    """Runs four pieces of two settings, one of each seed filled up; ends if a checkpoint is taken for damaged."""
    warnings.filterwarnings("error", message=".*checkpoint")
    piece_store.SECONDS_BETWEEN = piece_store.TIMES_ITS_OWN = 0.0
    result = ftx.sweep(
        runs.experiment(),
        30,
        {"client_lr": [0.05, 0.1, 0.2], "seed": [0, 4]},
        evaluate={"test": problems.ragged_clients(seed=1)},
        execution=ftx.Execution(num_lanes=2, rounds_per_call=2),
        run_dir=run_dir,
        evaluate_every=5,
        settings_at_once=2,
        progress=False,
    )
    (run_dir / "final.json").write_text(json.dumps(result.history))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
