"""The command line that starts several processes: what it refuses, what a script sees, how processes end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedjax_tx import launch

ROOT = Path(__file__).parent.parent
PATIENCE = 90.0

SCRIPT = """
import os, signal, sys, time
import beside
print(__name__, sys.argv[1:], beside.NUMBER, flush=True)
import jax
number, count, how = jax.process_index(), jax.process_count(), sys.argv[1]
print("devices", len(jax.local_devices()), "of", len(jax.devices()), flush=True)
if number == int(sys.argv[2]):
    if how == "raise":
        raise ValueError("spoilt")
    if how == "exit":
        sys.exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
if how != "end":
    time.sleep(80)
"""

WRONG = {
    "no script": ([], "the following arguments are required: script"),
    "a script that is none": (["none.py"], "expected script to be a file, got 'none.py'"),
    "no process": (["--num-processes", "0", "SCRIPT"], "expected --num-processes >= 1, got 0"),
    "an id out of range": (
        ["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2", "SCRIPT"],
        "expected --process-id <= 1, got 2",
    ),
    "a negative id": (
        ["--coordinator", "a:1", "--num-processes", "2", "--process-id", "-1", "SCRIPT"],
        "expected --process-id >= 0, got -1",
    ),
    "no port": (
        ["--coordinator", "localhost", "--num-processes", "2", "--process-id", "0", "SCRIPT"],
        "expected --coordinator to be HOST:PORT, such as '10.0.0.1:1234', got 'localhost'",
    ),
    "a port out of range": (
        ["--coordinator", "localhost:70000", "--num-processes", "2", "--process-id", "0", "SCRIPT"],
        "expected --coordinator to be HOST:PORT",
    ),
    "an id alone": (
        ["--process-id", "0", "SCRIPT"],
        "expected --coordinator, --num-processes and --process-id to be given together",
    ),
    "no number": (["--coordinator", "a:1", "--process-id", "0", "SCRIPT"], "'--num-processes': None"),
    "no patience": (["--timeout", "0", "SCRIPT"], "expected --timeout >= 1, got 0"),
}


@pytest.fixture
def script(tmp_path) -> Path:
    (tmp_path / "beside.py").write_text("NUMBER = 5\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_command_line_is_refused_before_anything_starts(what, script, capsys):
    arguments, message = WRONG[what]
    with pytest.raises(SystemExit) as caught:
        launch.main([str(script) if argument == "SCRIPT" else argument for argument in arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def command(script: Path, *arguments: str, options: tuple[str, ...] = ("--num-processes", "2")) -> list[str]:
    return [sys.executable, "-m", "fedjax_tx.launch", *options, str(script), *arguments]


def start(parts: list[str], **changes: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **changes}
    return subprocess.Popen(
        parts, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """What it said; one that hangs is killed, with all that it started."""
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def still_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_script_runs_as_ever_in_each_process(script):
    process = start(command(script, "end", "0", "--num-processes"))
    said, errors = finish(process)
    assert process.returncode == 0, errors
    for number in range(2):
        lines = [line for line in said.splitlines() if line.startswith(f"[{number}] ") and "Gloo" not in line]
        assert lines[0] == f"[{number}] __main__ ['end', '0', '--num-processes'] 5"
        assert lines[1:] == [f"[{number}] devices 1 of 2"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("how", "code", "why"), [("raise", 1, "ValueError: spoilt"), ("exit", 7, "exit code 7"), ("kill", 137, "")]
)
def test_whichever_process_fails_ends_the_others_and_is_named(script, how, code, why, number):
    process = start(command(script, how, str(number)))
    said, errors = finish(process)
    died = "was killed by signal 9 (SIGKILL)" if how == "kill" else f"ended with exit code {code}"
    assert errors.splitlines()[-1] == f"process {number} of 2 {died}; the others were ended"
    assert process.returncode == code
    assert why in said
    assert not still_there(process.pid)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_processes_started_apart_end_when_one_does_and_name_it(script, how, number):
    port, patience = free_port(), 5
    started = []
    for own in range(2):
        options = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(own))
        started.append(start(command(script, how, str(number), options=(*options, "--timeout", str(patience)))))
    said = [finish(process) for process in started]
    assert started[number].returncode == (1 if how == "raise" else -signal.SIGKILL)
    other, errors = 1 - number, said[1 - number][1]
    if how == "raise":
        assert started[other].returncode == 75
        assert errors.splitlines()[-1] == f"process {other} of 2 ends: process {number} of 2 failed: ValueError: spoilt"
    else:  # JAX's words: a list of the dead, or that the leader (process 0) died
        assert started[other].returncode != 0
        assert ("unhealthy (stopped sending heartbeats):\n1\n" if number == 1 else "leader task was preempted/died") in errors


@pytest.mark.slow
def test_ctrl_c_ends_a_run_in_order_in_all_processes(tmp_path):
    folder, runs_file = tmp_path / "run", ROOT / "tests" / "training" / "killed_run.py"
    path = os.pathsep.join(str(ROOT / name) for name in (".", "tests", "tests/training"))
    process = start(command(runs_file, "fed_avg", str(folder), "100000"), PYTHONPATH=path)
    deadline = time.monotonic() + PATIENCE
    while not (folder / "checkpoints" / "3").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = finish(process)
    last = max(int(name) for name in os.listdir(folder / "checkpoints"))
    for number in range(2):
        assert f"[{number}] KeyboardInterrupt: interrupted after round {last}; all is saved in {str(folder)!r}" in said, said
    assert process.returncode == 128 + signal.SIGINT, errors


@pytest.mark.slow
def test_under_slurm_processes_find_each_other(script):
    # What srun sets for two tasks on this machine; JAX makes the coordinator's port from the job's number.
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    started = [
        start(command(script, "end", "0", options=()), **job, SLURM_PROCID=str(number), SLURM_LOCALID=str(number))
        for number in range(2)
    ]
    for process in started:
        said, errors = finish(process)
        assert process.returncode == 0, errors
        assert "devices 1 of 2" in said


@pytest.mark.slow
def test_where_there_is_no_cluster_it_says_what_is_missing(script):
    process = start(command(script, "end", "0", options=()))
    _, errors = finish(process)
    assert process.returncode == 1
    assert "ValueError: expected coordinator, num_processes and process_id, or a place where JAX finds other processes" in errors


@pytest.mark.slow
def test_ending_the_launcher_ends_what_it_started(script):
    process = start(command(script, "sleep", "0"))
    assert "__main__" in process.stdout.readline()
    process.terminate()
    finish(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert not still_there(process.pid)
