"""A run that the test of kills starts, kills and starts again: ``python killed_run.py ALGORITHM RUN_DIR ROUNDS``.

It writes a checkpoint after every round, so that most of its time goes there, and at its end the whole state as ``final.npz``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import optax
import problems
import runs

import fedjax_tx as ftx
from fedjax_tx.aggregation import chain, clip_norm, fixed_mean, gaussian_noise


def fed_avg(hyper):
    return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(hyper["client_lr"], momentum=0.9), optax.adam(0.1))


def noisy(hyper):
    aggregator = chain(clip_norm(0.5), fixed_mean(2), gaussian_noise(0.3))
    return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(hyper["client_lr"]), aggregator=aggregator)


def scaffold(hyper):
    return ftx.algorithms.scaffold(problems.LOGISTIC, hyper["client_lr"])


def ditto(hyper):
    return ftx.algorithms.ditto(problems.LOGISTIC, optax.sgd(hyper["client_lr"]), 0.1, 0.5, optax.adam(0.1))


def fed_buff(hyper):
    return ftx.algorithms.fed_buff(problems.LOGISTIC, optax.sgd(hyper["client_lr"]), max_staleness=5)


UNIFORM, POISSON = ftx.data.uniform_cohorts(2), ftx.data.poisson_cohorts(0.3)
CLOCK = ftx.data.async_cohorts(np.arange(1.0, 7.0), concurrency=4, buffer_size=2, max_staleness=5)

ALGORITHMS = {
    "fed_avg": (fed_avg, UNIFORM),
    "scaffold": (scaffold, UNIFORM),
    "ditto": (ditto, UNIFORM),
    "fed_buff": (fed_buff, CLOCK),
    "noisy": (noisy, POISSON),
    "error_feedback": (runs.make_everything, UNIFORM),  # and Adam, and state at clients and aggregator
}


def main(name: str, run_dir: Path, rounds: int) -> None:
    """Runs an algorithm to its last round and writes all that it leaves."""
    algorithm, cohorts = ALGORITHMS[name]
    result = ftx.run(
        problems.experiment(algorithm, cohorts=cohorts),
        rounds,
        evaluate={"test": problems.ragged_clients(seed=1)},
        execution=ftx.Execution(num_lanes=2, rounds_per_call=2),
        run_dir=run_dir,
        evaluate_every=5,
        checkpoint_every=1,
        progress=False,
    )
    np.savez(run_dir / "final.npz", **runs.leaves(result.state))
    (run_dir / "final.json").write_text(json.dumps({"ledger": result.ledger, "rounds": result.state.round}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
