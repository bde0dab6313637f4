"""Runs a script in several processes that compute together: ``python -m fedjax_tx.launch [options] script.py [arguments]``.

* ``--num-processes 2`` alone starts two processes on this machine, each on its share of the cores.
* ``--coordinator HOST:PORT --num-processes 8 --process-id 3`` makes this process number 3 of 8, wherever the others are.
* Without options JAX finds the others itself: ``srun python -m fedjax_tx.launch script.py``, or the same on each TPU host.

The script needs no change. A process that fails tells the others why, and they end, naming it. One that dies without a word is
missed after ``--timeout`` seconds, and JAX's coordination service ends the others with a message that lists its number among the
"unhealthy tasks" (process 0, which holds the service, is missed at once, and called the leader). Processes started on this
machine end at once, with the number of the first and how it died.
"""

import argparse
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax

from fedjax_tx import check, processes

_FOLLOWED = 75  # the exit code of a process that ends since another failed
_INTERRUPTED = 128 + signal.SIGINT
_PATIENCE = 5.0  # seconds that the end of one process may take to follow that of another
_BETWEEN_LOOKS = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedjax_tx.launch", description=__doc__.split(":", 1)[0])
    parser.add_argument("--num-processes", type=int, help="how many there are; alone: how many to start on this machine")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    parser.add_argument("--process-id", type=int, help="which of them this is, from 0")
    parser.add_argument("--timeout", type=int, default=30, metavar="SECONDS", help="how long a process may be silent")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    given = parser.parse_args(arguments)
    try:
        _check(given)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    if given.num_processes is not None and given.coordinator is None:
        return run_local(given.num_processes, given.timeout, [given.script, *given.arguments])
    processes.join(given.coordinator, given.num_processes, given.process_id, timeout_seconds=given.timeout)
    return run_joined(given.script, given.arguments, given.timeout)


def _check(given: argparse.Namespace) -> None:
    check.integer("--timeout", given.timeout, low=1)
    if not Path(given.script).is_file():
        check.fail_value("script", "to be a file", given.script)
    if given.num_processes is not None:
        check.integer("--num-processes", given.num_processes, low=1)
    explicit = {"--coordinator": given.coordinator, "--process-id": given.process_id}
    if None in explicit.values() and set(explicit.values()) != {None} or given.coordinator and given.num_processes is None:
        told = {**explicit, "--num-processes": given.num_processes}
        check.fail_value("--coordinator, --num-processes and --process-id", "to be given together", told)
    if given.coordinator is not None:
        processes.read_address("--coordinator", given.coordinator)
        check.integer("--process-id", given.process_id, low=0, high=given.num_processes - 1)


# ---- one process of several


def run_joined(script: str, arguments: Sequence[str], timeout_seconds: int) -> int:
    """Runs a script as ``python script.py`` does, in a process that has joined the others; returns the exit code.

    Where it fails the process ends at once: Python's own end would wait for the others, which wait for this one.
    """
    sys.argv, sys.path[0] = [script, *arguments], str(Path(script).resolve().parent)
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(done,), daemon=True)
    watcher.start()
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if error.code not in (None, 0):
            print(error.code if isinstance(error.code, str) else f"exit code {error.code}", file=sys.stderr)
            _fail(f"exit code {error.code}", error.code if isinstance(error.code, int) else 1)
    except KeyboardInterrupt:
        traceback.print_exc()
        time.sleep(5 * _BETWEEN_LOOKS)  # Ctrl-C mostly comes to all of them, and each ends by itself
        _fail("interrupted", _INTERRUPTED)
    except Exception as error:  # whatever it is, the others must hear of it
        traceback.print_exc()
        if isinstance(error, jax.errors.JaxRuntimeError):
            _await_name(timeout_seconds)
        _fail(f"{type(error).__name__}: {error}", 1)
    done.set()
    watcher.join()
    jax.distributed.shutdown()
    return 0


def _watch(done: threading.Event) -> None:
    """Ends this process when another tells that it fails, or when process 0 is gone."""
    own, count = processes.who()
    unreachable_since = None
    while not done.wait(_BETWEEN_LOOKS):
        try:
            failures = processes.announced_failures()
            unreachable_since = None
        except jax.errors.JaxRuntimeError as error:
            unreachable_since = unreachable_since or time.monotonic()
            if own != 0 and time.monotonic() - unreachable_since > _PATIENCE:
                _follow(f"process 0 of {count} can't be reached, it seems to have died ({error})")
            continue
        for other, why in sorted(failures.items()):
            if other != own:
                _follow(f"process {other} of {count} failed: {why}")


def _await_name(timeout_seconds: int) -> None:
    """After an error of JAX's: it may be that another process died, and those who find out end this one, saying which."""
    own, count = processes.who()
    say = f"if another process died, its number follows within {timeout_seconds} seconds, in a list of unhealthy tasks"
    print(f"process {own} of {count}: {say}", file=sys.stderr, flush=True)
    time.sleep(timeout_seconds + _PATIENCE)


def _fail(why: str, code: int) -> NoReturn:
    """Ends this process as the one that failed."""
    own, count = processes.who()
    if count > 1:
        try:
            processes.announce_failure(why)
        except jax.errors.JaxRuntimeError as error:
            print(f"process {own} of {count} could not tell the others: {error}", file=sys.stderr)
        if own == 0:  # the others ask it
            time.sleep(10 * _BETWEEN_LOOKS)
    _leave(code)


def _follow(why: str) -> NoReturn:
    own, count = processes.who()
    print(f"process {own} of {count} ends: {why}", file=sys.stderr)
    _leave(_FOLLOWED)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---- all processes on this machine


def run_local(num_processes: int, timeout_seconds: int, command: Sequence[str]) -> int:
    """Runs a script in some processes on this machine; their lines are shown with their numbers.

    Returns: 0, or the exit code of the first that failed (as shells give it); the others are killed then.
    """
    address = f"127.0.0.1:{_free_port()}"
    started, readers = [], []
    options = ["--coordinator", address, "--num-processes", str(num_processes), "--timeout", str(timeout_seconds)]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the children end too
    signal.signal(signal.SIGINT, lambda number, frame: None)  # the children get it as well, and end in order
    try:
        for number in range(num_processes):
            own = [sys.executable, "-m", "fedjax_tx.launch", *options, "--process-id", str(number), *command]
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(
                own,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
            )
            started.append(process)
            _give_cores(process.pid, number, num_processes)
            readers.append(threading.Thread(target=_show, args=(number, process), daemon=True))
            readers[-1].start()
        code = _wait(started)
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
    for reader in readers:
        reader.join(_PATIENCE)
    return code


def _wait(started: list[subprocess.Popen]) -> int:
    """Waits until all have ended, or one failed; says which."""
    ended: dict[int, int] = {}
    deadline = float("inf")
    while len(ended) < len(started) and time.monotonic() < deadline:
        time.sleep(_BETWEEN_LOOKS / 4)
        for number, process in enumerate(started):
            if number not in ended and process.poll() is not None:
                ended[number] = process.returncode
        if set(ended.values()) - {0, _FOLLOWED, _INTERRUPTED}:
            break
        if any(ended.values()):  # the one that it followed is still to come, or others that were interrupted
            deadline = min(deadline, time.monotonic() + _PATIENCE)
    failed = {number: code for number, code in ended.items() if code != 0}
    if not failed:
        return 0
    number, code = min(failed.items(), key=lambda item: item[1] == _FOLLOWED)
    how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    print(f"process {number} of {len(started)} {how}; the others were ended", file=sys.stderr, flush=True)
    return 128 - code if code < 0 else code


def _show(number: int, process: subprocess.Popen) -> None:
    for line in process.stdout or ():
        sys.stdout.write(f"[{number}] {line}")
        sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _give_cores(pid: int, number: int, num_processes: int) -> None:
    """Deals the cores out, where there is one for each process at least: or each would take all of them for its own."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= num_processes:
            os.sched_setaffinity(pid, cores[number::num_processes])


if __name__ == "__main__":
    sys.exit(main())
