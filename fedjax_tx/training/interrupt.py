"""Ctrl-C, or a scheduler's SIGTERM, while something runs that should end in order."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def delayed_interrupt(enabled: bool = True) -> Iterator[Callable[[], int]]:
    """Gives ``interrupted()``: the number of the signal that came since, Ctrl-C's (SIGINT) or SIGTERM; 0 if none did.

    The first does nothing else; a second goes to the handler that was there before, which ends the process. At the end it is
    back. Nothing changes where Python takes no signals (threads other than the main one), for signals that are ignored, and for
    SIGTERM where the script handles it itself.

    Example:
      >>> with delayed_interrupt() as interrupted:
      ...     signal.raise_signal(signal.SIGINT)
      ...     interrupted() == signal.SIGINT
      True
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    if taken.get(signal.SIGTERM) is not signal.SIG_DFL:
        taken.pop(signal.SIGTERM, None)
    if not enabled or threading.current_thread() is not threading.main_thread():
        taken = {}
    came: list[int] = []

    def note(number, frame):
        came.append(number)
        signal.signal(number, taken[number])

    for number in taken:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def interruption(number: int, text: str) -> BaseException:
    """Returns what ends a script after a signal: ``KeyboardInterrupt``, or the exit code that shells know SIGTERM by.

    Example:
      >>> interruption(signal.SIGTERM, "saved").code
      143
    """
    return KeyboardInterrupt(text) if number == signal.SIGINT else SystemExit(128 + number)
