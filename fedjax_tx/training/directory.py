"""The run directory as the host loop sees it: where a run begins or goes on, and where it leaves what it made.

Records are written before the checkpoint that they belong to, so at worst they are ahead of it; going on cuts them back.
Whatever was written before stays, whenever the run dies.

Of several processes the first alone reads and writes here, and tells the others what it read: they need not see its disk.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


class Store(NamedTuple):
    """Where a run leaves what it made.

    ``append(lines, timing)`` writes the records of some rounds, ``save(state, ledger)`` a checkpoint, ``finish(summary)`` how the
    run ended; ``close()`` ends the writing.
    """

    append: Callable[[Sequence[Record], Record], None]
    save: Callable[[RoundState, dict[str, int | float]], None]
    finish: Callable[[Record], None]
    close: Callable[[], None]


def no_store() -> Store:
    """Returns the store of a run that leaves nothing."""
    return Store(lambda lines, timing: None, lambda state, ledger: None, lambda summary: None, lambda: None)


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


def open_store(directory: Path, first: RoundState, rounds: int, evaluated: Callable[[str, int], bool]) -> tuple[Store, Start]:
    """Opens a run directory and finds where the run goes on.

    Args:
      first: the state before round 0. rounds: how many rounds the run is to have.
      evaluated: whether a field of a round's record belongs to it wherever the run ends, given its name and the round.

    Errors: ``ValueError`` if more rounds than that were run, if all checkpoints are damaged, or a line of records is.
    """
    managers = []

    def read():
        with writing("the folder of checkpoints", directory):
            managers.append(checkpoint.open_checkpoints(directory / "checkpoints"))
        return _find_start(directory, first, rounds, evaluated, checkpoint.read_last(managers[0]))

    try:
        saved, history = processes.from_first(read)
        state, ledger = (first, new_ledger()) if saved is None else checkpoint.rebuild(first, saved)
    except BaseException:
        for manager in managers:
            manager.close()
        raise
    start = Start(state, ledger, history)
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

    def finish(summary):
        with writing("summary.json", directory):
            records.write_json(directory / "summary.json", summary)

    return Store(append, save, finish, manager.close), start


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
