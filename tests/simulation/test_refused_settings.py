"""Hyperparameters that an aggregator can't work with are refused wherever an experiment is made ready."""

import jax
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kwargs: COMPILED.append(event) if "backend_compile" in event else None
)
EXECUTION = ftx.Execution(num_lanes=1, rounds_per_call=1)


def loud(hyper):
    noisy = agg.chain(agg.clip_norm(1.0), agg.skellam_mean(hyper["noise"], 6, resolution=1e-6))
    return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=noisy)


def long(hyper):
    silent = agg.chain(agg.clip_norm(hyper["norm"]), agg.discrete_gaussian_mean(0.0, 6, resolution=1e-5))
    return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=silent)


LOUD, LONG = problems.experiment(loud, hyper={"noise": 1.0}), problems.experiment(long, hyper={"norm": 1.0})
CALLS = {
    "run": lambda: ftx.run(LOUD, 1, execution=EXECUTION, progress=False),
    "make_round": lambda: ftx.make_round(LOUD, EXECUTION),
    "a sweep of seeds": lambda: ftx.sweep(LOUD, 1, {"seed": [0, 1]}, execution=EXECUTION, progress=False),
    "a sweep whose second setting it is": lambda: ftx.sweep(LONG, 1, {"norm": [1.0, 1e5]}, execution=EXECUTION, progress=False),
}


@pytest.mark.parametrize("call", CALLS)
def test_noise_without_room_is_refused_before_anything_compiles(call):
    compiled = len(COMPILED)
    with pytest.raises(ValueError, match=r"expected the resolution of (skellam|discrete_gaussian)_mean\(.*to be coarser"):
        CALLS[call]()
    assert len(COMPILED) == compiled
