"""Several processes compute what one does; ``process_runs.py`` is what they run, this process is the one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import problems
import process_runs
import pytest

import fedjax_tx as ftx

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(process_runs.__file__)
PATIENCE = 400.0  # seconds; a run that hangs is killed then
ROUNDS, NAME = process_runs.ROUNDS, "error_feedback"  # with Adam, and state at the clients and in the aggregator


def launch(count: int, mode: str, folder: Path, *names: str) -> subprocess.CompletedProcess:
    """Runs the script in some processes; one device each."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "fedjax_tx.launch", "--num-processes", str(count), str(SCRIPT), mode, str(folder), *names]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE)


def launched(count: int, mode: str, folder: Path, *names: str) -> str:
    done = launch(count, mode, folder, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(folder: Path, name: str, count: int) -> list[dict[str, np.ndarray]]:
    """What each process wrote."""
    files = [np.load(folder / f"{name}.{number}.npz") for number in range(count)]
    return [dict(file) for file in files]


def assert_close(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """To the tolerance of ``test_mesh.py``: sums over devices come in another order."""
    assert set(ours) == set(theirs) and len(ours) > 20
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes: three rounds, and a second run in the same place, in whose fifth round process 1 dies."""
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(2, "killed", folder, NAME)


def test_two_processes_compute_what_one_does(two):
    folder, done = two
    for each in read(folder, NAME, 2):
        assert_close(each, process_runs.leaves(process_runs.run(NAME, ROUNDS)))
    assert_equal(*read(folder, NAME, 2))
    assert "KeyError" not in done.stdout


def test_each_process_holds_only_its_own_rows(two):
    # Clients of 5, 0, 1, 9 and of 3, 7 examples: 15 and 10 rows of 25, in room for 15.
    first, second = (json.loads((two[0] / f"{number}.json").read_text()) for number in range(2))
    assert first["processes"] == second["processes"] == 2
    assert first["bytes"] == second["bytes"] == {"x": [15 * 8], "y": [15 * 4], "row": [15 * 4]}
    assert first["rows"] == [list(range(15))]
    assert second["rows"] == [[*range(15, 25), *[0] * 5]]


def test_a_process_that_dies_ends_the_other_and_is_named(two):
    _, done = two
    assert done.returncode == 128 + 9
    assert done.stderr.splitlines()[-1] == "process 1 of 2 was killed by signal 9 (SIGKILL); the others were ended"


def test_the_first_process_alone_writes(two):
    rounds = [json.loads(line)["round"] for line in (two[0] / NAME / "metrics.jsonl").read_text().splitlines()]
    assert rounds[:ROUNDS] == [1, 2, 3] and len(set(rounds)) == len(rounds)
    assert os.listdir(two[0] / NAME / "checkpoints") == ["3"]


def test_one_process_goes_on_where_two_were_ended(two, tmp_path):
    shutil.copytree(two[0] / NAME, tmp_path / NAME)
    resumed = process_runs.leaves(process_runs.run(NAME, 2 * ROUNDS, tmp_path / NAME))
    assert_close(resumed, process_runs.leaves(process_runs.run(NAME, 2 * ROUNDS)))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "names"), [(2, list(process_runs.ALGORITHMS)), (4, ["fed_avg", "scaffold", "median"])])
def test_every_kind_of_method_gives_what_one_process_gives(count, names, tmp_path):
    launched(count, "compared", tmp_path, *names)
    for name in names:
        each = read(tmp_path, name, count)
        assert_close(each[0], process_runs.leaves(process_runs.run(name, ROUNDS)))
        for other in each[1:]:
            assert_equal(each[0], other)


@pytest.mark.slow
def test_a_run_goes_on_with_as_many_processes_bit_for_bit_and_with_more_to_tolerance(two, tmp_path):
    for count in (2, 4):
        shutil.copytree(two[0] / NAME, tmp_path / str(count) / NAME)
        launched(count, "resumed", tmp_path / str(count), NAME)
    (tmp_path / "whole").mkdir()
    launched(2, "resumed", tmp_path / "whole", NAME)
    whole, *_ = read(tmp_path / "whole", "resumed", 2)
    assert_equal(read(tmp_path / "2", "resumed", 2)[1], whole)
    assert_close(read(tmp_path / "4", "resumed", 4)[3], whole)


@pytest.mark.slow
def test_parts_held_from_the_start_give_what_the_whole_gives(tmp_path):
    launched(2, "parts", tmp_path)
    one = process_runs.leaves(process_runs.run("fed_avg", ROUNDS, tmp_path / "one"))
    for name in ("taken", "gathered"):
        for each in read(tmp_path, name, 2):
            assert_close(each, one)
        # The run directory is that of the whole data set, so that one process may go on.
        described = [json.loads((tmp_path / run / "experiment.json").read_text())["experiment"] for run in (name, "one")]
        assert described[0] == described[1]
    refused = [(tmp_path / f"refused.{number}").read_text() for number in range(2)]
    assert refused[0] == refused[1]
    assert refused[0].startswith("expected data to hold clients that no other process holds, got ['c0', 'c1', 'c2', 'c3', 'c4']")


@pytest.mark.slow
def test_lanes_are_chosen_by_all_processes_together(tmp_path):
    launched(2, "auto", tmp_path)
    assert_equal(*read(tmp_path, "auto", 2))
    assert_close(read(tmp_path, "auto", 2)[0], process_runs.leaves(process_runs.run("fed_avg", ROUNDS)))


@pytest.mark.slow
def test_processes_that_were_told_different_things_are_refused(tmp_path):
    launched(2, "parted", tmp_path)
    refused = {(tmp_path / f"refused.{number}").read_text() for number in range(2)}
    expected = (
        "expected what is run to be the same in all processes, got 'another at process 1: rounds is 3 at process 0 and 4 there'"
    )
    assert refused == {expected}
    for number in range(2):
        told = (tmp_path / f"mesh.{number}").read_text()
        assert told == f"expected mesh to have devices of this process only, or of all 2, got [{1 - number}]"
    first, second = ((tmp_path / f"longer.{number}").read_text() for number in range(2))
    assert first.startswith("ValueError: expected rounds >= 3, the rounds that run_dir")
    assert second == f"RuntimeError: process 0 of 2 could not go on: {first}"


def test_a_sweep_over_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="expected a sweep to run in one process, on its own devices, got 'one of 2 processes'"):
        ftx.sweep(problems.experiment(), rounds=1, grid={"client_lr": [0.1]})
