"""Ctrl-C while something runs that should end in order."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def delayed_interrupt(enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Gives ``interrupted()``: whether Ctrl-C (SIGINT) came since; the first one does nothing else.

    The second goes to the handler that was there before, by default ``KeyboardInterrupt`` at once. At the end it is back.
    Nothing changes where Python takes no signals (threads other than the main one) or where SIGINT is ignored.

    Example:
      >>> with delayed_interrupt() as interrupted:
      ...     signal.raise_signal(signal.SIGINT)
      ...     interrupted()
      True
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not enabled or not main or before in (None, signal.SIG_IGN):
        yield lambda: False
        return
    came: list[int] = []

    def note(number, frame):
        came.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
