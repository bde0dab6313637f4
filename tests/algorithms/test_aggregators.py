"""Methods that average updates do so by any aggregator: their own mean given by name changes nothing, another one is theirs."""

import jax
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import algorithms
from fedjax_tx.aggregation import chain, clip_norm, fixed_mean, gaussian_noise, mean, median

TASK, SGD = problems.LOGISTIC, optax.sgd(0.1)
STALE = ftx.data.async_cohorts(np.arange(1.0, 7.0), concurrency=3, buffer_size=3, max_staleness=3)
METHODS = {
    "ditto": lambda **given: algorithms.ditto(TASK, SGD, 0.1, 0.5, **given),
    "reptile": lambda **given: algorithms.reptile(TASK, SGD, 0.5, **given),
    "scaffold": lambda **given: algorithms.scaffold(TASK, 0.1, **given),
    "fed_ac": lambda **given: algorithms.fed_ac(TASK, 0.1, 0.5, 4, **given),
    "fed_nova": lambda **given: algorithms.fed_nova(TASK, SGD, **given),
    "fed_buff": lambda **given: algorithms.fed_buff(TASK, SGD, 3, **given),
    "fed_async": lambda **given: algorithms.fed_async(TASK, SGD, 3, **given),
    "delayed_nesterov": lambda **given: algorithms.delayed_nesterov(TASK, SGD, 3, 0.7, **given),
}


def params_after(algorithm, cohorts, rounds=2):
    experiment = problems.experiment(algorithm, hyper={}, cohorts=cohorts)
    return problems.play(experiment, rounds, rounds_per_call=rounds)[0].device.server.params


def equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_an_aggregator_is_that_of_the_training_pass(name):
    own = mean(weighted=name != "reptile")
    names = [METHODS[name](**given).passes[-1].aggregator.name for given in ({}, {"aggregator": own}, {"aggregator": median()})]
    assert names[0] == names[1] != names[2]
    assert "median()" in names[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_mean_by_name_is_the_method_itself_and_another_aggregator_is_not(name):
    cohorts = STALE if METHODS[name]().max_version else ftx.data.fixed_cohorts([[3, 0, 5]])
    own = mean(weighted=name != "reptile")
    default, given, robust = (
        params_after(METHODS[name](**one), cohorts) for one in ({}, {"aggregator": own}, {"aggregator": median()})
    )
    assert equal(default, given) and not equal(default, robust)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(robust))


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_buffer_of_nobody_releases_noise_where_the_aggregator_does(noise):
    nobody = ftx.data.fixed_cohorts([[1]])  # who holds no example
    private = chain(clip_norm(1.0), fixed_mean(2), gaussian_noise(noise))
    moved, kept = (params_after(METHODS["fed_buff"](aggregator=one), nobody, rounds=1) for one in (private, None))
    assert equal(moved, kept) == (noise == 0)
