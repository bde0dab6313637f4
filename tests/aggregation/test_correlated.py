"""Noise that is correlated over rounds: its scale, what is taken back, who may stand beside it, and runs that stop and go on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from chances import has_scale

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx import privacy

ROUNDS, NOISE, CLIP, DENOMINATOR, SIZE = 8, 1.5, 0.5, 4, 2000
TREE = privacy.tree_factorization(ROUNDS, max_participations=1)
STDDEV = NOISE * 2 * CLIP / DENOMINATOR  # of the 2^3 rounds' tree a client is in four nodes: its sensitivity is 2


def private(noise=NOISE, factorization=TREE):
    return agg.chain(agg.clip_norm(CLIP), agg.fixed_mean(DENOMINATOR), agg.correlated_noise(noise, factorization))


@functools.cache
def released():
    """What eight rounds release to which nobody sends anything, [round, coordinate], and their infos."""
    aggregator, state, rows, infos = private(), None, [], []
    run = jax.jit(functools.partial(agg.apply.aggregate_arrays, aggregator))
    template = {"w": jnp.zeros((2, SIZE))}
    state = aggregator.init({"w": jnp.zeros(SIZE)})
    for number in range(ROUNDS):
        update, state, info = run(template, jnp.ones(2), state, jax.random.key(number))
        rows.append(update["w"])
        infos.append(info)
    return np.asarray(rows), infos


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_running_sums_have_noise_of_as_many_nodes_as_the_rounds_number_has_bits(factor, accepted):
    rows, infos = released()
    for number, total in enumerate(np.cumsum(rows, 0), start=1):
        assert has_scale(total, factor * STDDEV * np.sqrt(number.bit_count())) == accepted
    np.testing.assert_allclose([float(info["noise_stddev"]) for info in infos], STDDEV, rtol=1e-6)


def test_what_is_left_when_correlation_is_undone_is_new_in_each_round():
    rows, _ = released()
    sums = np.cumsum(rows, 0)
    nodes = np.array([sums[end - 1] - (sums[end - (end & -end) - 1] if end & (end - 1) else 0) for end in range(1, ROUNDS + 1)])
    assert all(has_scale(node, STDDEV) for node in nodes)
    assert np.abs(np.corrcoef(nodes)[np.triu_indices(ROUNDS, 1)]).max() < 5 / np.sqrt(SIZE)
    # Rounds themselves are correlated: in the second the noise of the first is taken back.
    assert np.corrcoef(rows)[0, 1] < -0.5


def test_it_is_the_only_noise_of_a_chain_and_waits_for_a_bound():
    alone = private()
    assert alone.factorization is TREE and alone.noise_multiplier == NOISE and alone.releases_empty
    with pytest.raises(ValueError, match=r"expected correlated_noise\(1.5, .*\) to be the only noise of a chain, got correlated"):
        agg.chain(agg.clip_norm(1.0), agg.fixed_mean(2), agg.correlated_noise(NOISE, TREE), agg.gaussian_noise(1.0))
    with pytest.raises(ValueError, match=r"expected what comes before correlated_noise\(1.5, .*\) to bound the influence"):
        agg.chain(agg.clip_norm(1.0), agg.mean(), agg.correlated_noise(NOISE, TREE))


# ---- in runs

FOUR = privacy.tree_factorization(4, 2)
ALGORITHM = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=private(factorization=FOUR))
EXPERIMENT = problems.experiment(ALGORITHM, cohorts=ftx.data.separated_cohorts(2, 2))
OPTIONS = {
    **{"privacy": privacy.Budget(delta=1e-3, accountant="rdp"), "progress": False},
    "execution": ftx.Execution(num_lanes=1, rounds_per_call=1),
}


def test_a_run_that_stops_goes_on_with_the_noise_that_is_to_be_taken_back(tmp_path):
    whole = ftx.run(EXPERIMENT, 4, **OPTIONS)
    ftx.run(EXPERIMENT, 3, run_dir=tmp_path / "run", **OPTIONS)  # the fourth takes back the noise of the second and the third
    resumed = ftx.run(EXPERIMENT, 4, run_dir=tmp_path / "run", **OPTIONS)
    np.testing.assert_array_equal(whole.params["w"], resumed.params["w"])
    assert whole.ledger == resumed.ledger
    assert whole.ledger["epsilon"] == privacy.epsilon_of_correlated_noise(NOISE, FOUR, 4, 1e-3, "rdp")


def test_more_rounds_than_the_factorisation_is_made_for_are_refused_before_the_first():
    with pytest.raises(ValueError, match=r"expected rounds <= 4, those that tree_factorization\(4, 2, None\) is made for, got 5"):
        ftx.run(EXPERIMENT, 5, **OPTIONS)
