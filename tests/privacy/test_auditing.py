"""Lower bounds on epsilon: by hand, never above the truth, and above a claim that is wrong."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx import aggregation as agg
from fedjax_tx import privacy

DELTA = 1e-5
CANARY = {"w": jnp.zeros(4).at[1].set(50.0), "b": jnp.zeros(())}


def noisy(noise):
    return agg.chain(agg.clip_norm(1.0), agg.fixed_mean(10), agg.gaussian_noise(noise))


def claiming(noise, claimed):
    """Noise of one multiplier that is said to be of another."""
    return noisy(noise)._replace(noise_multiplier=claimed)


def shifted(shift, number=2000, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(shift, 1, number), generator.normal(0, 1, number)


def test_bounds_of_canaries_that_are_all_told_apart_by_hand():
    inside, outside = np.ones(400), np.zeros(400)  # a quarter of them chooses the threshold
    # Of 300 no error: its chance is at most 1 - 0.025^(1/300) on either side.
    error = 1 - 0.025 ** (1 / 300)
    have = privacy.epsilon_lower_bound(inside, outside, 1e-9, method="clopper_pearson")
    assert have == pytest.approx(math.log((1 - error) / error), rel=1e-6)
    # 300 guesses "in", all right: each is at most e^epsilon / (1 + e^epsilon) likely.
    right = 0.05 ** (1 / 300)
    assert privacy.epsilon_lower_bound(inside, outside, 1e-9) == pytest.approx(math.log(right / (1 - right)), rel=1e-4)


@pytest.mark.parametrize("method", ["one_run", "clopper_pearson"])
def test_as_few_scores_as_are_allowed_make_a_bound_and_fewer_are_refused(method):
    four, three = [0.0] * 4, [0.0] * 3
    assert privacy.epsilon_lower_bound(four, four, DELTA, method=method) == 0
    for inside, outside, name in ((four, three, "scores_out"), (three, four, "scores_in")):
        with pytest.raises(ValueError, match=rf"expected {name} to have shape \[canary\] with 4 canaries or more, got \(3,\)"):
            privacy.epsilon_lower_bound(inside, outside, DELTA, method=method)


@pytest.mark.parametrize("method", ["one_run", "clopper_pearson"])
def test_a_bound_grows_with_what_scores_tell_and_stays_below_the_truth(method):
    bounds = [privacy.epsilon_lower_bound(*shifted(shift), DELTA, method=method) for shift in (0, 1, 2)]
    # A shift of one standard deviation is the Gaussian mechanism of multiplier 1.
    truth = [privacy.epsilon(1 / shift, 1.0, 1, DELTA) for shift in (1, 2)]
    assert bounds[0] == 0 and 0.5 < bounds[1] < truth[0] and 1.5 < bounds[2] < truth[1]
    surer = privacy.epsilon_lower_bound(*shifted(2), DELTA, method=method, confidence=0.999)
    assert surer < bounds[2]


def test_without_a_difference_a_bound_of_some_confidence_is_wrong_as_seldom_as_it_says():
    for method in ("one_run", "clopper_pearson"):
        wrong = [privacy.epsilon_lower_bound(*shifted(0, 100, seed), DELTA, method=method) > 0 for seed in range(100)]
        assert sum(wrong) <= 12  # of 100 at 5 %: more by a chance of 0.001


def test_noise_that_is_not_what_it_says_is_caught_and_what_is_true_is_not():
    # Multipliers so large that 20,000 trials tell them apart.
    found = privacy.audit_aggregator(claiming(2.0, 8.0), CANARY, DELTA, trials=20_000)
    assert found.refuted and found.claimed == privacy.epsilon(8.0, 1.0, 1, DELTA)
    assert found.scores_in.shape == found.scores_out.shape == (10_000,)
    # What the canary adds to a mean over 10, clipped to norm 1; and noise of the scale that it really has.
    assert found.scores_in.mean() - found.scores_out.mean() == pytest.approx(0.1, abs=5 * 0.2 * math.sqrt(2e-4))
    assert found.scores_out.std() == pytest.approx(0.2, rel=0.04)
    true = found._replace(claimed=privacy.epsilon(2.0, 1.0, 1, DELTA))
    assert not true.refuted and true.epsilon > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("claimed", [1.0, 4.0])
def test_halved_noise_is_caught_by_1e5_trials(claimed):
    half = privacy.audit_aggregator(claiming(claimed / 2, claimed), CANARY, DELTA, trials=100_000)
    assert half.refuted
    true = privacy.audit_aggregator(noisy(claimed), CANARY, DELTA, trials=100_000)
    assert not true.refuted and true.epsilon > 0.4 * true.claimed


@pytest.mark.slow
def test_a_clip_that_does_not_clip_is_caught():
    forgotten = agg.chain(agg.stage("unclipped()", sensitivity=lambda bound: 1.0), agg.fixed_mean(10), agg.gaussian_noise(8.0))
    assert privacy.audit_aggregator(forgotten, CANARY, DELTA, trials=20_000).refuted
    assert not privacy.audit_aggregator(noisy(8.0), CANARY, DELTA, trials=20_000).refuted


def test_noise_that_forgets_the_weight_of_a_client_is_caught():
    forgetful = agg.fixed_mean(10, max_weight=20)._replace(sensitivity=lambda bound: bound / 10)
    noisy = agg.chain(agg.clip_norm(1.0), forgetful, agg.gaussian_noise(4.0))
    assert privacy.audit_aggregator(noisy, CANARY, DELTA, trials=2_000).refuted


def test_what_has_no_noise_claims_nothing():
    found = privacy.audit_aggregator(agg.mean(), CANARY, DELTA, trials=400)
    assert found.claimed == math.inf and not found.refuted and found.epsilon > 3


@pytest.mark.slow
def test_the_first_round_of_correlated_noise_is_audited_against_what_it_costs():
    """Of 64 rounds' tree a client is in seven nodes and one of them is in round 1, whose noise is so much the larger."""
    tree = privacy.tree_factorization(64, max_participations=1)
    noisy = agg.chain(agg.clip_norm(1.0), agg.fixed_mean(10), agg.correlated_noise(0.5, tree))
    found = privacy.audit_aggregator(noisy, CANARY, DELTA, trials=20_000)
    assert found.claimed == privacy.epsilon(0.5 * math.sqrt(7), 1.0, 1, DELTA)
    assert 0.4 * found.claimed < found.epsilon < found.claimed
