"""When a run ends before its last round."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedjax_tx import check
from fedjax_tx.simulation.evaluate import is_worse_when_high


@dataclass(frozen=True)
class EarlyStop:
    """Ends a run when a metric reaches a target, or has not improved for some evaluations.

    Args:
      metric: a name as in ``result.history``, such as ``"test/loss"``. mode: whether ``"min"`` or ``"max"`` is better.
      target: stop when the metric is at least this good. patience: stop after this many evaluations without a new best.

    Errors: ``ValueError`` if neither a target nor a patience is given.

    Example:
      >>> stop = EarlyStop("test/loss", target=1.0)
      >>> stop.reason([{"round": 10, "test/loss": 0.9}])
      'test/loss reached 0.9, target 1.0'
    """

    metric: str
    mode: Literal["min", "max"] = "min"
    target: float | None = None
    patience: int | None = None

    def __post_init__(self):
        check.instance("metric", self.metric, str, "the name of a metric")
        check.one_of("mode", self.mode, ("min", "max"))
        if self.target is None and self.patience is None:
            raise ValueError("expected a target or a patience, got neither")
        if self.target is not None:
            check.number("target", self.target)
        if self.patience is not None:
            check.integer("patience", self.patience, low=1)

    def reason(self, evaluations: Sequence[dict[str, Any]]) -> str | None:
        """Returns why to stop after these evaluations (records in order), None to go on.

        Errors: ``ValueError`` if the last record has no such metric.
        """
        if evaluations and self.metric not in evaluations[-1]:
            check.one_of("early_stop.metric", self.metric, sorted(set(evaluations[-1]) - {"round"}))
        values = [record[self.metric] for record in evaluations]
        sign = 1 if self.mode == "max" else -1
        scores = [-math.inf if math.isnan(value) else sign * value for value in values]  # what is no number is never the best
        if scores and self.target is not None and scores[-1] >= sign * self.target:
            return f"{self.metric} reached {values[-1]:g}, target {self.target}"
        best = max(range(len(scores)), key=lambda number: scores[number], default=0)
        if self.patience is not None and len(scores) - 1 - best >= self.patience:
            return f"{self.metric} no better for {self.patience} evaluations than {values[best]:g}"
        return None


def is_better(metric: str, record: Mapping[str, Any], best: Any) -> bool:
    """Returns whether a record's metric is better than the ``value`` of the best so far, or the first that is finite."""
    value = record[metric]
    if not math.isfinite(value):
        return False
    worse_when_high = is_worse_when_high(metric.split("/")[1])
    return best is None or (value < best.value if worse_when_high else value > best.value)
