"""Ctrl-C: the rounds under way end, a checkpoint is written, and it is said how to go on."""

import os
import re
import signal
import threading

import pytest
import runs

import fedjax_tx as ftx
from fedjax_tx.simulation import rounds
from fedjax_tx.training import checkpoint
from fedjax_tx.training.interrupt import delayed_interrupt


def press_in_round(monkeypatch, number: int, times: int = 1, signal_number: int = signal.SIGINT) -> None:
    """Ctrl-C, or another signal, comes while a round (counted from 1) is under way, in the midst of a call."""
    run_rounds = rounds.run_rounds

    def press_and_run(*arguments):
        first, count = arguments[4:6]
        if first < number <= first + count:
            for _ in range(times):
                os.kill(os.getpid(), signal_number)
        return run_rounds(*arguments)

    monkeypatch.setattr(rounds, "run_rounds", press_and_run)


@pytest.fixture(scope="module")
def seven():
    """A run of seven rounds that nothing interrupted."""
    return runs.run(7)


def test_ctrl_c_ends_after_the_rounds_under_way_and_the_run_goes_on(seven, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    press_in_round(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt) as caught:
        runs.run(7, tmp_path / "run", progress=True)
    told = re.search(r"interrupted after round (\d); all is saved in '(.*)': the same call goes on from there", str(caught.value))
    assert told[2] == str(tmp_path / "run")
    assert str(caught.value) in capsys.readouterr().out
    saved = checkpoint.last_round(tmp_path / "run" / "checkpoints")
    assert saved == int(told[1])
    assert 4 <= saved <= 5  # at most two rounds in a call
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.undo()
    runs.assert_same_run(runs.run(7, tmp_path / "run"), seven)


def test_ctrl_c_in_the_last_round_still_stops_the_script(seven, tmp_path, monkeypatch):
    press_in_round(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt, match="interrupted after round 7"):
        runs.run(7, tmp_path / "run")
    monkeypatch.undo()
    runs.assert_same_run(runs.run(7, tmp_path / "run"), seven)


def test_a_second_ctrl_c_ends_at_once(seven, tmp_path, monkeypatch):
    press_in_round(monkeypatch, 5, times=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        runs.run(7, tmp_path / "run")
    assert str(caught.value) == ""
    assert checkpoint.last_round(tmp_path / "run" / "checkpoints") == 3
    monkeypatch.undo()
    runs.assert_same_run(runs.run(7, tmp_path / "run"), seven)


def test_without_a_directory_ctrl_c_ends_at_once(monkeypatch):
    press_in_round(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt) as caught:
        runs.run(7)
    assert str(caught.value) == ""


def test_a_run_in_another_thread_leaves_signals_alone(seven, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(runs.run(7, tmp_path / "run")))
    thread.start()
    thread.join()
    runs.assert_same_run(results[0], seven)


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with delayed_interrupt() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert not interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_second_goes_to_the_handler_that_was_there():
    came = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        with delayed_interrupt() as interrupted:
            assert not interrupted()
            signal.raise_signal(signal.SIGINT)
            assert interrupted() and not came
            signal.raise_signal(signal.SIGINT)
            assert came == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_takes_the_handler_away_too(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="early_stop.metric"):
        runs.run(3, tmp_path / "run", early_stop=ftx.EarlyStop("test/los", patience=1))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_schedulers_sigterm_ends_the_run_with_a_checkpoint_too(seven, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    press_in_round(monkeypatch, 4, signal_number=signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        runs.run(7, tmp_path / "run")
    assert caught.value.code == 128 + signal.SIGTERM
    assert 4 <= checkpoint.last_round(tmp_path / "run" / "checkpoints") <= 5
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    runs.assert_same_run(runs.run(7, tmp_path / "run"), seven)


def test_a_script_that_handles_sigterm_keeps_its_handler():
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with delayed_interrupt() as interrupted:
            signal.raise_signal(signal.SIGTERM)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
