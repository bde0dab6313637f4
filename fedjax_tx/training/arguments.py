"""What ``run`` and ``sweep`` refuse before anything compiles."""

import json
from collections.abc import Mapping
from typing import Any

from fedjax_tx import check
from fedjax_tx.data import FederatedDataset
from fedjax_tx.privacy import Budget
from fedjax_tx.simulation import Experiment
from fedjax_tx.simulation.evaluate import Evaluation
from fedjax_tx.simulation.fingerprint import metric_names
from fedjax_tx.simulation.round import DeviceState
from fedjax_tx.training.directory import read_run_dir
from fedjax_tx.training.stop import EarlyStop
from fedjax_tx.types import Execution


def check_run(
    experiment,
    rounds,
    evaluate,
    execution,
    run_dir,
    evaluate_every,
    checkpoint_every=None,
    early_stop=None,
    config=None,
    progress=True,
):
    """Refuses arguments of ``run`` that are none, before anything compiles."""
    check.instance("experiment", experiment, Experiment, "an Experiment")
    check.integer("rounds", rounds, low=1)
    for name, data in check.mapping("evaluate", evaluate).items():
        check.instance(f"evaluate[{name!r}]", data, FederatedDataset, "a FederatedDataset")
        if name in ("train", "server", "aggregation", "") or "/" in name:
            check.fail_value("the names of evaluate", "without '/' and other than 'train', 'server', 'aggregation'", name)
    check.instance("execution", execution, Execution, "an Execution")
    read_run_dir(run_dir)
    check.integer("evaluate_every", evaluate_every, low=1)
    if checkpoint_every is not None:
        check.integer("checkpoint_every", checkpoint_every, low=1)
    if early_stop is not None:
        check.instance("early_stop", early_stop, EarlyStop, "an EarlyStop")
        groups = tuple(f"{name}/" for name in (*evaluate, "train"))
        if not early_stop.metric.startswith(groups):
            check.fail_value("early_stop.metric", f"to start with one of {', '.join(groups)}", early_stop.metric)
    for name, value in check.mapping("config", {} if config is None else config).items():
        _check_plain(f"config[{name!r}]", value)
    check.boolean("progress", progress)


def check_more(evaluate, early_stop, keep_best, callback, privacy) -> None:
    """Refuses what only ``run`` takes."""
    if keep_best is not None:
        check.instance("keep_best", keep_best, str, "the name of a metric")
        groups = tuple(f"{name}/" for name in evaluate)
        if not keep_best.startswith(groups):
            check.fail_value("keep_best", f"to start with one of {', '.join(groups)}, a name of evaluate", keep_best)
    if callback is not None:
        check.function("callback", callback)
    if privacy is not None:
        check.instance("privacy", privacy, Budget, "an ftx.privacy.Budget")
        if early_stop is not None and early_stop.metric.startswith("train/") and not privacy.private_metrics:
            expected = "to be told through noise, with Budget(private_metrics=True), where it decides what is released"
            check.fail_value("early_stop.metric of a private run", expected, early_stop.metric)


def check_metrics(experiment, evaluators: Mapping[str, Evaluation], shapes: DeviceState, early_stop, keep_best) -> None:
    """Finds before anything compiles what only the first evaluation would, many rounds later."""
    names = [one for name, evaluator in evaluators.items() for one in evaluator.names(name, shapes)]
    if keep_best is not None:
        check.one_of("keep_best", keep_best, names)
    if early_stop is not None:
        trained = [f"train/{name}" for name in metric_names(experiment)] if early_stop.metric.startswith("train/") else []
        check.one_of("early_stop.metric", early_stop.metric, [*names, *trained])


def _check_plain(name: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        check.fail_value(name, "to be a plain value: numbers, strings, True, False, None, and lists and dicts of them", value)
