"""Killed ten times, at random moments and in the midst of writing a checkpoint, a run or a sweep goes on to the same end."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import killed_run
import numpy as np
import pytest

HERE = Path(__file__).parent
KILLS = 10
ROUNDS = 80
PATIENCE = 120.0  # seconds that a start may take


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Programs are compiled once and found again by the next start."""
    cache = tmp_path_factory.mktemp("compiled")
    paths = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start(name: str, directory: Path, environment) -> subprocess.Popen:
    return start_script("killed_run.py", [name, str(directory), str(ROUNDS)], environment)


def start_script(script: str, arguments: list[str], environment) -> subprocess.Popen:
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors


def wait(process: subprocess.Popen, seen) -> bool:
    """Waits until something is seen; False if the run ended before."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if seen():
            return True
        assert time.monotonic() < deadline, "the run did not get on"
        time.sleep(0.001)
    return False


def entries(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def checkpoints_of_pieces(directory: Path) -> set[str]:
    return {
        f"{piece}/{name}"
        for piece in entries(directory / "pieces")
        for name in entries(directory / "pieces" / piece / "checkpoints")
    }


def kill(process: subprocess.Popen, checkpoints: Callable[[], set[str]], generator: random.Random, in_writing: bool) -> bool:
    """Kills a run after some rounds; returns whether a checkpoint was being written (True or False), asserts that it lived."""
    before = checkpoints()
    assert wait(process, lambda: checkpoints() - before), process.stderr.read()
    time.sleep(generator.uniform(0, 0.15))
    if in_writing:
        seen = wait(process, lambda: any(name.endswith("-tmp") for name in checkpoints()))
        assert seen, "the run ended too early"
        time.sleep(generator.uniform(0, 0.03))
    assert process.poll() is None, "the run ended too early"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return any(name.endswith("-tmp") for name in checkpoints())


def assert_same_files(left: Path, right: Path) -> None:
    """Records, costs and the whole last state, bit for bit; and no checkpoint was ever taken for damaged."""
    for file in ("metrics.jsonl", "summary.json", "final.json", "experiment.json"):
        assert (left / file).read_text() == (right / file).read_text(), file
    assert not (right / "damaged").exists()
    with np.load(left / "final.npz") as ours, np.load(right / "final.npz") as theirs:
        assert ours.files == theirs.files and len(ours.files) > 3
        for leaf in ours.files:
            assert ours[leaf].dtype == theirs[leaf].dtype and ours[leaf].tobytes() == theirs[leaf].tobytes(), leaf


@pytest.mark.slow
@pytest.mark.parametrize("name", killed_run.ALGORITHMS)
def test_a_run_killed_ten_times_is_the_run_that_was_not(name, environment, tmp_path):
    generator = random.Random(name)
    undisturbed = start(name, tmp_path / "whole", environment)
    half_written = []
    for number in range(KILLS):
        process = start(name, tmp_path / "killed", environment)
        checkpoints = partial(entries, tmp_path / "killed" / "checkpoints")
        half_written.append(kill(process, checkpoints, generator, in_writing=number % 2 == 0))
        assert (tmp_path / "killed" / "metrics.jsonl").exists()
    finish(start(name, tmp_path / "killed", environment))
    finish(undisturbed)
    print(f"{name}: {sum(half_written)} of {KILLS} kills left a checkpoint half written")
    assert sum(half_written) >= 2  # the moment was hit
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_a_sweep_killed_ten_times_is_the_sweep_that_was_not(environment, tmp_path):
    generator = random.Random("sweep")
    undisturbed = start_script("killed_sweep.py", [str(tmp_path / "whole")], environment)
    killed = tmp_path / "killed"
    half_written = []
    for number in range(KILLS):
        process = start_script("killed_sweep.py", [str(killed)], environment)
        half_written.append(kill(process, partial(checkpoints_of_pieces, killed), generator, in_writing=number % 2 == 0))
    finish(start_script("killed_sweep.py", [str(killed)], environment))
    finish(undisturbed)
    print(f"sweep: {sum(half_written)} of {KILLS} kills left a checkpoint half written")
    assert sum(half_written) >= 2  # the moment was hit
    for file in ("settings.jsonl", "sweep.json", "final.json"):
        assert (killed / file).read_text() == (tmp_path / "whole" / file).read_text(), file
    assert not (killed / "pieces").exists()


@pytest.mark.slow
def test_a_script_ended_by_ctrl_c_says_how_to_go_on_and_does(environment, tmp_path):
    undisturbed = start("fed_avg", tmp_path / "whole", environment)
    checkpoints = tmp_path / "stopped" / "checkpoints"
    for _ in range(2):
        before = entries(checkpoints)
        process = start("fed_avg", tmp_path / "stopped", environment)
        assert wait(process, lambda before=before: entries(checkpoints) - before), process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGINT  # as of any script that Ctrl-C ends
        last = max(int(name) for name in entries(checkpoints))
        where = str(tmp_path / "stopped")
        message = (
            f"KeyboardInterrupt: interrupted after round {last}; all is saved in {where!r}: the same call goes on from there"
        )
        assert errors.rstrip().endswith(message)
    finish(start("fed_avg", tmp_path / "stopped", environment))
    finish(undisturbed)
    assert_same_files(tmp_path / "whole", tmp_path / "stopped")
