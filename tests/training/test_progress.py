"""Progress: a bar on a terminal, plain lines elsewhere, nothing where it isn't wanted."""

from io import StringIO

import runs
from rich.console import Console

from fedjax_tx.training import progress
from fedjax_tx.training.progress import make_reporter

ROUND = {"round": 1, "train/loss": 2.0, "server/update_norm": 1.0, "aggregation/noise": 3.0}
EVALUATED = {"round": 2, "train/loss": 1.5, "test/loss": 1.25, "test/loss/client_p10": 0.5}


def play(console, records=(ROUND, EVALUATED), rounds=4, done=0):
    reporter = make_reporter(rounds, done, console=console)
    reporter.say("resuming [after] round 0")
    for record in records:
        reporter.update(record, 1234.5)
    reporter.close()
    return console.file.getvalue()


def test_a_terminal_shows_a_bar():
    text = play(Console(force_terminal=True, file=StringIO(), width=120))
    assert "━" in text
    assert "2/4" in text
    assert "train/loss 1.5  1234 examples/s" in text
    assert "resuming [after] round 0" in text
    assert "round 2: test/loss 1.25" in text
    assert "\x1b[" in text


def test_a_bar_of_a_run_that_goes_on_begins_where_it_was():
    text = play(Console(force_terminal=True, file=StringIO(), width=120), records=(), rounds=8, done=6)
    assert "6/8" in text
    assert "0/8" not in text


def test_a_log_file_gets_plain_lines():
    text = play(Console(file=StringIO(), width=40))
    assert text.splitlines() == [
        "resuming [after] round 0",
        "round 1/4  train/loss 2  1234 examples/s",
        "round 2/4  train/loss 1.5  1234 examples/s  test/loss 1.25",
    ]


def test_a_log_file_is_not_flooded(monkeypatch):
    records = [{"round": number, "train/loss": 1.0} for number in range(1, 9)]
    console = Console(file=StringIO())
    assert [line.split()[1] for line in play(console, records, 8).splitlines()[1:]] == ["1/8", "8/8"]
    now = iter(range(0, 48, 6))  # a line when more than ten seconds have gone by
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    text = play(Console(file=StringIO()), records, 8)
    assert [line.split()[1] for line in text.splitlines()[1:]] == ["1/8", "3/8", "5/8", "7/8", "8/8"]


def test_nothing_is_shown_where_it_is_not_wanted():
    console = Console(file=StringIO())
    reporter = make_reporter(4, 0, enabled=False, console=console)
    reporter.say("hello")
    reporter.update(ROUND, 1.0)
    reporter.close()
    assert console.file.getvalue() == ""


def test_a_run_tells_each_evaluation_and_where_it_goes_on(tmp_path, capsys):
    runs.run(3, tmp_path / "run", progress=True)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("round 1/3  train/loss ")
    assert shown[-1].startswith("round 3/3  train/loss ")
    assert "test/loss" in shown[-1]
    runs.run(6, tmp_path / "run", progress=True)
    assert capsys.readouterr().out.splitlines()[0] == "resuming after round 3"
    runs.run(6, progress=False)
    assert capsys.readouterr().out == ""


def test_a_notebook_without_widgets_gets_lines(monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    shown = []
    monkeypatch.setattr(progress, "_print", lambda console, text: shown.append(text))
    console = Console(file=StringIO(), force_terminal=True)
    console.is_jupyter = True
    assert play(console) == ""  # no bar
    assert shown[-1].startswith("round 2/4  train/loss 1.5")
