"""Live progress: a bar on a terminal and in a notebook, plain lines elsewhere (a log file, a pipe)."""

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class Reporter(NamedTuple):
    """``say(text)`` prints a line, ``update(record, examples_per_second)`` shows a round, ``close()`` ends."""

    say: Callable[[str], None]
    update: Callable[[Mapping[str, Any], float], None]
    close: Callable[[], None]


def make_reporter(rounds: int, done: int, enabled: bool = True, console: Console | None = None) -> Reporter:
    """Returns a reporter for a run of ``rounds`` rounds of which ``done`` are done."""
    if not enabled:
        return Reporter(lambda text: None, lambda record, rate: None, lambda: None)
    console = Console() if console is None else console
    # Without ipywidgets, rich shows nothing live in a notebook.
    live = find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
    return _bar(console, rounds, done) if live else _lines(console, rounds)


def _bar(console: Console, rounds: int, done: int) -> Reporter:
    columns = (TextColumn("round"), MofNCompleteColumn(), BarColumn(bar_width=24), TimeElapsedColumn())
    bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"), console=console)
    task = bar.add_task("compiling", total=rounds, completed=done)
    bar.start()

    def update(record, rate):
        bar.update(task, completed=record["round"], description=_short(record, rate))
        if _evaluated(record):
            _print(bar.console, f"round {record['round']}: {_evaluated(record)}")

    return Reporter(lambda text: _print(bar.console, text), update, bar.stop)


def _lines(console: Console, rounds: int) -> Reporter:
    last = [float("-inf")]

    def update(record, rate):
        now, evaluated = time.monotonic(), _evaluated(record)
        if evaluated or now - last[0] > _SECONDS_BETWEEN_LINES or record["round"] == rounds:
            last[0] = now
            tail = f"  {evaluated}" if evaluated else ""
            _print(console, f"round {record['round']}/{rounds}  {_short(record, rate)}{tail}")

    return Reporter(lambda text: _print(console, text), update, lambda: None)


def _short(record: Mapping[str, Any], rate: float) -> str:
    train = [f"{name} {value:.4g}" for name, value in record.items() if name.startswith("train/")]
    return "  ".join([*train, f"{rate:.0f} examples/s"])


def _evaluated(record: Mapping[str, Any]) -> str:
    """The means (not the spreads) of the evaluation sets, e.g. ``test/loss 2.13``."""
    means = [name for name in record if name.count("/") == 1 and name.split("/")[0] not in _OWN_GROUPS]
    return "  ".join(f"{name} {record[name]:.4g}" for name in means)


_OWN_GROUPS = ("train", "server", "aggregation")


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
