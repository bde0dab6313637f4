"""What several processes compute; a script that the tests start by ``python -m fedjax_tx.launch``.

Each process writes ``NAME.PROCESS.npz`` (all arrays of what it computed) and ``PROCESS.json`` into the folder given.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training")]

import jax  # noqa: E402
import killed_run  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import problems  # noqa: E402
import runs  # noqa: E402

import fedjax_tx as ftx  # noqa: E402
from fedjax_tx.simulation.mesh import place_rows, resolve_mesh  # noqa: E402

ROUNDS, KILLED_IN = 3, 5
ALL = ftx.data.all_clients()
ALGORITHMS = {
    **killed_run.ALGORITHMS,
    "median": (ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=ftx.aggregation.median()), ALL),
    "mime": (ftx.algorithms.mime(problems.LOGISTIC, optax.sgd(0.1, momentum=0.9)), ALL),
}


def leaves(result: ftx.RunResult) -> dict[str, np.ndarray]:
    """All that a run computed, as arrays by name."""
    history = [{f"{n} {name}": value for name, value in record.items()} for n, record in enumerate(result.history)]
    numbers = {name: np.asarray(value) for record in history for name, value in record.items()}
    return {**runs.leaves(result.state), **runs.leaves(result.client_metrics), **numbers}


def run(name: str, rounds: int, run_dir: Path | None = None, **changes) -> ftx.RunResult:
    """Runs an algorithm on six ragged clients; evaluates and saves after each third round."""
    algorithm, cohorts = ALGORITHMS[name]
    given = {"cohorts": cohorts, "train": changes.pop("train", problems.ragged_clients())}
    experiment = problems.experiment(algorithm, **given)
    if changes.pop("killed", False):
        experiment = dataclasses.replace(experiment, cohorts=deadly(cohorts))
    return runs.run(rounds, run_dir, experiment=experiment, **changes)


def deadly(cohorts: ftx.CohortSource) -> ftx.CohortSource:
    """Process 1 dies when it selects the cohort of round ``KILLED_IN``."""
    seen = [ROUNDS]  # those before were run already

    def select(*arguments):
        seen[0] += 1
        if seen[0] == KILLED_IN and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return cohorts.select(*arguments)

    return cohorts._replace(select=select)


def held(data: ftx.data.FederatedDataset) -> dict:
    """How many bytes of data lie on this process's devices, and which rows these are."""
    columns = place_rows(data, resolve_mesh(ftx.Execution()))
    shards = [shard.data for shard in columns["row"].addressable_shards]
    count = {name: [shard.data.nbytes for shard in column.addressable_shards] for name, column in columns.items()}
    return {"processes": jax.process_count(), "bytes": count, "rows": [np.asarray(shard).ravel().tolist() for shard in shards]}


def compared(folder: Path, names: list[str]) -> None:
    """Runs algorithms from their start."""
    for name in names:
        np.savez(folder / f"{name}.{jax.process_index()}.npz", **leaves(run(name, ROUNDS, folder / name)))
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(held(problems.ragged_clients())))


def parts(folder: Path) -> None:
    """Data sets of which each process holds a part from the start: a range of the whole, or clients found nowhere else."""
    own, count = jax.process_index(), jax.process_count()
    whole = problems.ragged_clients()
    taken = ftx.data.take_part(whole, own, count)
    bounds = taken.part.bounds
    local = whole.select(np.arange(bounds[own], bounds[own + 1]))
    for name, data in (("taken", taken), ("gathered", ftx.data.gather_parts(local))):
        told = held(data)
        assert len(data.columns["x"]) == told["bytes"]["x"][0] // 8 or own > 0, told
        np.savez(folder / f"{name}.{own}.npz", **leaves(run("fed_avg", ROUNDS, folder / name, train=data)))
    try:
        ftx.data.gather_parts(whole)
    except ValueError as error:
        (folder / f"refused.{own}").write_text(str(error))


def auto(folder: Path) -> None:
    """Lanes chosen by measuring: each process must choose the same."""
    result = run("fed_avg", ROUNDS, folder / "auto", execution=ftx.Execution())
    np.savez(folder / f"auto.{jax.process_index()}.npz", **leaves(result))


def parted(folder: Path) -> None:
    """Processes that were told different things, a mesh that leaves this process out, a directory that process 0 refuses."""
    others = [device for device in jax.devices() if device.process_index != jax.process_index()]
    try:
        resolve_mesh(ftx.Execution(mesh=jax.sharding.Mesh(others, ("device",))))
    except ValueError as error:
        (folder / f"mesh.{jax.process_index()}").write_text(str(error))
    try:
        run("fed_avg", ROUNDS + jax.process_index())
    except ValueError as error:
        (folder / f"refused.{jax.process_index()}").write_text(str(error))
    run("fed_avg", ROUNDS, folder / "longer")
    try:
        run("fed_avg", 1, folder / "longer")
    except (ValueError, RuntimeError) as error:
        (folder / f"longer.{jax.process_index()}").write_text(f"{type(error).__name__}: {error}")


def main(mode: str, folder: Path, names: list[str]) -> None:
    if mode in ("compared", "killed"):
        compared(folder, names)
    if mode == "killed":
        run(names[0], 2 * ROUNDS, folder / names[0], killed=True)
    if mode in ("parts", "auto", "parted"):
        {"parts": parts, "auto": auto, "parted": parted}[mode](folder)
    if mode == "resumed":
        np.savez(folder / f"resumed.{jax.process_index()}.npz", **leaves(run(names[0], 2 * ROUNDS, folder / names[0])))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
