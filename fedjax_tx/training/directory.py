"""The run directory as the host loop sees it: where a run begins or goes on, and where it leaves what it made.

Records are written before the checkpoint that they belong to, so at worst they are ahead of it; going on cuts them back.
Whatever was written before stays, whenever the run dies.

Of several processes the first alone reads and writes here, and tells the others what it read: they need not see its disk.
"""

import errno
import fcntl
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_tx import check, processes
from fedjax_tx.simulation import RoundState
from fedjax_tx.training import checkpoint, records
from fedjax_tx.training.ledger import new_ledger

Record = Mapping[str, Any]


class Start(NamedTuple):
    """Where a run begins: before round 0, or where it ended the last time."""

    state: RoundState
    ledger: dict[str, int | float]
    history: list[dict[str, Any]]
    best: "Kept | None" = None


class Kept(NamedTuple):
    """The best value of a metric, and the state of the run then."""

    value: float
    state: RoundState


class Store(NamedTuple):
    """Where a run leaves what it made.

    ``append(lines, timing)`` writes the records of some rounds, ``save(state, ledger)`` a checkpoint, ``keep(best)`` the best
    state so far, ``finish(summary)`` how the run ended; ``close()`` ends the writing.
    """

    append: Callable[[Sequence[Record], Record], None]
    save: Callable[[RoundState, dict[str, int | float]], None]
    keep: Callable[[Kept], None]
    finish: Callable[[Record], None]
    close: Callable[[], None]


def read_run_dir(run_dir: str | Path | None) -> Path | None:
    """Returns the directory that is meant; ``~`` is the user's own.

    Errors: ``TypeError`` if it is no path, ``ValueError`` if it is a URL.
    """
    if run_dir is None:
        return None
    if "://" in str(check.instance("run_dir", run_dir, (str, Path), "a path")):
        check.fail_value("run_dir", "to be a path (a bucket can be mounted as a folder)", run_dir)
    return Path(run_dir).expanduser()


def no_store() -> Store:
    """Returns the store of a run that leaves nothing."""

    def nothing(*given: Any) -> None:
        pass

    return Store(nothing, nothing, nothing, nothing, nothing)


def read_choices(directory: Path, description: Record) -> dict[str, Any]:
    """Returns the choices made for this machine the last time; makes the directory if there is none.

    Errors: ``ValueError`` if the directory holds another experiment.
    """

    def read():
        with writing("the run directory", directory):
            directory.mkdir(parents=True, exist_ok=True)
        saved = records.read_json(directory / "experiment.json")
        if saved is None:
            return {}
        records.refuse_other(directory, saved["experiment"], description)
        return saved["execution"]

    return processes.from_first(read)


def open_store(
    directory: Path, first: RoundState, rounds: int, evaluated: Callable[[str, int], bool], keep_best: str | None = None
) -> tuple[Store, Start]:
    """Opens a run directory and finds where the run goes on.

    Args:
      first: the state before round 0. rounds: how many rounds the run is to have.
      evaluated: whether a field of a round's record belongs to it wherever the run ends, given its name and the round.
      keep_best: the metric whose best state is kept, if any is.

    Errors: ``ValueError`` if more rounds than that were run, if all checkpoints are damaged, or a line of records is; if another
    process has it open.
    """
    opened = ExitStack()
    managers: list[Any] = []

    def read():
        opened.enter_context(locked(directory))
        with writing("the folder of checkpoints", directory):
            for name, keep in {"checkpoints": 3, **({} if keep_best is None else {"best": 1})}.items():
                managers.append(checkpoint.open_checkpoints(directory / name, keep))
                opened.callback(managers[-1].close)
        saved, history = _find_start(directory, first, rounds, evaluated, checkpoint.read_last(managers[0]))
        best = None if keep_best is None or saved is None else checkpoint.read_last(managers[1])
        return saved, history, best

    try:
        saved, history, best = processes.from_first(read)
        state, ledger = (first, new_ledger()) if saved is None else checkpoint.rebuild(first, saved)
        start = Start(state, ledger, history, _read_best(first, best, keep_best))
    except BaseException:
        opened.close()
        raise
    if not managers:
        return no_store(), start
    manager = managers[0]

    def append(lines, timing):
        with writing(f"the records up to round {timing['round']}", directory):
            records.append_lines(directory / "metrics.jsonl", lines)
            records.append_lines(directory / "timing.jsonl", [timing])

    def save(state, ledger):
        with writing(f"the checkpoint after round {state.round}", directory):
            records.flush(directory / "metrics.jsonl")
            checkpoint.save(manager, state, ledger)

    def keep(best):
        with writing(f"the best state, after round {best.state.round}", directory):
            checkpoint.save(managers[1], best.state, {str(keep_best): best.value})

    def finish(summary):
        with writing("summary.json", directory):
            records.write_json(directory / "summary.json", summary)

    return Store(append, save, keep, finish, opened.close), start


def _read_best(first: RoundState, saved: checkpoint.Saved | None, metric: str | None) -> Kept | None:
    """What was kept; nothing where it was kept by another metric."""
    if saved is None or metric is None or metric not in saved.notes["ledger"]:
        return None
    state, values = checkpoint.rebuild(first, saved)
    return Kept(float(values[metric]), state)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other processes from running in a directory; the operating system ends that with the process, however it ends.

    Errors: ``ValueError`` if another one is running there. File systems without locks are trusted.
    """
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            check.fail_value("run_dir", "to be no other running process's, which would write there too", str(directory))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield


@contextmanager
def writing(what: str, directory: Path) -> Iterator[None]:
    """Turns an error of the operating system in writing ``what`` into one that says what was kept and how to go on."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = _system_error(error)
        if why is None:
            raise
        kept = checkpoint.last_round(directory / "checkpoints")
        raise OSError(
            why.errno,
            f"could not write {what}: {why.strerror}. What was written before is kept (the last checkpoint: "
            f"after round {kept}); once it can be written there, the same call goes on",
            str(directory),
        ) from error


def _system_error(error: OSError | ValueError) -> OSError | None:
    """TensorStore, which writes arrays for orbax, tells the operating system's error in the text of a ``ValueError``."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def _find_start(directory, first, rounds, evaluated, saved) -> tuple[checkpoint.Saved | None, list[dict[str, Any]]]:
    """The checkpoint as it is, and the history until then."""
    done = 0 if saved is None else saved.notes["round"]
    if saved is not None:
        checkpoint.refuse_incomplete(first, saved)
    if done > rounds:
        check.fail_value("rounds", f">= {done}, the rounds that run_dir {str(directory)!r} holds already", rounds)
    return saved, _cut_records(directory, done, rounds, evaluated)


def _cut_records(directory: Path, done: int, rounds: int, evaluated: Callable[[str, int], bool]) -> list[dict[str, Any]]:
    """Cuts the records back to ``done`` rounds, as if the run had been stopped just there, and returns them.

    A record past the checkpoint is of rounds that will run again. An evaluation that was made only because the run was to end
    there would not have been made by a run that goes on.
    """
    metrics, timing = directory / "metrics.jsonl", directory / "timing.jsonl"
    history = [record for record in records.read_lines(metrics) if record["round"] <= done]
    missing = sorted({*range(1, done + 1)} - {record["round"] for record in history})
    if missing:
        listed = f"{missing[:5]}{' and more' if len(missing) > 5 else ''}"
        warnings.warn(f"{str(metrics)!r} lacks the records of rounds {listed}; the run goes on without them", stacklevel=2)
    if done < rounds:
        history = [{name: value for name, value in r.items() if evaluated(name, r["round"])} for r in history]
    with writing("the records", directory):
        records.rewrite_lines(metrics, history)
        records.rewrite_lines(timing, [record for record in records.read_lines(timing) if record["round"] <= done])
    return history
