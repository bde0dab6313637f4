"""The next call, prepared while the devices are busy with this one.

A compiled program is dispatched, not awaited: until its results are read the host is free. That is when the next call's cohorts
are drawn, packed and (with ``placement="host"``) their rows gathered and sent. There is no thread.

What was prepared is kept beside the round function, never in a state, so that no checkpoint holds it. It serves exactly the call
that it was made for: of the same seed, round, number of rounds and state of the cohort source (the very object); else it is
dropped. What went wrong in preparing it is raised by that call, as if it had prepared itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_tx.types import PyTree


class CallKey(NamedTuple):
    """Which call: all that its plan depends on."""

    seed: int
    round: int
    num_rounds: int
    source_state: PyTree

    def same(self, other: "CallKey") -> bool:
        """Whether both are the same call."""
        return self[:3] == other[:3] and self.source_state is other.source_state


class Ahead(NamedTuple):
    """A call prepared ahead: what was made, or the error that stood in the way."""

    key: CallKey
    made: Any
    error: Exception | None


def prepare_ahead(key: CallKey, prepare: Callable[[], Any]) -> Ahead:
    """Returns what ``prepare`` makes for a call to come."""
    try:
        return Ahead(key, prepare(), None)
    except Exception as error:  # whatever it is belongs to the call to come, which raises it
        return Ahead(key, None, error)


def take_ahead(ahead: Ahead | None, key: CallKey, prepare: Callable[[], Any]) -> Any:
    """Returns what was prepared for just this call, or else what ``prepare`` makes now."""
    if ahead is None or not ahead.key.same(key):
        return prepare()
    if ahead.error is not None:
        raise ahead.error
    return ahead.made
