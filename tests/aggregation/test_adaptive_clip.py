"""Adaptive clipping by hand, at its limit, in the long run, and the two noises that one multiplier becomes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chances import has_scale

from fedjax_tx import aggregation as agg


def aggregate(aggregator, rows, state=None, key=0):
    weights = np.ones(len(rows))
    update, state, info = agg.aggregate(
        aggregator, {"w": jnp.asarray(rows, jnp.float32)}, weights, state=state, key=jax.random.key(key)
    )
    return np.asarray(update["w"]), state, {name: float(value) for name, value in info.items()}


def test_two_rounds_by_hand():
    # Norms 1, 5 and 10 of two coordinates; C = 5 in the first round: two of three are within.
    rows = [[0.0, 1.0], [3.0, 4.0], [6.0, 8.0]]
    adaptive = agg.adaptive_clip(agg.fixed_mean(3), quantile=0.5, first_norm=5.0, learning_rate=0.2)
    update, state, info = aggregate(adaptive, rows)
    np.testing.assert_allclose(update, [6 / 3, 9 / 3], rtol=1e-6)
    np.testing.assert_allclose([info["clip_norm"], info["within_clip_norm"]], [5.0, 2 / 3], rtol=1e-6)
    second = 5 * np.exp(-0.2 * (2 / 3 - 1 / 2))
    np.testing.assert_allclose(state.clip_norm, second, rtol=1e-6)
    # Now C < 5: the last two are both cut to (0.6, 0.8) C, and one of three is within.
    update, state, info = aggregate(adaptive, rows, state)
    np.testing.assert_allclose(update, [0.6 * 2 * second / 3, (1 + 0.8 * 2 * second) / 3], rtol=1e-6)
    np.testing.assert_allclose(state.clip_norm, second * np.exp(-0.2 * (1 / 3 - 1 / 2)), rtol=1e-6)


def test_without_learning_it_clips_as_a_fixed_norm_does():
    rows = np.random.default_rng(0).standard_normal((3, 2))
    fixed = agg.chain(agg.clip_norm(1.5), agg.fixed_mean(4))
    adaptive = agg.adaptive_clip(agg.fixed_mean(4), first_norm=1.5, learning_rate=0.0)
    update, state, _ = aggregate(adaptive, rows)
    np.testing.assert_allclose(update, aggregate(fixed, rows)[0], rtol=1e-5)
    assert state.clip_norm == np.float32(1.5)


def test_who_does_not_come_counts_half_for_a_mean_of_fixed_denominator():
    _, _, info = aggregate(agg.adaptive_clip(agg.fixed_mean(4), first_norm=5.0), np.ones((3, 2)))
    assert info["within_clip_norm"] == pytest.approx((3 + 1 * 0.5) / 4)
    _, _, info = aggregate(agg.adaptive_clip(agg.mean(), first_norm=5.0), np.ones((3, 2)))
    assert info["within_clip_norm"] == pytest.approx(1.0)


def test_an_update_that_is_not_finite_is_clipped_to_nothing_and_counts_as_too_long():
    update, _, info = aggregate(agg.adaptive_clip(agg.mean(), first_norm=5.0), [[np.inf, 0.0], [3.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(update, [1.0, 1.0], rtol=1e-6)
    assert info["within_clip_norm"] == pytest.approx(2 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("quantile", [0.2, 0.8])
def test_the_norm_comes_to_the_quantile_of_the_norms_from_afar_and_stays(quantile, noise):
    clients = 200
    norms = np.random.default_rng(0).lognormal(0.0, 1.0, clients)
    aggregator = agg.adaptive_clip(agg.fixed_mean(clients), agg.gaussian_noise(noise), quantile=quantile)
    updates = {"w": jnp.asarray(norms[:, None], jnp.float32)}

    def play(state, key):
        _, state, _ = agg.apply.aggregate_arrays(aggregator, updates, jnp.ones(clients), state, key)
        return state, state.clip_norm

    first = aggregator.init({"w": jnp.zeros(1)})
    _, path = jax.lax.scan(play, first, jax.random.split(jax.random.key(0), 400))
    assert path[0] < 0.12
    shares = [(norms <= norm).mean() for norm in np.asarray(path[200:])]
    assert abs(np.mean(shares) - quantile) < 0.02


MULTIPLIER, NORM, CLIENTS, SHARE, ROUNDS = 1.5, 4.0, 20, 0.04, 3000


@pytest.fixture(scope="module")
def released():
    """Of so many rounds of zeros, all within the norm: the aggregates [round, coordinate] and the noised shares [round]."""
    private = agg.adaptive_clip(
        agg.fixed_mean(CLIENTS), agg.gaussian_noise(MULTIPLIER), first_norm=NORM, learning_rate=0.0, count_share=SHARE
    )
    assert private.noise_multiplier == MULTIPLIER
    zeros = {"w": jnp.zeros((CLIENTS, 8))}

    def one(key):
        update, _, info = agg.apply.aggregate_arrays(private, zeros, jnp.ones(CLIENTS), None, key)
        return update["w"], info["within_clip_norm"]

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), ROUNDS))


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_updates_and_counts_have_the_noise_of_the_split_and_no_other(released, factor, accepted):
    # The paper's numbers: standard deviations of the noise on the sum of updates over C, and on the sum of the b_k.
    z_update, sigma_count = MULTIPLIER / np.sqrt(1 - SHARE), MULTIPLIER / (2 * np.sqrt(SHARE))
    assert z_update**-2 + (2 * sigma_count) ** -2 == pytest.approx(MULTIPLIER**-2)
    updates, within = released
    assert has_scale(updates, factor * z_update * NORM / CLIENTS) == accepted
    assert has_scale(within - 1, factor * sigma_count / CLIENTS) == accepted


def test_the_two_noises_are_independent_and_the_share_is_right_on_average(released):
    updates, within = (np.asarray(one) for one in released)
    deviation = MULTIPLIER / (2 * np.sqrt(SHARE)) / CLIENTS
    assert abs(within.mean() - 1) < 5 * deviation / np.sqrt(ROUNDS)
    correlations = np.corrcoef(np.column_stack([updates, within]), rowvar=False)[np.triu_indices(9, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(ROUNDS)
