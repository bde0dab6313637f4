"""Early stopping: a target, patience, what is not a number, wrong settings."""

import math
import re

import pytest

import fedjax_tx as ftx


def records(*values, name="test/loss"):
    return [{"round": number, name: value} for number, value in enumerate(values, 1)]


def test_a_target_counts_only_at_the_last_evaluation():
    stop = ftx.EarlyStop("test/loss", target=1.0)
    assert stop.reason([]) is None
    assert stop.reason(records(2.0, 1.5)) is None
    assert stop.reason(records(2.0, 1.0)) == "test/loss reached 1, target 1.0"
    assert stop.reason(records(0.9, 1.1)) is None


def test_more_is_better_where_that_is_said():
    stop = ftx.EarlyStop("test/accuracy", "max", target=0.9, patience=2)
    assert stop.reason(records(0.5, 0.95, name="test/accuracy")) == "test/accuracy reached 0.95, target 0.9"
    assert stop.reason(records(0.5, 0.4, 0.5, name="test/accuracy")) == "test/accuracy no better for 2 evaluations than 0.5"
    assert stop.reason(records(0.5, 0.4, 0.6, name="test/accuracy")) is None


def test_patience_counts_evaluations_since_the_best():
    stop = ftx.EarlyStop("test/loss", patience=3)
    assert stop.reason(records(2.0, 2.0, 2.0)) is None
    assert stop.reason(records(2.0, 2.0, 2.0, 2.0)) == "test/loss no better for 3 evaluations than 2"
    assert stop.reason(records(2.0, 2.0, 1.9, 2.0, 2.0)) is None


def test_what_is_no_number_is_never_the_best():
    stop = ftx.EarlyStop("test/loss", target=0.5, patience=2)
    assert stop.reason(records(math.nan, 3.0, 2.0, 1.0)) is None
    assert stop.reason(records(1.0, math.nan, math.nan)) == "test/loss no better for 2 evaluations than 1"
    assert stop.reason(records(math.nan, math.nan)) is None
    assert stop.reason(records(math.nan, math.nan, math.nan)) == "test/loss no better for 2 evaluations than nan"


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"metric": 3, "patience": 1}, TypeError, "expected metric to be the name of a metric, got 3 (int)"),
        ({"metric": "a/b", "mode": "low", "patience": 1}, ValueError, "expected mode to be one of 'min', 'max', got 'low'"),
        ({"metric": "a/b", "target": "1"}, TypeError, "expected target to be a number, got '1' (str)"),
        ({"metric": "a/b", "target": math.inf}, ValueError, "expected target to be finite, got inf"),
        ({"metric": "a/b", "patience": 1.0}, TypeError, "expected patience to be an integer, got 1.0 (float)"),
        ({"metric": "a/b", "patience": 0}, ValueError, "expected patience >= 1, got 0"),
        ({"metric": "a/b"}, ValueError, "expected a target or a patience, got neither"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_settings_are_named(unchecked, settings, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        ftx.EarlyStop(**settings)
